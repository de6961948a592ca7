"""Any timm network as a map of features."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path
from typing import Any, Self

import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from tagmask.errors import RecipeError
from tagmask.text import did_you_mean

STRIDES = (8, 16, 32)  # that timm can give a network
SMALLEST = 32  # pixels; images with a smaller side are enlarged, or nothing would be left of them


class FreezableNorm(nn.Module):
    """A network whose backbone's norms may keep their running statistics while it trains (the papers' setting)."""

    freeze_norm = False

    def timm_network(self) -> Any:
        """The backbone's own timm network, whose layers have timm's names."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_norm:
            for module in self.timm_network().modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class Backbone(FreezableNorm):
    """A timm CNN or ViT without its head: images [B, 3, H, W] → features [B, D, h, w].

    Args:
        name: a timm model name.
        weights: "pretrained" (timm's own loading from its hub), "none" (random), or a local file
            (.safetensors, or a .pth state dict, loaded with weights_only=True).
        output_stride: of the features, where the network can be dilated (CNNs); a ViT's is its patch size.
        options: further arguments of `timm.create_model`, e.g. {"pad_type": "same"}.

    Raises:
        RecipeError: the name is not timm's, or the weights cannot be had or do not fit.
    """

    def __init__(
        self, name: str, weights: str = "none", output_stride: int = 16, options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if output_stride not in STRIDES:
            raise RecipeError(f"output_stride {output_stride} cannot be had: give one of {STRIDES}.")
        self.config = {"name": name, "output_stride": output_stride, "options": options or {}}
        net: Any = create_network(name, weights == "pretrained", output_stride, options or {})
        self.net, self.channels = net, int(net.num_features)
        data = resolve_model_data_config(self.net)
        self.mean: tuple[float, ...] = tuple(data["mean"])
        self.std: tuple[float, ...] = tuple(data["std"])
        if weights not in ("pretrained", "none"):
            load_weights(self.net, Path(weights))
        self._try()

    def timm_network(self) -> Any:
        return self.net

    def _try(self) -> None:
        """Raises RecipeError if the network does not take images of any size."""
        self.eval()
        try:
            with torch.inference_mode():
                self(torch.zeros(1, 3, 50, 75))
        except Exception as error:  # each network fails in its own way
            raise RecipeError(
                f"backbone {self.config['name']!r} does not take images of any size ({_first_line(error)}); "
                "choose another."
            ) from error
        self.train()

    @property
    def patch(self) -> int:
        """Image sides must be a multiple of this (a ViT's patch; 1 for a CNN)."""
        size = getattr(getattr(self.net, "patch_embed", None), "patch_size", 1)
        return int(size[0] if isinstance(size, tuple) else size)

    def forward(self, images: Tensor) -> Tensor:
        sides = [round(max(SMALLEST, side) / self.patch) * self.patch for side in images.shape[-2:]]
        if sides != list(images.shape[-2:]):
            images = nn.functional.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
        features: Tensor = self.net.forward_features(images)
        if features.ndim == 3:  # tokens [B, prefix + h·w, D]
            features = features[:, getattr(self.net, "num_prefix_tokens", 0) :]
            grid = [side // self.patch for side in images.shape[-2:]]
            return features.transpose(1, 2).unflatten(2, grid)
        if getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2).contiguous()
        return features

    def freeze(self, until_stride: int, norms: bool) -> None:
        """Freeze the layers up to the last feature level whose stride is ≤ `until_stride` (0: none).

        Args:
            until_stride: 8 is the papers' setting for ResNets: stem and the first two stages.
            norms: also keep every norm layer's running statistics (the papers' setting with pre-trained weights).
        """
        self.freeze_norm = norms
        reached, frozen = 0, ""
        for level in _feature_levels(self.net):
            if reached < level["reduction"] <= until_stride:  # dilated levels have the stride of the one before
                reached, frozen = level["reduction"], level["module"]
        modules = list(self.net.named_modules())
        last = max((i for i, (name, _) in enumerate(modules) if frozen and _within(name, frozen)), default=-1)
        for _, module in modules[: last + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def check_backbone(name: str) -> str:
    """The name, if timm has such a model or it is of a hub ("hf-hub:..."). Raises RecipeError."""
    if not timm.is_model(name) and ":" not in name:
        raise RecipeError(f"backbone {name!r} is not a timm model{did_you_mean(name, timm.list_models())}")
    return name


def create_network(
    name: str, pretrained: bool, output_stride: int, options: dict[str, Any], *, head: bool = False
) -> nn.Module:
    """A timm network, with or without its pooling and last layer. Raises RecipeError as `Backbone`."""
    check_backbone(name)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each time that it tries again
    none = {} if head else {"num_classes": 0, "global_pool": ""}
    arguments: dict[str, Any] = {"pretrained": pretrained, **none, **options}
    # Not every network can be dilated, or take images of any size: ask for what it has.
    for extra in ({"output_stride": output_stride}, {"dynamic_img_size": True}, {}):
        try:
            return timm.create_model(name, **arguments, **extra)
        except (TypeError, NotImplementedError, AssertionError) as error:
            if not extra:
                raise RecipeError(f"backbone {name!r} cannot be made with {options} ({_first_line(error)}).") from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise RecipeError(f"backbone {name!r} cannot be made with {options} ({_first_line(error)}).") from error
            raise RecipeError(
                f"the pretrained weights of {name!r} could not be loaded ({_first_line(error)}); connect to the "
                "network, or give a local file as its weights (--set cam.weights=FILE; to `tagmask maps`: --with "
                "weights=FILE), or train from scratch (--recipe scratch)."
            ) from error
    raise RecipeError(f"backbone {name!r} cannot be created")


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a state dict from a local file into a network; the head's own entries may be absent or extra.

    Raises RecipeError if the file is missing, is not a state dict, or does not fit.
    """
    if not path.exists():
        raise RecipeError(f"weights file {path} does not exist; correct the path, or use pretrained or none.")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not theirs
        raise RecipeError(f"weights file {path} cannot be read ({_first_line(error)}).") from error
    own = net.state_dict()
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not any(key in own for key in state):
        raise RecipeError(f"weights file {path} holds no layer of this backbone: is it for another network?")
    wrong = [k for k, v in state.items() if k in own and own[k].shape != getattr(v, "shape", None)]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    if wrong or missing:
        raise RecipeError(
            f"weights file {path} does not fit this backbone: {len(missing)} layers missing, {len(wrong)} of another "
            f"shape (first: {(wrong + missing)[0]})."
        )
    net.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _feature_levels(net: nn.Module) -> list[dict[str, Any]]:
    info = getattr(net, "feature_info", [])
    return list(info.info if hasattr(info, "info") else info)


def _within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 200, placeholder=" ...")
