"""Label maps from COCO's polygons and run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as rle

from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX

_FARTHEST = 100_000.0  # pixels; pycocotools walks along every edge, one step a pixel


@dataclass(frozen=True)
class CocoObject:
    """One annotation, small enough to have a million of them.

    Attributes:
        class_id: 1..K; 0: background.
        crowd: whether it is a region of many objects.
        shape: polygons, each the bytes of x0, y0, x1, y1, ... as float64; or COCO's compressed run lengths.
    """

    class_id: int
    crowd: bool
    shape: tuple[bytes, ...] | bytes

    def encoded(self, height: int, width: int) -> dict[str, Any]:
        """The object as pycocotools' compressed run lengths. Raises DataError where they do not fill the image."""
        if isinstance(self.shape, bytes):
            lengths = run_lengths(self.shape)
            if lengths.sum() != height * width or (lengths < 0).any():  # pycocotools would leave pixels undefined
                raise DataError("has a run-length mask that does not fill the image; correct or remove it")
            return {"size": [height, width], "counts": self.shape}
        polygons = [np.frombuffer(polygon).tolist() for polygon in self.shape]
        return rle.merge(rle.frPyObjects(polygons, height, width))


@dataclass(frozen=True)
class CocoMask:
    """One image's annotations, painted when read: crowds first, then large objects, then smaller ones over them.

    Attributes:
        size: (H, W) in pixels.
        objects: in the order of the file.
    """

    size: tuple[int, int]
    objects: tuple[CocoObject, ...]

    def read(self) -> np.ndarray:
        """Label map [H, W] uint8; crowd regions are 255 (unsure). Raises DataError for damaged run lengths."""
        labels = np.zeros(self.size, np.uint8)
        encoded = [(item.encoded(*self.size), item) for item in self.objects if item.shape]
        encoded.sort(key=lambda pair: (not pair[1].crowd, -int(rle.area(pair[0]))))
        for region, item in encoded:
            color = IGNORE_INDEX if item.crowd and item.class_id else item.class_id
            labels[rle.decode(region).astype(bool)] = color
        return labels

    def keep(self, new_ids: dict[int, int]) -> CocoMask:
        return replace(
            self, objects=tuple(replace(item, class_id=new_ids.get(item.class_id, 0)) for item in self.objects)
        )


def run_lengths(counts: bytes) -> np.ndarray:
    """COCO's compressed run lengths as numbers [N] int64, background first, down the columns.

    Each is written in groups of 5 bits, low ones first, bit 5 saying that more follow, plus 48 to be a letter;
    from the fourth on it is the difference to the one two before (cocoapi, `rleToString`).
    """
    if not counts:
        return np.zeros(1, np.int64)
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = (codes & 0x20) == 0
    starts = np.flatnonzero(np.r_[True, last[:-1]])
    n_groups = np.diff(np.r_[starts, len(codes)])
    if not last[-1] or (codes < 0).any() or (codes > 63).any() or n_groups.max() > 8:
        return np.full(1, -1, np.int64)
    place = np.arange(len(codes)) - np.repeat(starts, n_groups)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    numbers -= np.where(codes[last] & 0x10, np.int64(1) << (5 * n_groups), 0)  # two's complement
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def coco_object(annotation: Mapping[str, Any], class_id: int, size: tuple[int, int]) -> CocoObject | None:
    """An annotation's segmentation, checked; None if it has none.

    Args:
        size: (H, W) of its image.

    Raises:
        DataError: it is neither polygons nor run lengths of this size.
    """
    shape = annotation.get("segmentation")
    if not shape:
        return None
    crowd = bool(annotation.get("iscrowd"))
    if isinstance(shape, dict):
        return CocoObject(class_id, crowd, _compressed(shape, size))
    if isinstance(shape, list) and all(isinstance(polygon, list) for polygon in shape):
        return CocoObject(class_id, crowd, tuple(_polygon(polygon) for polygon in shape if len(polygon) >= 6))
    raise DataError("has a segmentation that is neither polygons nor run lengths; correct or remove it")


def _polygon(numbers: Sequence[Any]) -> bytes:
    try:
        polygon = np.array(numbers, np.float64)
    except (TypeError, ValueError, OverflowError):
        polygon = np.array([np.nan])
    if polygon.ndim != 1 or len(polygon) % 2 or not (np.abs(polygon) < _FARTHEST).all():
        raise DataError("has a polygon that is no list of x, y, x, y, ... in pixels; correct or remove it")
    return polygon.tobytes()


def _compressed(shape: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    counts, given = shape.get("counts"), shape.get("size")
    height, width = size
    if given != [height, width]:
        raise DataError(f"has a run-length mask of size {given} in an image of {[height, width]}; correct or remove it")
    if isinstance(counts, str) and counts.isascii():
        return counts.encode()  # its lengths are looked at when it is read
    if (
        isinstance(counts, list)
        and all(isinstance(n, int) and n >= 0 for n in counts)
        and sum(counts) == height * width
    ):
        return rle.frPyObjects({"size": given, "counts": counts}, height, width)["counts"]
    raise DataError("has a run-length mask that does not fill the image; correct or remove it")
