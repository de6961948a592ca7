"""Settings of the refinement methods, as a recipe gives them."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

GaussianSxy = Annotated[
    float,
    Field(
        gt=0, description="standard deviation of the smoothness kernel in pixels; a larger value removes larger specks"
    ),
]
GaussianWeight = Annotated[float, Field(description="weight of the smoothness kernel; 0 leaves the kernel out")]
BilateralSxy = Annotated[
    float,
    Field(
        gt=0,
        description="standard deviation of the appearance kernel in pixels: the distance over which colors are "
        "compared",
    ),
]
BilateralSrgb = Annotated[
    float,
    Field(
        gt=0,
        description="standard deviation of the appearance kernel in color levels (0 to 255); with a larger value, the "
        "colors of one object may differ more",
    ),
]
BilateralWeight = Annotated[float, Field(description="weight of the appearance kernel; 0 leaves the kernel out")]


class CrfSettings(BaseModel):
    """Settings of the dense CRF, which moves the borders of masks to the edges of the image.

    The defaults are those of IRN's code, which refines the seeds with them.

    Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011,
    equation 3. The smoothness kernel compares the positions of two pixels, the appearance kernel their positions and
    colors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    steps: int = Field(10, ge=0, description="number of mean-field iterations")
    gaussian_sxy: GaussianSxy = 3
    gaussian_weight: GaussianWeight = 3
    bilateral_sxy: BilateralSxy = 50
    bilateral_srgb: BilateralSrgb = 5
    bilateral_weight: BilateralWeight = 10

    def kernel_arguments(self) -> dict[str, float]:
        """Return the arguments of `dense_crf` and `build_lattices` that describe the kernels."""
        return self.model_dump(include=set(CrfSettings.model_fields) - {"steps"})


class NetworkCrfSettings(CrfSettings):
    """Settings of the dense CRF on the probabilities of a segmentation network.

    The defaults are the public settings of DeepLab.
    """

    gaussian_sxy: GaussianSxy = 1
    bilateral_sxy: BilateralSxy = 67
    bilateral_srgb: BilateralSrgb = 3
    bilateral_weight: BilateralWeight = 4
    foreground_bias: float = Field(
        0.0,
        description="added to the log-probabilities of all labels but the background before the CRF; a value above 0 "
        "makes up for the CRF, which makes uncertain objects smaller",
    )


NETWORK_CRF = NetworkCrfSettings()
"""The public settings of DeepLab."""


class SeedSettings(BaseModel):
    """Settings of confident seeds: a label map at each of two thresholds, and ignored pixels where they differ.

    The defaults are those of the papers on IRN and AMN for maps of CAM. For maps of ReCAM the papers use fg 0.35 and
    bg 0.1, for maps of AMN fg 0.45 and bg 0.15.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    fg: float = Field(0.30, ge=0, le=1, description="activation above which a pixel is a seed of its most active class")
    bg: float = Field(
        0.05, ge=0, le=1, description="activation, at most fg, up to which a pixel is a seed of the background"
    )
    alphas: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None,
        description="instead of fg and bg: two exponents α of the background (1 − strongest activation)^α, the smaller "
        "one first; psa's code and the paper on class-conditional inference use 4 and 32",
    )
    gt_prob: float = Field(
        0.7, gt=0, lt=1, description="probability that a label of the cut maps is right, as the CRF assumes"
    )
    crf: CrfSettings | None = Field(
        CrfSettings(), description="the dense CRF that refines the label maps of both thresholds; null: no CRF"
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.bg > self.fg:
            raise ValueError(f"bg {self.bg} must not be above fg {self.fg}: lower bg or raise fg")
        if self.alphas and self.alphas[0] > self.alphas[1]:
            raise ValueError(f"alphas {list(self.alphas)}: give the smaller one first")
        return self


class RandomWalkSettings(BaseModel):
    """Settings of the random walk, which spreads response maps up to the boundaries of objects.

    Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
    (IRN), section 5.2.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    map_power: float = Field(
        1.0,
        gt=0,
        description="exponent of the maps before the walk; a value above 1 weakens low activations (the code of AMN "
        "uses 1.3)",
    )
    radius: int = Field(
        5,
        ge=1,
        description="one step of the walk connects cells that are nearer than this, in cells of 4 × 4 pixels",
    )
    beta: float = Field(
        10,
        gt=0,
        description="exponent of the affinities; with a larger value, weak boundaries stop the walk better",
    )
    steps: int = Field(256, ge=0, description="number of steps of the walk")
