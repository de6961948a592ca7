"""`Backbone`: any CNN or ViT of timm as a network that maps images to features."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path
from typing import Any, Literal, Self

import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models.resnet import ResNet
from torch import Tensor, nn

from tagmask.errors import RecipeError
from tagmask.text import did_you_mean, shorten

WEIGHT_OPTIONS = ("pretrained", "checkpoint_path", "encoder_weights")  # of timm and smp: they read or download weights
OUTPUT_STRIDES = (8, 16, 32)  # the strides that timm can give a network by dilation
Dilation = Literal["full", "irn"]
"""full: a layer behind a removed stride is dilated so far that it sees as much of the image as before (timm, DeepLab).
irn: the last stage of a ResNet is dilated half as much, as in the public code of IRN, ReCAM and AMN."""
MIN_SIDE = 32  # pixels; smaller images are enlarged, because the strides would leave no features of them


class FreezableNorms(nn.Module):
    """Mixin for networks that can keep the running statistics of their backbone's norms during training.

    Attributes:
        freeze_norm: whether the batch norms of the backbone stay in eval mode when `train()` is called. This is usual
            when a network with pretrained weights is trained with small batches.
        is_frozen: whether the whole backbone stays in eval mode, so that it has no dropout, either.
    """

    freeze_norm: bool = False
    is_frozen: bool = False

    def timm_network(self) -> Any:
        """Return the timm network that is the backbone. The names of its layers are timm's."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            self.timm_network().eval()
        elif self.freeze_norm:
            for module in self.timm_network().modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class Backbone(FreezableNorms):
    """A timm CNN or ViT without pooling and head: images [B, 3, H, W] to features [B, D, h, w].

    Args:
        name: a timm model name.
        weights: "pretrained" (downloaded by timm from its hub), "none" (random), or the path of a local file
            (.safetensors, or a .pth state dict, which is loaded with weights_only=True).
        output_stride: the stride of the features, 8, 16 or 32, where the network can be dilated (most CNNs). The
            stride of a ViT is its patch size.
        dilation: "full" or "irn", see `Dilation`.
        options: further arguments of `timm.create_model`, e.g. {"pad_type": "same"}.

    Attributes:
        net: the timm network.
        config: the arguments name, output_stride, options and dilation, with which the network can be built again.
        channels: D.
        mean: [3], of the color channels (0..1), with which the network expects its images to be normalized.
        std: [3], likewise.

    Raises:
        RecipeError: timm cannot create the network, it does not take images of any size, it is no ResNet although
            dilation is "irn", or the weights are missing or do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: str = "none",
        output_stride: int = 16,
        options: dict[str, Any] | None = None,
        dilation: Dilation = "full",
    ) -> None:
        super().__init__()
        check_output_stride(output_stride)
        self.config: dict[str, Any] = {
            "name": name, "output_stride": output_stride, "options": options or {}, "dilation": dilation
        }  # fmt: skip
        net: Any = create_timm_model(name, weights == "pretrained", output_stride, options or {})
        if dilation == "irn":
            _halve_dilation_inplace(net, name)
        self.net, self.channels = net, int(net.num_features)
        self.mean, self.std = normalization(net)
        if weights not in ("pretrained", "none"):
            load_weights(self.net, Path(weights))
        check_any_size(self, name)

    def timm_network(self) -> Any:
        return self.net

    @property
    def side_multiple(self) -> int:
        """The sides of the images that timm's network takes are multiples of this: a ViT's patch, 1 for a CNN."""
        size = getattr(getattr(self.net, "patch_embed", None), "patch_size", 1)
        return int(size[0] if isinstance(size, tuple) else size)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: [B, 3, H, W] float, normalized with `mean` and `std`, of any size. Sides below 32 pixels are
                enlarged to 32, and for a ViT the sides are resized to the nearest multiples of its patch size.

        Returns:
            [B, D, h, w].
        """
        sides = [round(max(MIN_SIDE, side) / self.side_multiple) * self.side_multiple for side in images.shape[-2:]]
        if sides != list(images.shape[-2:]):
            images = nn.functional.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """Compute features [B, D, h, w] of images of a size that timm's network takes; see `forward`."""
        features: Tensor = self.net.forward_features(images)
        if features.ndim == 3:  # tokens [B, prefix + h · w, D]
            features = features[:, getattr(self.net, "num_prefix_tokens", 0) :]
            grid = [side // self.side_multiple for side in images.shape[-2:]]
            return features.transpose(1, 2).unflatten(2, grid)
        if getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            return features.permute(0, 3, 1, 2).contiguous()
        return features

    def freeze(self, until_stride: int | Literal["all"], freeze_norm: bool) -> None:
        """Exclude the first layers from training.

        Args:
            until_stride: the setting `frozen_stride`. All layers are frozen up to the end of the last feature level
                whose stride is at most this number. For a ResNet, 0 freezes no layer, 2 the stem, 4 also the first
                stage, and 8 also the second stage (as in IRN's code; ReCAM's freezes the stem). "all": the whole
                backbone.
            freeze_norm: whether all batch norms of the backbone keep their running statistics.
        """
        self.freeze_norm = freeze_norm
        if until_stride == "all":
            self.is_frozen = True
            self.requires_grad_(False)
            return
        stride, last_module = 0, ""
        for level in _feature_levels(self.net):
            if stride < level["reduction"] <= until_stride:  # a dilated level has the stride of the level before it
                stride, last_module = level["reduction"], level["module"]
        modules = list(self.net.named_modules())
        frozen = [i for i, (name, _) in enumerate(modules) if last_module and f"{name}.".startswith(f"{last_module}.")]
        for _, module in modules[: max(frozen, default=-1) + 1]:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def check_backbone(name: str) -> str:
    """Return the name if timm has such a model, or if it is a name on a model hub ("hf-hub:...").

    Raises:
        RecipeError: timm does not have such a model.
    """
    if not timm.is_model(name) and ":" not in name:
        raise RecipeError(f"backbone {shorten(name)!r} is not a timm model{did_you_mean(name, timm.list_models())}")
    return name


def check_output_stride(output_stride: int) -> None:
    """Raise RecipeError if timm does not support the stride."""
    if output_stride not in OUTPUT_STRIDES:
        raise RecipeError(f"output_stride {output_stride} is not possible: give one of {OUTPUT_STRIDES}.")


def check_options(options: dict[str, Any]) -> None:
    """Raise RecipeError if the options of a network load weights, which a config.json of someone else must not do."""
    if found := [name for name in WEIGHT_OPTIONS if name in options]:
        raise RecipeError(f"the option {found[0]!r} is not possible: give the weights with the setting weights.")


def check_any_size(network: nn.Module, backbone: str) -> None:
    """Check with a forward pass that the network takes images of any size. It is in training mode afterwards.

    Args:
        network: maps images [B, 3, H, W] to a tensor.
        backbone: the name of its timm model, for the error message.

    Raises:
        RecipeError: the forward pass fails.
    """
    network.eval()
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, 50, 75))
    except Exception as error:  # the type depends on the network
        raise RecipeError(
            f"backbone {backbone!r} does not take images of any size ({first_line(error)}); choose another."
        ) from error
    network.train()


