"""Segmentation networks: DeepLab-v2 on any timm backbone, and the architectures of segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn

from tagmask.errors import RecipeError
from tagmask.models.backbone import (
    Backbone,
    FreezableNorms,
    check_any_size,
    check_backbone,
    check_options,
    check_output_stride,
    first_line,
    normalization,
)
from tagmask.models.classifier import Classifier, backbone_name_and_options
from tagmask.models.saved_network import ClassesConfig, SavedNetwork
from tagmask.refine.settings import NetworkCrfSettings
from tagmask.text import did_you_mean, shorten

SMP_ARCHITECTURES = ("DeepLabV3Plus", "DeepLabV3", "Unet", "UnetPlusPlus", "FPN", "PSPNet", "PAN", "UPerNet",
                     "Segformer", "MAnet", "Linknet")  # fmt: skip
DEEPLAB_V2 = "deeplabv2"
DEEPLAB_V2_DILATIONS = (6, 12, 18, 24)  # ASPP-L of Chen et al., "DeepLab", TPAMI 2018, section 4.1
MIN_SHARED_LAYERS = 0.9  # share of the encoder's layers that initial weights must contain


class DilatedHead(nn.Module):
    """The sum of four dilated 3×3 convolutions: features [B, D, h, w] to logits [B, num_outputs, h, w].

    This is the ASPP of DeepLab-v2 (Chen et al., TPAMI 2018, section 3.2) and the head of AMN (Lee et al., CVPR 2022).
    The initial weights are drawn from N(0, 0.01²), and the biases are 0.

    Args:
        channels: D.
        num_outputs: the number of channels of the logits.
        dilations: one convolution per number, in cells of the features.
    """

    def __init__(self, channels: int, num_outputs: int, dilations: tuple[int, ...] = DEEPLAB_V2_DILATIONS) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, num_outputs, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.ndim == 4 else nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        first, *others = self.branches
        dtype = first.weight.dtype  # float32 also under autocast
        return sum((branch(features).to(dtype) for branch in others), first(features).to(dtype))


class ArchitectureConfig(BaseModel):
    """The network in a segmenter's config.json: arguments of `Segmenter`."""

    model_config = ConfigDict(extra="forbid")

    architecture: str
    backbone: str
    output_stride: Literal[8, 16, 32]
    options: dict[str, Any]


class InferenceConfig(BaseModel):
    """How a segmenter is applied: the entry "test" of its config.json, which the stage that trained it writes.

    Attributes:
        scales: factors by which images are resized.
        crf: the dense CRF on the network's probabilities; None: no CRF.
        hflip: whether each resized image is used together with its horizontal flip.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scales: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    crf: NetworkCrfSettings | None
    hflip: bool = True


SINGLE_PASS = InferenceConfig(scales=(1.0,), crf=None, hflip=False)
"""The network sees each image once, at its own size, as in an exported ONNX file."""


class SegmenterConfig(ClassesConfig):
    """The entries of a segmenter's config.json."""

    network: ArchitectureConfig
    test: InferenceConfig | None = None


