"""Segmentation networks: DeepLab-v2 on any timm backbone, and segmentation_models_pytorch's architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor, nn

from tagmask.errors import RecipeError, RunError
from tagmask.models.backbone import Backbone, FreezableNorm
from tagmask.models.saved_network import read_weights, write_weights
from tagmask.text import did_you_mean

SMP_NAMES = ("DeepLabV3Plus", "DeepLabV3", "Unet", "UnetPlusPlus", "FPN", "PSPNet", "PAN", "UPerNet", "Segformer",
             "MAnet", "Linknet")  # fmt: skip
DEEPLAB_V2 = "deeplabv2"
FILE = "segmenter.safetensors"
DEEPLAB_V2_DILATIONS = (6, 12, 18, 24)  # Chen et al., TPAMI 2018, ASPP-L


class DilatedHead(nn.Module):
    """The sum of four dilated 3×3 convolutions: ASPP of DeepLab-v2, and AMN's head.

    Weights N(0, 0.01), bias 0; features [B, D, h, w] → [B, n_outputs, h, w].
    """

    def __init__(self, channels: int, num_outputs: int, dilations: tuple[int, ...] = DEEPLAB_V2_DILATIONS) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, num_outputs, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.ndim == 4 else nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        return sum((branch(features) for branch in self.branches[1:]), self.branches[0](features))


class Segmenter(FreezableNorm):
    """Images [B, 3, H, W] → logits [B, K + 1, h, w] (background first), h×w at the network's own stride.

    Args:
        architecture: "deeplabv2", or a name that `segmentation_models_pytorch.create_model` knows.
        backbone: a timm model name.
        classes: the K class names.
        output_stride: of the encoder, where the architecture lets one choose.
        options: further arguments of `timm.create_model`.

    Raises:
        RecipeError: architecture or backbone unknown, or the two do not go together.
    """

    def __init__(
        self,
        architecture: str,
        backbone: str,
        classes: tuple[str, ...],
        output_stride: int = 16,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.config: dict[str, Any] = {
            "architecture": architecture,
            "backbone": backbone,
            "output_stride": output_stride,
            "options": options or {},
        }
        base = Backbone(backbone, output_stride=output_stride, options=options)
        self.mean, self.std = base.mean, base.std
        check_architecture(architecture)
        if architecture == DEEPLAB_V2:
            self.net: Any = nn.Sequential(base, DilatedHead(base.channels, len(classes) + 1))
        else:
            self.net = _smp_model(architecture, backbone, len(classes) + 1, output_stride, options or {})
        self.multiple = 1 if architecture == DEEPLAB_V2 else 32  # decoders join levels of every stride
        self.smallest = 128 if architecture.lower() == "pan" else 1  # pixels; it pools stride 16 three times more

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        down, right = (max(self.smallest - side, -side % self.multiple) for side in (height, width))
        padded = F.pad(images, (0, right, 0, down), mode="replicate") if down or right else images
        logits: Tensor = self.net(padded)
        rows = round(logits.shape[2] * height / (height + down))
        columns = round(logits.shape[3] * width / (width + right))
        return logits[:, :, : max(1, rows), : max(1, columns)]

    def timm_network(self) -> Any:
        return self.net[0].net if isinstance(self.net, nn.Sequential) else self.net.encoder.model

    def new_parameters(self) -> list[nn.Parameter]:
        """Everything that is not the encoder's: what learns ten times faster."""
        old = {id(p) for p in self.timm_network().parameters()}
        return [p for p in self.parameters() if id(p) not in old]

    def load_encoder(self, weights: dict[str, Tensor]) -> None:
        """Start the encoder from a timm state dict. Raises RecipeError if it is of another network."""
        net = self.timm_network()
        own = net.state_dict()
        given = {_flat(name): value for name, value in weights.items()}
        fitting = {k: given[_flat(k)] for k, v in own.items() if _flat(k) in given and given[_flat(k)].shape == v.shape}
        if len(fitting) < 0.9 * len(own):
            raise RecipeError(
                f"only {len(fitting)} of the {len(own)} layers of {self.config['backbone']!r} are in the weights "
                "given: are they of another backbone?"
            )
        net.load_state_dict(fitting, strict=False)

    def save(self, folder: Path, **notes: Any) -> None:
        """Write segmenter.safetensors and config.json; `notes` are added to the latter."""
        config = {"kind": "segmenter", "network": self.config, "classes": self.classes, **notes}
        write_weights(folder / FILE, self.state_dict(), config)

    @classmethod
    def load(cls, folder: Path) -> Segmenter:
        """Load what `save` wrote. Raises RunError if it is not there."""
        weights, config = read_weights(folder / FILE)
        if config.get("kind") != "segmenter":
            raise RunError(f"{folder} does not hold a segmentation network but a {config.get('kind')}.")
        network = cls(classes=tuple(config["classes"]), **config["network"])
        network.load_state_dict(weights)
        return network.eval()


def _flat(name: str) -> str:
    """A layer's name as it is when timm cuts a network into levels: stages_0.x for stages.0.x."""
    return name.replace(".", "_")


def check_architecture(name: str) -> str:
    """The name, if it is an architecture's. Raises RecipeError."""
    if name != DEEPLAB_V2 and name.lower() not in [known.lower() for known in SMP_NAMES]:
        raise RecipeError(f"architecture {name!r} is not known{did_you_mean(name, [DEEPLAB_V2, *SMP_NAMES])}")
    return name


def _smp_model(
    architecture: str, backbone: str, num_outputs: int, output_stride: int, options: dict[str, Any]
) -> nn.Module:
    arguments: dict[str, Any] = {"encoder_weights": None, "classes": num_outputs, **options}
    if architecture.lower().startswith("deeplabv3"):
        arguments["encoder_output_stride"] = output_stride
    try:
        return smp.create_model(architecture, encoder_name=f"tu-{backbone}", **arguments)
    except (KeyError, TypeError, ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
        raise RecipeError(
            f"architecture {architecture!r} cannot stand on backbone {backbone!r} ({str(error)[:150]}); "
            "choose another of either, e.g. deeplabv2, which takes any."
        ) from error
