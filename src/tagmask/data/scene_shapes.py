"""Shapes of the generated scenes, drawn from signed distances.

Shapes are functions of coordinates (u, v), each [h, w] float32, in the frame of the shape. They return a signed
distance, which is negative inside the shape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Color = tuple[int, int, int]
Window = tuple[slice, slice]

_CREAM, _INK, _ORANGE, _RED = (250, 240, 214), (34, 28, 36), (244, 140, 40), (206, 52, 48)
_YELLOW, _BROWN, _GREEN = (250, 206, 52), (106, 60, 44), (150, 226, 120)


class Canvas:
    """The image and the mask of a scene while it is drawn.

    Coordinates and lengths are fractions of the image side. Edges of shapes are smooth in the image and exact in the
    mask.

    Args:
        ground: [H, W, 3] float32 RGB in 0..255, with H = W. It is drawn on in place.
    """

    def __init__(self, ground: Floats) -> None:
        self.rgb, self.size = ground, len(ground)
        self.mask = np.zeros(ground.shape[:2], np.uint8)
        self.axis: Floats = (np.arange(self.size) + 0.5).astype(np.float32) / np.float32(self.size)

    def frame(self, x: float, y: float, radius: float, angle: float, reach: float) -> tuple[Window, Floats, Floats]:
        """Return the window `reach` radii around the point (x, y), and the coordinates of its pixels.

        The coordinates (u, v), each [h, w], are in radii from the point, in axes rotated by `angle` (in radians).
        """
        edges = np.searchsorted(self.axis, np.array((-reach, reach, -reach, reach)) * radius + (x, x, y, y))
        columns, rows = slice(edges[0], edges[1]), slice(edges[2], edges[3])
        x, y, radius = float(x), float(y), float(radius)  # a NumPy float64 would make all results float64
        dx, dy = (self.axis[None, columns] - x) / radius, (self.axis[rows, None] - y) / radius
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return (rows, columns), dx * cos + dy * sin, dy * cos - dx * sin

    def coverage(self, distance: Floats, radius: float) -> Floats:
        """Return the fraction of each pixel that is inside a shape, from its signed distance in radii."""
        return (0.5 - distance * np.float32(radius * self.size)).clip(0, 1)

    def paint(self, window: Window, coverage: Floats, color: Floats | Color, label: int | None = None) -> None:
        """Blend a color into a window.

        Args:
            window: the window.
            coverage: [h, w] in 0..1, the weight of the color.
            color: one RGB color, or [h, w, 3].
            label: the class id of pixels that are covered by half or more; None: the mask does not change.
        """
        rgb = self.rgb[window]
        rgb += coverage[..., None] * (np.asarray(color, np.float32) - rgb)
        if label is not None:
            self.mask[window][coverage >= 0.5] = label


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Floats:
    """Return noise [size, size], interpolated from a grid of `cells` × `cells` draws."""
    grid = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def leaf(u: Floats, v: Floats, width: float | Floats) -> Floats:
    """Return the signed distance to a leaf that extends from -1 to 1 on the u axis."""
    return np.abs(v) - (1 - u * u) * width


def disc(u: Floats, v: Floats, x: float, y: float, radius: float) -> Floats:
    """Return the signed distance to a disc around (x, y)."""
    return np.hypot(u - x, v - y) - radius


def triangle(u: Floats, v: Floats, x: float, y: float, half: float, height: float) -> Floats:
    """Return the signed distance to a triangle with its base at (x, y) and its tip at the signed `height` above it."""
    rise = (y - v) / height
    return np.maximum(np.abs(u - x) - half * (1 - rise), -rise * abs(height))


def scatter_clutter(rng: np.random.Generator, ground: Floats, colors: Floats, count: int = 64) -> Floats:
    """Return the ground with leaves, blades and pebbles on it, which are computed together for speed.

    Args:
        rng: the random generator.
        ground: [H, W, 3] float32 RGB in 0..255.
        colors: [3, 3], the colors of the clutter before their random variation.
        count: the number of pieces.
    """
    size, max_radius = len(ground), 0.085
    at = rng.random((2, count, 1), np.float32)
    angles = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    radii = rng.uniform(0.025, max_radius, (count, 1, 1)).astype(np.float32)
    widths = rng.choice(np.array((0.18, 0.35, 0.8), np.float32), (count, 1, 1))  # 0.8 stands for a pebble
    tints = colors[rng.integers(0, 3, count)] * rng.uniform(0.62, 1.42, (count, 1)) + rng.normal(0, 7, (count, 3))
    patch = int(2 * max_radius * size) + 3
    corners = np.floor((at - radii[..., 0]) * size).astype(int)
    dx, dy = ((corners + np.arange(patch) + 0.5) / size - at).astype(np.float32)
    cos, sin = (np.cos(angles) / radii).astype(np.float32), (np.sin(angles) / radii).astype(np.float32)
    u, v = dx[:, None] * cos + dy[..., None] * sin, dy[..., None] * cos - dx[:, None] * sin
    distances = np.where(widths < 0.5, leaf(u, v, widths), disc(u, v / 0.8, 0, 0, 0.7))
    coverages = (0.5 - distances * (radii * size)).clip(0, 1)[..., None]
    paints = tints[:, None, None].astype(np.float32) * (1 - 0.12 * v[..., None])
    padded = np.pad(ground, ((patch, patch), (patch, patch), (0, 0)))
    for coverage, paint, (left, top) in zip(coverages, paints, corners[..., 0].T + patch, strict=True):
        pixels = padded[top : top + patch, left : left + patch]
        pixels += coverage * (paint - pixels)
    return padded[patch:-patch, patch:-patch]


def part_layers(name: str, u: Floats, v: Floats) -> list[tuple[Floats, Color]]:
    """Return the signed distances and colors of a class's part, from the lowest layer up. Its radius is about 1."""
    match name:
        case "owl":
            face = [(disc(u, v / 0.78, 0, 0, 1.05), _BROWN)]
            eyes = [(disc(u, v, x, -0.05, r), c) for r, c in ((0.46, _CREAM), (0.22, _INK)) for x in (-0.48, 0.48)]
            return [*face, *eyes, (triangle(u, v, 0, 0.2, 0.2, -0.5), _ORANGE)]
        case "cat":
            ears = [(triangle(u, v, x, -0.3, 0.42, 0.95), _INK) for x in (-0.52, 0.52)]
            eyes = [(disc(u, v, x, 0, 0.2), _GREEN) for x in (-0.38, 0.38)]
            return [*ears, (disc(u, v / 0.8, 0, 0.1, 0.92), _INK), *eyes, (disc(u, v, 0, 0.48, 0.24), _CREAM)]
        case "fish":
            fan = np.maximum(np.abs(v) - 0.28 - 0.45 * (u + 0.9), np.abs(u) - 0.95)
            return [(fan, _CREAM), (np.maximum(fan, 0.24 - np.abs((u + 0.15) % 0.9 - 0.45)), _RED)]
        case "snail":
            rim, spiral = disc(u, v, 0, 0, 1), -0.12 * np.sin(np.arctan2(v, u) + 8 * np.hypot(u, v))
            return [(rim, _BROWN), (np.maximum(rim + 0.12, spiral), _CREAM)]
        case "bee":
            rim = disc(u, v / 0.95, 0, 0, 1)
            return [(rim, _INK), (np.maximum(rim, 0.14 - np.abs(u % 0.62 - 0.31)), _YELLOW)]
        case _:  # the beetle
            horns = [np.maximum(np.abs(v * y - 0.3 - 0.35 * u) - 0.11, np.abs(u - 0.65) - 0.55) for y in (-1, 1)]
            tips = [(disc(u, v, 1.15, y, 0.22), _RED) for y in (-0.7, 0.7)]
            eyes = [(disc(u, v, 0.15, y, 0.17), _CREAM) for y in (-0.32, 0.32)]
            return [*((horn, _INK) for horn in horns), *tips, (disc(u, v, 0, 0, 0.72), _INK), *eyes]
