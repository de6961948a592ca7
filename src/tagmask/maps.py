"""`ResponseMaps`: the class activations of one image, which the stages of a run pass on to each other."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tagmask import large_images
from tagmask.artifacts import RUN_AGAIN, decode_arrays, read_array_header, read_arrays, write_arrays
from tagmask.errors import RunError
from tagmask.label_map import MAX_CLASSES
from tagmask.large_images import is_large
from tagmask.text import shorten

STRIDE = 4
"""The size of a cell of the maps in pixels. Maps have a quarter of the image's size, as in the code of IRN and AMN."""


@dataclass(frozen=True)
class ResponseMaps:
    """Activations of the tagged classes of one image.

    Attributes:
        classes: [K] int, ids of the tagged classes, 1-based, ascending. K is 0 for an image without tags.
        maps: [K, h, w] float in 0..1, with h = ceil(H / 4) and w = ceil(W / 4).
        size: (H, W) of the image in pixels.
        background: [h, w] float in 0..1, an activation of the background, or None. Only some methods compute it (AMN).

    Raises:
        ValueError: the shape of `maps` or `background` does not fit `classes` and `size`.

    Example:
        Two classes, 3 and 7, on an image of 4 × 8 pixels, which is 1 × 2 cells:

        >>> import numpy as np
        >>> maps = ResponseMaps(np.array([3, 7]), np.array([[[0.9, 0.1]], [[0.2, 0.6]]]), size=(4, 8))
        >>> maps.label_map(threshold=0.3)[0]
        array([3, 3, 3, 3, 7, 7, 7, 7], dtype=uint8)
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
        """Write the maps to a safetensors file, as float16.

        Args:
            path: the file; missing folders are created.

        Raises:
            RunError: the file cannot be written.

        Example:
            >>> import tempfile
            >>> maps = ResponseMaps(np.array([3]), np.ones((1, 1, 2)), size=(4, 8))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     maps.save(Path(folder) / "cat.safetensors")
            ...     ResponseMaps.load(Path(folder) / "cat.safetensors").maps
            array([[[1., 1.]]], dtype=float16)
        """
        arrays: dict[str, np.ndarray] = {
            "maps": self.maps.astype(np.float16),
            "classes": np.asarray(self.classes, np.int32),
            "size": np.asarray(self.size, np.int32),
        }
        if self.background is not None:
            arrays["background"] = self.background.astype(np.float16)
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: Path, *, size: tuple[int, int] | None = None, num_classes: int = MAX_CLASSES) -> ResponseMaps:
        """Read the maps from a file that `save` wrote.

        Args:
            path: the file.
            size: the (H, W) of the image; None: any.
            num_classes: the number of classes of the run.

        Raises:
            RunError: the file is missing, damaged, or of another image.
        """
        _check_header(str(path), read_array_header(path))
        return cls._from_arrays(str(path), read_arrays(path), size, num_classes)

    @classmethod
    def decode(
        cls, content: bytes, name: str, *, size: tuple[int, int] | None = None, num_classes: int = MAX_CLASSES
    ) -> ResponseMaps:
        """Return the maps in the content of a file that `save` wrote.

        Args:
            content: the bytes of the file.
            name: what error messages call it.
            size, num_classes: as in `load`.

        Raises:
            RunError: as `load`.
        """
        arrays = decode_arrays(content, name)
        dtypes = {"float16": "F16", "int32": "I32"}
        header = {key: (dtypes.get(str(array.dtype), str(array.dtype)), array.shape) for key, array in arrays.items()}
        _check_header(name, header)
        return cls._from_arrays(name, arrays, size, num_classes)

    @classmethod
    def _from_arrays(
        cls, name: str, arrays: Mapping[str, np.ndarray], size: tuple[int, int] | None, num_classes: int
    ) -> ResponseMaps:
        height, width = arrays["size"].tolist()
        if size is not None and (height, width) != tuple(size):
            raise _damaged(name, f"its image has {width}×{height} pixels, not {size[1]}×{size[0]}")
        classes = arrays["classes"].tolist()
        if classes != sorted({c for c in classes if 1 <= c <= num_classes}):
            raise _damaged(name, f"its class ids are not ascending numbers from 1 to {num_classes}")
        for part in ("maps", "background"):
            values = arrays.get(part)
            if values is not None and values.size and not (values.min() >= 0 and values.max() <= 1):  # also of NaN
                raise _damaged(name, f"{part} has values outside of 0..1")
        try:
            return cls(arrays["classes"], arrays["maps"], (height, width), arrays.get("background"))
        except ValueError as error:
            raise _damaged(name, str(error)) from error

    def full_size(self) -> np.ndarray:
        """Return the maps at the size of the image, upsampled bilinearly: [K, H, W] float32.

        IRN's code interpolates the raw activations on a grid of 16 · ceil(H / 16) pixels instead. Where H or W is not
        a multiple of 16, activations near the lower and right border lie up to 12 pixels further out there.

        Example:
            >>> ResponseMaps(np.array([3]), np.array([[[0.0, 1.0]]]), size=(1, 8)).full_size().tolist()
            [[[0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0]]]
        """
        return upsample(self.maps, self.size)

    def resized(self, size: tuple[int, int]) -> ResponseMaps:
        """Return the maps of the same image at another size (H, W), interpolated bilinearly.

        Example:
            >>> ResponseMaps(np.array([3]), np.array([[[0.0, 1.0]]]), size=(4, 8)).resized((8, 16)).maps.tolist()
            [[[0.0, 0.25, 0.75, 1.0], [0.0, 0.25, 0.75, 1.0]]]
        """
        if size == self.size:
            return self
        background = None if self.background is None else _resample(self.background, self.size, size)
        return ResponseMaps(self.classes, _resample(self.maps, self.size, size), size, background)

    def label_map(self, threshold: float | Sequence[float] | None = None, *, alpha: float | None = None) -> np.ndarray:
        """Return the most active class of each pixel, or background where the background is as active or more.

        Give at most one of `threshold` and `alpha`. Without both, the stored `background` map is used.

        Args:
            threshold: the activation of the background, 0..1, the same everywhere (the usual rule for CAM). Or one
                threshold per class, in the order of `classes`: a pixel is then of the class whose activation exceeds
                its threshold the most.
            alpha: above 0; the activation of the background is (1 − strongest activation) ** alpha (Ahn and Kwak,
                "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
                Segmentation", CVPR 2018, equation 2). The larger alpha, the less background.

        Returns:
            [H, W] uint8 of 0 and class ids. Of equally active classes, the lower id wins.

        Raises:
            ValueError: both rules are given, or none, and there is no background map.

        Example:
            >>> maps = ResponseMaps(np.array([3]), np.array([[[0.4, 0.4]]]), size=(1, 8))
            >>> [maps.label_map(threshold=t).max().item() for t in (0.3, 0.4)]
            [3, 0]
            >>> [maps.label_map(alpha=a).max().item() for a in (1, 2)]
            [0, 3]
            >>> two = ResponseMaps(np.array([3, 7]), np.array([[[0.5]], [[0.4]]]), size=(1, 1))
            >>> [two.label_map(threshold=t).item() for t in (0.3, [0.3, 0.3], [0.3, 0.1], [0.5, 0.4])]
            [3, 3, 7, 0]
        """
        if (threshold is None) == (alpha is None) and (threshold is not None or self.background is None):
            raise ValueError("give one of threshold and alpha (or neither, where there is a background map)")
        if not is_large(self.size):
            return self._label_map(threshold, alpha)
        rows, width = self.maps.shape[1], self.size[1]
        step = max(1, large_images.MAX_PIXELS // (STRIDE * width))
        strips = []
        for row in range(0, rows, step):
            first = max(0, row - 1)  # interpolation needs one more row of cells on either side
            labels = self._rows(first, row + step + 1)._label_map(threshold, alpha)
            strips.append(labels[STRIDE * (row - first) : STRIDE * (row - first + step)])
        return np.concatenate(strips)

    def _rows(self, start: int, stop: int) -> ResponseMaps:
        """Return the maps of some rows of cells."""
        rows, background = slice(start, stop), self.background
        size = (min(self.size[0], STRIDE * stop) - STRIDE * start, self.size[1])
        return ResponseMaps(self.classes, self.maps[:, rows], size, None if background is None else background[rows])

    def _label_map(self, threshold: float | Sequence[float] | None, alpha: float | None) -> np.ndarray:
        if isinstance(threshold, Sequence):
            index = largest_margin(self.maps, threshold, self.size)
            return np.concatenate([[0], self.classes]).astype(np.uint8)[index + 1]
        highest, index = strongest_activation(self.maps, self.size)
        background: Any = threshold
        if alpha is not None:
            background = (1 - highest) ** alpha
        elif threshold is None:
            background = upsample(self.background[None], self.size)[0]  # type: ignore[index]
        return np.concatenate([[0], self.classes]).astype(np.uint8)[np.where(highest > background, index + 1, 0)]

    def figure(self, image: np.ndarray) -> Image.Image:
        """Return the image with the strongest activation of each pixel drawn over it as a heat map.

        Args:
            image: [H, W, 3] uint8, RGB, of the size of these maps.

        Example:
            >>> maps = ResponseMaps(np.array([3]), np.ones((1, 2, 3)), size=(8, 12))
            >>> maps.figure(np.zeros((8, 12, 3), np.uint8)).size
            (12, 8)
        """
        heat = strongest_activation(self.maps, self.size)[0]
        opacity = (0.25 + 0.5 * heat)[..., None]
        return Image.fromarray((image * (1 - opacity) + _heat_colors(heat) * opacity).astype(np.uint8))

    def _repr_png_(self) -> bytes:
        """Draw one heat map per class side by side, for notebooks: the bytes of a PNG file."""
        captions = [f"class {class_id}" for class_id in self.classes.tolist()] or ["no classes"]
        grids = self.maps if len(self.classes) else np.zeros((1, *grid_size(self.size)))
        height, width = (max(1, round(side * _PANEL / max(self.size))) for side in self.size)
        cell = max(width, _CAPTION_WIDTH)
        strip = Image.new("RGB", (len(captions) * (cell + _GAP) - _GAP, height + _CAPTION_HEIGHT), "white")
        draw, font = ImageDraw.Draw(strip), ImageFont.load_default(_CAPTION_HEIGHT - 8)
        for n, (caption, grid) in enumerate(zip(captions, grids, strict=True)):
            colors = _heat_colors(upsample(grid[None], self.size)[0])
            panel = Image.fromarray(np.rint(colors).astype(np.uint8)).resize((width, height))
            left = n * (cell + _GAP)
            strip.paste(panel, (left + (cell - width) // 2, _CAPTION_HEIGHT))
            draw.text((left + cell // 2, _CAPTION_HEIGHT // 2), caption, fill="black", font=font, anchor="mm")
        buffer = io.BytesIO()
        strip.save(buffer, format="PNG")
        return buffer.getvalue()


def _check_header(file: str, header: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise RunError if the arrays in a file are not those that `ResponseMaps.save` writes."""
    num_maps = header.get("classes", ("", (0,)))[1][:1]
    expected = {"maps": ("F16", 3), "classes": ("I32", 1), "size": ("I32", 1), "background": ("F16", 2)}
    for name, kind in expected.items():
        dtype, shape = header.get(name, ("none", ()))
        if name not in header and name == "background":
            continue
        if (dtype, len(shape)) != kind:
            raise _damaged(file, f"{name} is {dtype} {list(shape)}")
    if header["size"][1] != (2,) or header["maps"][1][:1] != num_maps:
        raise _damaged(file, "the shapes of its arrays do not fit")


def _damaged(file: str, reason: str) -> RunError:
    return RunError(f"{file} is damaged ({shorten(reason, 120)}): {RUN_AGAIN}.")


# Dark blue, teal, yellow, red: even steps in lightness up to yellow.
_HEAT = np.array([[38, 20, 90], [45, 80, 150], [40, 150, 150], [120, 200, 110], [250, 220, 70], [230, 60, 40]])

# Sizes in pixels in the notebook figure: the longer side of a heat map, and the space around it.
_PANEL, _GAP, _CAPTION_HEIGHT, _CAPTION_WIDTH = 240, 8, 22, 80


def _heat_colors(heat: np.ndarray) -> np.ndarray:
    """Activations [H, W] in 0..1 as RGB colors [H, W, 3] float in 0..255."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(heat, steps, _HEAT[:, c]) for c in range(3)], axis=-1)


def grid_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the maps of an image of (H, W) pixels: (ceil(H / 4), ceil(W / 4)).

    Example:
        >>> grid_size((375, 500))
        (94, 125)
    """
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)