def create_timm_model(
    name: str, pretrained: bool, output_stride: int, options: dict[str, Any], *, with_head: bool = False
) -> nn.Module:
    """Create a timm network, dilated to the output stride and for images of any size where it supports that.

    Args:
        name: a timm model name.
        pretrained: whether timm loads weights from its hub, or from its cache.
        output_stride: 8, 16 or 32; ignored by networks that cannot be dilated.
        options: further arguments of `timm.create_model`.
        with_head: whether the network has its pooling and its last layer.

    Raises:
        RecipeError: the name or the options are not valid, or the weights cannot be loaded.
    """
    check_backbone(name)
    check_options(options)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries as a warning
    without_head = {} if with_head else {"num_classes": 0, "global_pool": ""}
    arguments: dict[str, Any] = {"pretrained": pretrained, **without_head, **options}
    # Only CNNs have the first argument, and only ViTs the second; some networks have neither.
    for extra in ({"output_stride": output_stride}, {"dynamic_img_size": True}, {}):
        try:
            return timm.create_model(name, **arguments, **extra)
        except (TypeError, NotImplementedError, AssertionError) as error:
            if not extra:
                raise _cannot_create(name, options, error) from error
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise _cannot_create(name, options, error) from error
            raise RecipeError(
                f"the pretrained weights of {name!r} could not be loaded ({first_line(error)}); connect to the "
                "network, or give a local file as the weights of the stage (e.g. --set cam.weights=FILE), or train "
                "from scratch (--recipe scratch)."
            ) from error
        except Exception as error:  # the type depends on the network and the options
            raise _cannot_create(name, options, error) from error
    raise AssertionError  # the last attempt returns or raises


