"""`ExportSettings`: what a user can choose about the masks and images of an export."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tagmask.errors import RunError

POLYGON_MIN_AREA = 0.001  # of the pixels of the image
POLYGON_TOLERANCE = 0.005  # of the long side of the image


@dataclass(frozen=True)
class ExportSettings:
    """What a user can choose about an export.

    The default values of `min_area` and `simplify` apply to the formats of polygons. They were chosen on masks of
    photographs, see the guide on exporting. All other formats are exact by default.

    Attributes:
        min_area: connected regions (also holes) with fewer pixels become part of their surroundings. None: 0.1 % of the
            image's pixels in formats of polygons, 0 in other formats.
        simplify: tolerance of the simplification of polygons, in pixels: details smaller than about a square of
            this side length vanish. 0: exact polygons along the edges of the pixels. None: 0.5 % of the long side.
        fill_holes: whether background and ignored pixels that a single class surrounds become part of this class.
        images: what happens to the images in formats with a place for them: "copy" them, "link" them (symbolic links),
            or "none": leave them out. None: the default of the format.
        subset: the name of the set, which some formats write in names of files and folders. None: "test" in the format
            "voc-server", else "train".
        competition: the competition of VOC's evaluation server: "comp6" permits any training data, "comp5" only that of
            VOC.

    Raises:
        RunError: a value is not valid.
    """

    min_area: int | None = None
    simplify: float | None = None
    fill_holes: bool = False
    images: Literal["copy", "link", "none"] | None = None
    subset: str | None = None
    competition: Literal["comp5", "comp6"] = "comp6"

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in (("min_area", self.min_area), ("simplify", self.simplify)):
            if value is not None and not 0 <= value < float("inf"):
                raise RunError(f"{name} is {value}: give a number of pixels, 0 or more.")
        if self.images not in (None, "copy", "link", "none"):
            raise RunError(f"images is {self.images!r}: choose from copy, link, none.")
        if self.subset is not None and not re.fullmatch(r"\w[\w.-]*", self.subset):
            raise RunError(f"subset is {self.subset!r}: give a name of letters, digits, '-' and '_'.")
        if self.competition not in ("comp5", "comp6"):
            raise RunError(f"competition is {self.competition!r}: choose from comp5, comp6.")

    @property
    def subset_name(self) -> str:
        """The name of the set in the formats of training data."""
        return self.subset or "train"

    def min_area_of(self, size: tuple[int, int], *, has_polygons: bool) -> int:
        """Return the minimum area in an image of this (H, W), in pixels."""
        if self.min_area is not None:
            return self.min_area
        return round(POLYGON_MIN_AREA * size[0] * size[1]) if has_polygons else 0

    def tolerance_of(self, size: tuple[int, int]) -> float:
        """Return the tolerance of polygons in an image of this (H, W), in pixels."""
        return POLYGON_TOLERANCE * max(size) if self.simplify is None else self.simplify