class Segmenter(FreezableNorms, SavedNetwork):
    """A segmentation network: images [B, 3, H, W] to logits [B, K + 1, h, w], background first.

    Args:
        architecture: "deeplabv2", or a name that `segmentation_models_pytorch.create_model` accepts.
        backbone: a timm model name. Its weights are random.
        classes: the K class names, without background.
        output_stride: the stride of the encoder, 8, 16 or 32, where architecture and backbone support it.
        options: further arguments of `timm.create_model`.

    Attributes:
        mean: [3], of the color channels (0..1), with which the network expects its images to be normalized.
        std: [3], likewise.

    Raises:
        RecipeError: architecture, backbone or options are not valid, or they do not work together.
    """

    kind: ClassVar[str] = "segmenter"
    file_name: ClassVar[str] = "segmenter.safetensors"
    title: ClassVar[str] = "a segmentation network"
    config_model = SegmenterConfig

    def __init__(
        self,
        architecture: str,
        backbone: str,
        classes: tuple[str, ...],
        output_stride: int = 16,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_architecture(architecture)
        self.classes = classes
        self.architecture, self.backbone_name = architecture, backbone
        self.output_stride, self.options = output_stride, options or {}
        is_deeplab_v2 = architecture == DEEPLAB_V2
        self.multiple = 1 if is_deeplab_v2 else 32  # a decoder joins levels of all strides up to 32
        self.min_side = 128 if architecture.lower() == "pan" else 1  # pixels; PAN pools stride 16 three times more
        if is_deeplab_v2:
            base = Backbone(backbone, output_stride=output_stride, options=options)
            self.net: Any = nn.Sequential(base, DilatedHead(base.channels, len(classes) + 1))
        else:
            self.net = _create_smp_model(architecture, backbone, len(classes) + 1, output_stride, self.options)
            check_any_size(self, backbone)
        self.mean, self.std = normalization(self.timm_network())

    @property
    def config(self) -> dict[str, Any]:
        network = {
            "architecture": self.architecture,
            "backbone": self.backbone_name,
            "output_stride": self.output_stride,
            "options": self.options,
        }
        return {"network": network, "classes": self.classes}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(classes=tuple(config["classes"]), **config["network"])

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits.

        Args:
            images: [B, 3, H, W] float, normalized with `mean` and `std`, of any size. Where an architecture needs
                other sizes, the images are padded at the bottom and on the right, and the logits are cropped.

        Returns:
            [B, K + 1, h, w] at the output stride for deeplabv2, at the size of the images for most others.
        """
        height, width = images.shape[-2:]
        bottom, right = (max(self.min_side - side, -side % self.multiple) for side in (height, width))
        padded = F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
        logits: Tensor = self.net(padded)
        rows = round(logits.shape[2] * height / (height + bottom))
        columns = round(logits.shape[3] * width / (width + right))
        return logits[:, :, : max(1, rows), : max(1, columns)]

    def timm_network(self) -> Any:
        return self.net[0].net if isinstance(self.net, nn.Sequential) else self.net.encoder.model

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that do not belong to the encoder."""
        encoder = {id(p) for p in self.timm_network().parameters()}
        return [p for p in self.parameters() if id(p) not in encoder]

    @torch.no_grad()
    def add_to_logits(self, offsets: Tensor) -> None:
        """Add a number to the logits of each label, by changing the biases of the last layer.

        Args:
            offsets: [K + 1], background first.
        """
        head = self.net[1] if isinstance(self.net, nn.Sequential) else self.net.segmentation_head
        bias = next(parameter for parameter in head.parameters() if parameter.ndim == 1)
        bias += offsets.to(bias)

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Load the state dict of a timm network into the encoder.

        Args:
            weights: may contain further layers, and may lack up to a tenth of the encoder's.

        Raises:
            RecipeError: the weights are of another network.
        """
        net = self.timm_network()
        own = net.state_dict()
        by_flat_name = {_flat_name(name): tensor for name, tensor in weights.items()}
        shared = {
            name: by_flat_name[_flat_name(name)]
            for name, tensor in own.items()
            if _flat_name(name) in by_flat_name and by_flat_name[_flat_name(name)].shape == tensor.shape
        }
        if len(shared) < MIN_SHARED_LAYERS * len(own):
            raise RecipeError(
                f"the weights contain only {len(shared)} of the {len(own)} layers of {self.backbone_name!r}; "
                "give weights of this backbone, or set weights to pretrained or none."
            )
        net.load_state_dict(shared, strict=False)


def check_architecture(name: str) -> str:
    """Return the name if there is such an architecture.

    Raises:
        RecipeError: there is none.
    """
    if name != DEEPLAB_V2 and name.lower() not in [known.lower() for known in SMP_ARCHITECTURES]:
        hint = did_you_mean(name, [DEEPLAB_V2, *SMP_ARCHITECTURES])
        raise RecipeError(f"architecture {shorten(name)!r} is not known{hint}")
    return name


def initial_segmenter(
    classifier_folder: Path,
    architecture: str,
    classes: tuple[str, ...],
    backbone: str | None,
    weights: str,
    output_stride: int,
    options: dict[str, Any] | None,
) -> Segmenter:
    """Return the segmentation network from which a later stage of the run starts its training.

    Its encoder has the given weights, as in `tagmask.models.classifier.initial_backbone`. The weights of its head or
    decoder are random.

    Args:
        classifier_folder: contains the classifier of the run.
        architecture: as in `Segmenter`.
        classes: the K class names, without background.
        backbone: a timm model name. None: the classifier's.
        weights: "classifier" for the trained weights of the classifier's backbone, or as in `Backbone`.
        output_stride: the stride of the encoder, 8, 16 or 32.
        options: further arguments of `timm.create_model`. None: the classifier's if it has the same name, else none.

    Raises:
        RecipeError: the weights do not fit the encoder, or `Segmenter` or `Backbone` raises it.
        RunError: the folder does not contain a classifier.
    """
    _, config = Classifier.read(classifier_folder)
    name, options = backbone_name_and_options(config["backbone"], backbone, options)
    network = Segmenter(architecture, name, classes, output_stride, options)
    if weights == "classifier":
        network.load_encoder(Classifier.load(classifier_folder).backbone.net.state_dict())
    elif weights != "none":
        network.load_encoder(Backbone(name, weights, options=options).net.state_dict())
    return network


def _flat_name(name: str) -> str:
    """Return the name of a layer with underscores: timm's feature networks have stages_0.x instead of stages.0.x."""
    return name.replace(".", "_")


def _create_smp_model(
    architecture: str, backbone: str, num_outputs: int, output_stride: int, options: dict[str, Any]
) -> nn.Module:
    check_backbone(backbone)
    check_options(options)
    check_output_stride(output_stride)
    arguments: dict[str, Any] = {"encoder_weights": None, "classes": num_outputs, **options}
    if architecture.lower().startswith("deeplabv3"):
        arguments["encoder_output_stride"] = output_stride
    try:
        return smp.create_model(architecture, encoder_name=f"tu-{backbone}", **arguments)
    except Exception as error:  # the type depends on the architecture and the options
        raise RecipeError(
            f"architecture {architecture!r} cannot use backbone {backbone!r} with options {options} "
            f"({first_line(error)}); choose another backbone or architecture, e.g. deeplabv2, which takes any backbone."
        ) from error