def _halve_dilation_inplace(net: nn.Module, name: str) -> None:
    """Halve the dilation of the last stage of a ResNet, down to 1.

    At stride 16 no layer is dilated then. At stride 8 the last two stages are dilated by 2, each without its first
    block.

    Raises:
        RecipeError: the network is not a ResNet.
    """
    if not isinstance(net, ResNet):
        raise RecipeError(f"dilation irn is only for ResNets, not for {shorten(name)!r}; set dilation to full.")
    for layer in net.get_submodule("layer4").modules():
        if isinstance(layer, nn.Conv2d) and layer.dilation[0] > 1:
            assert layer.padding == layer.dilation  # of a 3×3 convolution
            layer.dilation = layer.padding = (layer.dilation[0] // 2,) * 2


def normalization(net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of the color channels (0..1) that a timm network expects."""
    data = resolve_model_data_config(net)
    return tuple(data["mean"]), tuple(data["std"])


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a state dict from a local file into a network.

    Args:
        net: a timm network.
        path: a .safetensors file, or a state dict that torch.save wrote (also as the entry "state_dict" of a
            checkpoint). Layers that the network does not have, e.g. the head, are ignored.

    Raises:
        RecipeError: the file is missing, is not a state dict, or does not fit the network.
    """
    if not path.exists():
        raise RecipeError(f"weights file {path} does not exist; correct the path, or use pretrained or none.")
    try:
        if path.suffix == ".safetensors":
            state: Any = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types for a damaged file
        raise RecipeError(
            f"weights file {path} cannot be read ({first_line(error)}); give a .safetensors file or a state dict."
        ) from error
    own = net.state_dict()
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not any(key in own for key in state):
        raise RecipeError(f"weights file {path} holds no layer of this backbone; give a file of the same network.")
    wrong = [k for k, v in state.items() if k in own and own[k].shape != getattr(v, "shape", None)]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    if wrong or missing:
        raise RecipeError(
            f"weights file {path} does not fit this backbone: {len(missing)} layers are missing and {len(wrong)} have "
            f"another shape (first: {(wrong + missing)[0]}); give a file of the same network."
        )
    net.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def first_line(error: Exception) -> str:
    """Return the first line of an error message, at most 200 characters, or the type if there is no message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 200, placeholder=" ...")


def _cannot_create(name: str, options: dict[str, Any], error: Exception) -> RecipeError:
    return RecipeError(
        f"backbone {shorten(name)!r} cannot be created with options {shorten(str(options))} "
        f"({first_line(error)}); correct the options."
    )


def _feature_levels(net: nn.Module) -> list[dict[str, Any]]:
    info = getattr(net, "feature_info", [])
    return list(info.info if hasattr(info, "info") else info)