def upsample(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample maps to the size of their image: bilinear by a factor of 4 (align_corners=False), then cropped.

    Args:
        maps: [K, h, w] float with (h, w) = `grid_size(size)`.
        size: (H, W) of the image in pixels.

    Returns:
        [K, H, W] float32.
    """
    if not len(maps):
        return np.zeros((0, *size), np.float32)
    import torch  # here, so that reading maps does not need torch, which takes seconds to import
    import torch.nn.functional as F

    tensor = torch.from_numpy(np.asarray(maps, np.float32))[None]
    full = F.interpolate(tensor, scale_factor=STRIDE, mode="bilinear", align_corners=False)[0]
    return full[:, : size[0], : size[1]].numpy()


def _resample(maps: np.ndarray, old_size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Interpolate maps [..., h, w] of an image of one size bilinearly at the cell centers of another size."""
    maps = np.asarray(maps, np.float32)
    for axis, old, new, cells in zip((-2, -1), old_size, new_size, grid_size(new_size), strict=True):
        position = (np.arange(cells) + 0.5) * (old / new) - 0.5
        position = position.clip(0, maps.shape[axis] - 1)
        lower = np.floor(position).astype(int)
        upper = np.minimum(lower + 1, maps.shape[axis] - 1)
        weight = (position - lower).astype(np.float32)
        weight = weight[:, None] if axis == -2 else weight
        maps = maps.take(lower, axis) * (1 - weight) + maps.take(upper, axis) * weight
    return maps


def strongest_activation(maps: Iterable[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest activation of each pixel, at least 0, and the index of its map.

    Only one map at a time is upsampled, because all maps of a large image would fill the memory.

    Args:
        maps: any number of maps [h, w] float with (h, w) = `grid_size(size)`.
        size: (H, W) of the image in pixels.

    Returns:
        [H, W] float32 activations, and [H, W] int64 indices: the first of equally active maps, −1 where no map is
        above 0.
    """
    highest, index = np.zeros(size, np.float32), np.full(size, -1)
    for n, grid in enumerate(maps):
        full = upsample(grid[None], size)[0]
        index[full > highest] = n
        np.maximum(highest, full, out=highest)
    return highest, index


def largest_margin(maps: Iterable[np.ndarray], thresholds: Iterable[float], size: tuple[int, int]) -> np.ndarray:
    """Return which activation of each pixel exceeds the threshold of its map the most.

    Args:
        maps: K maps [h, w] float with (h, w) = `grid_size(size)`.
        thresholds: K activations, 0..1.
        size: (H, W) of the image in pixels.

    Returns:
        [H, W] int64 indices: the first of equal margins, −1 where no activation is above its threshold.

    Raises:
        ValueError: the number of thresholds is not that of the maps.
    """
    largest, index = np.zeros(size), np.full(size, -1)
    for n, (grid, threshold) in enumerate(zip(maps, thresholds, strict=True)):
        # in float64, so that equal thresholds do not change the order of the float32 activations
        margin = upsample(grid[None], size)[0].astype(np.float64) - float(np.float32(threshold))
        index[margin > largest] = n
        np.maximum(largest, margin, out=largest)
    return index
