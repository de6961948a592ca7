"""Settings that several methods share, and their validators."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from tagmask.models.backbone import Backbone, Dilation, check_backbone
from tagmask.models.inference import Interpolation, Resize
from tagmask.stage import InitialWeights, Method
from tagmask.training import TrainingSettings

N = TypeVar("N", int, float)

INTERPOLATION: Any = Field(
    "bilinear",
    description="how images are resized, in training and to the scales: bilinear, or bicubic as PIL does (as in the "
    "public code of IRN, ReCAM and AMN)",
)


def _check_ascending(limits: tuple[N, N]) -> tuple[N, N]:
    if limits[0] > limits[1]:
        raise ValueError(f"{limits[0]} is above {limits[1]}; give the smaller one first")
    return limits


BackboneName = Annotated[str, AfterValidator(check_backbone)]
Stride = Literal[8, 16, 32]
Scales = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
ScaleRange = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_check_ascending)]
LongSideRange = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_check_ascending)]

CAM_SCALES = (1.0, 0.5, 1.5, 2.0)  # Ahn et al., CVPR 2019, as in its public code; ReCAM and AMN use the same


class BackboneSettings(Method):
    """The network that a method starts from; by default the run's classifier."""

    backbone: BackboneName | None = Field(None, description="any timm model; null: the backbone of the classifier")
    weights: str = Field(
        "classifier",
        description="initial weights: classifier (those of the run's classifier), pretrained (downloaded by timm), "
        "none (random) or the path of a file",
    )
    options: dict[str, Any] | None = Field(
        None, description="further arguments of timm.create_model; null: those of the classifier"
    )
    output_stride: Stride = Field(
        16, description="side of a feature cell in pixels of the image, for backbones that can be dilated"
    )

    def initial_weights(self) -> InitialWeights:
        return InitialWeights(self.backbone, self.weights)

    def for_dry_run(self) -> Self:
        method = super().for_dry_run()
        return method.model_copy(update={"weights": "none"}) if method.weights == "pretrained" else method


DILATION = (
    "full: layers behind a removed stride are dilated so that they see as much of the image as before; irn: the last "
    "stage of a ResNet is dilated half as much, as in the public code of IRN, ReCAM and AMN"
)


class FeatureSettings(BackboneSettings):
    """How a method that learns from images gets features of them."""

    dilation: Dilation | None = Field(
        None, description=f"{DILATION}; null: as the classifier if it has the same backbone, else full"
    )
    interpolation: Interpolation = INTERPOLATION


class InferenceSettings(Method):
    """How a trained network is applied to whole images."""

    scales: Scales = Field(
        CAM_SCALES,
        description="factors by which an image is resized; each resized image is used together with its horizontal "
        "flip",
    )
    inference_batch_size: int = Field(16, ge=1, description="largest number of images of equal size in a batch")

    def inference_settings(self) -> tuple[str, ...]:
        return ("scales", "inference_batch_size")


class MapSettings(InferenceSettings):
    """How a classifier makes response maps."""

    inference_stride: Stride | None = Field(
        None, description="output stride of the classifier when it makes the maps; null: the one it was saved with"
    )
    interpolation: Interpolation = INTERPOLATION

    def inference_settings(self) -> tuple[str, ...]:
        return (*super().inference_settings(), "inference_stride")

    def resize(self, backbone: Backbone) -> Resize:
        """Return how the images that a backbone gets are resized to the scales."""
        return Resize(self.interpolation, backbone.mean, backbone.std)


FrozenStride = Annotated[int, Field(ge=0)] | Literal["all"]
FROZEN_STRIDE = (
    "layers up to this stride are not trained (8: the stem and the first two stages of a ResNet); 0: all layers are "
    "trained; all: none is, only the weights of the classes"
)


class ClassifierSettings(TrainingSettings, MapSettings):
    """How a classifier is trained and makes response maps."""

    frozen_stride: FrozenStride = Field(8, description=FROZEN_STRIDE)
    freeze_norm: bool = Field(True, description="keep the running statistics of batch norms fixed")
    long_side_range: LongSideRange = Field(
        (320, 640), description="range of the random length in pixels to which the long side is resized"
    )
