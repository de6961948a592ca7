"""`ResponseMaps`: one image's class activations, the currency between the stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tagmask.artifacts import read_arrays, write_arrays

STRIDE = 4  # maps are stored at a quarter of the image's size: IRN and AMN read them so


@dataclass(frozen=True)
class ResponseMaps:
    """Activations of an image's tagged classes.

    Attributes:
        classes: [K] ids of the tagged classes, 1-based, ascending. K may be 0: an image of background only.
        maps: [K, h, w] float, 0..1, with h = ceil(H / 4) and w = ceil(W / 4).
        size: (H, W) of the image in pixels.
        background: [h, w] float, 0..1, where a method gives a map of the background too (AMN).
    """

    classes: np.ndarray
    maps: np.ndarray
    size: tuple[int, int]
    background: np.ndarray | None = None

    def __post_init__(self) -> None:
        grid = grid_size(self.size)
        if self.maps.shape != (len(self.classes), *grid):
            raise ValueError(
                f"maps are {list(self.maps.shape)}; {len(self.classes)} classes on an image of "
                f"{self.size[0]}×{self.size[1]} need [{len(self.classes)}, {grid[0]}, {grid[1]}]"
            )
        if self.background is not None and self.background.shape != grid:
            raise ValueError(f"background is {list(self.background.shape)}, not {list(grid)}")

    def save(self, path: Path) -> None:
        """Write as safetensors, the maps as float16."""
        arrays: dict[str, np.ndarray] = {
            "maps": self.maps.astype(np.float16),
            "classes": np.asarray(self.classes, np.int32),
            "size": np.asarray(self.size, np.int32),
        }
        if self.background is not None:
            arrays["background"] = self.background.astype(np.float16)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path) -> ResponseMaps:
        arrays = read_arrays(path)
        height, width = arrays["size"].tolist()
        return cls(arrays["classes"], arrays["maps"], (height, width), arrays.get("background"))

    def full_size(self) -> np.ndarray:
        """The maps at the image's size, [K, H, W] float32: bilinear ×4 (align_corners=False), cropped.

        IRN's code makes full-size maps of the raw activations instead, on a grid of 16·ceil(H / 16): where H is no
        multiple of 16, what is at the lower and right edge lies up to 12 pixels further out there.
        """
        return upsample(self.maps, self.size)

    def label_map(self, threshold: float | None = None, *, alpha: float | None = None) -> np.ndarray:
        """Each pixel's most active class, or background: [H, W] uint8 of 0 and class ids.

        The background's own activation is one of: `threshold`, the same everywhere (CAM's usual rule);
        `(1 − max map) ** alpha` (psa's rule); the stored `background` map, if neither is given.
        Where classes and background tie, background wins.
        """
        if (threshold is None) == (alpha is None) and (threshold is not None or self.background is None):
            raise ValueError("give one of threshold and alpha (or neither, where there is a background map)")
        highest, which = strongest(self.maps, self.size)
        background: Any = threshold
        if alpha is not None:
            background = (1 - highest) ** alpha
        elif threshold is None:
            background = upsample(self.background[None], self.size)[0]  # type: ignore[index]
        return np.concatenate([[0], self.classes]).astype(np.uint8)[np.where(highest > background, which + 1, 0)]

    def figure(self, image: np.ndarray) -> Image.Image:
        """The strongest activation as a heat overlay on the image [H, W, 3] uint8."""
        heat = strongest(self.maps, self.size)[0][..., None]
        steps = np.linspace(0, 1, len(_HEAT))
        color = np.stack([np.interp(heat[..., 0], steps, _HEAT[:, c]) for c in range(3)], axis=-1)
        opacity = 0.25 + 0.5 * heat
        return Image.fromarray((image * (1 - opacity) + color * opacity).astype(np.uint8))


# Dark blue → teal → yellow → red, even steps in lightness up to yellow.
_HEAT = np.array([[38, 20, 90], [45, 80, 150], [40, 150, 150], [120, 200, 110], [250, 220, 70], [230, 60, 40]])


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """The stride-4 grid of an image (H, W): (ceil(H / 4), ceil(W / 4))."""
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)


def upsample(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring maps [K, h, w] on the stride-4 grid of an image to its `size`: [K, H, W] float32."""
    if not len(maps):
        return np.zeros((0, *size), np.float32)
    tensor = torch.from_numpy(np.asarray(maps, np.float32))[None]
    full = F.interpolate(tensor, scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    return full[:, : size[0], : size[1]].numpy()


def strongest(maps: Iterable[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's highest activation, at least 0, and whose it is (of equal ones the first), at the image's size.

    One map at a time is as large as the image: of many maps, or of a large image, all together fill the memory.

    Args:
        maps: any number of maps [h, w] on the stride-4 grid.

    Returns:
        [H, W] float32, and [H, W] int64, the map's number; −1 where none is above 0.
    """
    highest, which = np.zeros(size, np.float32), np.full(size, -1)
    for n, grid in enumerate(maps):
        full = upsample(grid[None], size)[0]
        which[full > highest] = n
        np.maximum(highest, full, out=highest)
    return highest, which
