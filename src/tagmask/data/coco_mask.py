"""Label maps from COCO's polygons and run lengths.

pycocotools is imported where it is used, because `tagmask predict model.onnx` does not need it.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX
from tagmask.text import shorten

DrawingOrder = Literal["area", "file"]
CrowdPixels = Literal["ignored", "background"]

_MAX_COORDINATE = 100_000.0  # pixels; pycocotools takes time proportional to the length of each edge


@dataclass(frozen=True)
class CocoObject:
    """The segmentation of one annotation, compact enough to hold a million of them in memory.

    Attributes:
        class_id: 1..K; 0: background.
        crowd: whether the annotation marks a region of many objects.
        shape: polygons, each the bytes of x0, y0, x1, y1, ... as float64; or COCO's compressed run lengths.
    """

    class_id: int
    crowd: bool
    shape: tuple[bytes, ...] | bytes

    def to_rle(self, height: int, width: int) -> dict[str, Any]:
        """Return the object as pycocotools' compressed run lengths.

        Raises:
            DataError: the run lengths do not fill the image.
        """
        if isinstance(self.shape, bytes):
            lengths = decode_run_lengths(self.shape)
            if lengths.sum() != height * width or (lengths < 0).any():  # pycocotools would leave pixels undefined
                raise DataError("has a run-length mask that does not fill the image; correct or remove it")
            return {"size": [height, width], "counts": self.shape}
        from pycocotools import mask as rle

        polygons = [np.frombuffer(polygon).tolist() for polygon in self.shape]
        return rle.merge(rle.frPyObjects(polygons, height, width))


@dataclass(frozen=True)
class CocoMask:
    """The annotations of one image, drawn into a label map when it is read.

    Attributes:
        size: (H, W) in pixels.
        objects: the annotations, in the order of the file.
        order: "area": the largest object is drawn first, so that small objects stay visible. "file": later annotations
            cover earlier ones, as in published figures (e.g. of ReCAM).
        crowds: what the pixels of crowds become, over which the objects are drawn.
    """

    size: tuple[int, int]
    objects: tuple[CocoObject, ...]
    order: DrawingOrder = "area"
    crowds: CrowdPixels = "ignored"

    @property
    def has_objects(self) -> bool:
        """Whether there is an annotation."""
        return bool(self.objects)

    def read(self) -> np.ndarray:
        """Draw the label map, [H, W] uint8.

        Crowd regions are drawn first. The objects follow, in the order of the attribute `order`.

        Raises:
            DataError: run lengths are damaged.
        """
        from pycocotools import mask as rle

        labels = np.zeros(self.size, np.uint8)
        regions = [(item.to_rle(*self.size), item) for item in self.objects if item.shape]
        regions.sort(key=lambda pair: (not pair[1].crowd, -int(rle.area(pair[0])) if self.order == "area" else 0))
        crowd_label = IGNORE_INDEX if self.crowds == "ignored" else 0
        for region, item in regions:
            label = crowd_label if item.crowd and item.class_id else item.class_id
            labels[rle.decode(region).astype(bool)] = label
        return labels

    def remap(self, new_ids: dict[int, int]) -> CocoMask:
        """Return the same mask with other class ids; ids that are not in `new_ids` become background."""
        return replace(
            self, objects=tuple(replace(item, class_id=new_ids.get(item.class_id, 0)) for item in self.objects)
        )

    def fingerprint(self) -> str:
        """Return a digest of the annotations."""
        objects = [(item.class_id, item.crowd, item.shape) for item in self.objects]
        content = marshal.dumps(
            (self.size, objects, self.order, self.crowds), 2
        )  # later versions depend on reference counts
        return hashlib.blake2b(content, digest_size=12).hexdigest()


def decode_run_lengths(counts: bytes) -> np.ndarray:
    """Decode COCO's compressed run lengths, as `rleFrString` of cocoapi does.

    Each number is written in groups of 5 bits, the low bits first. Bit 5 says that more groups follow, and 48 is added
    to make the group a letter. From the fourth number on, it is the difference to the number two before.

    Returns:
        [N] int64, the lengths of the runs down the columns, background first. [-1] if the text is malformed.
    """
    if not counts:
        return np.zeros(1, np.int64)
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    is_last_group = (codes & 0x20) == 0
    starts = np.flatnonzero(np.r_[True, is_last_group[:-1]])
    num_groups = np.diff(np.r_[starts, len(codes)])
    if not is_last_group[-1] or (codes < 0).any() or (codes > 63).any() or num_groups.max() > 8:
        return np.full(1, -1, np.int64)
    group_index = np.arange(len(codes)) - np.repeat(starts, num_groups)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * group_index), starts)
    numbers -= np.where(codes[is_last_group] & 0x10, np.int64(1) << (5 * num_groups), 0)  # two's complement
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def parse_segmentation(annotation: Mapping[str, Any], class_id: int, size: tuple[int, int]) -> CocoObject | None:
    """Check the segmentation of an annotation and return it; None if the annotation has none.

    Args:
        annotation: an item of the list `annotations`.
        class_id: the class id of its category.
        size: (H, W) of its image in pixels.

    Raises:
        DataError: the segmentation is neither polygons nor run lengths of this size.
    """
    shape = annotation.get("segmentation")
    if not shape:
        return None
    crowd = bool(annotation.get("iscrowd"))
    if isinstance(shape, dict):
        return CocoObject(class_id, crowd, _to_compressed_run_lengths(shape, size))
    if isinstance(shape, list) and all(isinstance(polygon, list) for polygon in shape):
        polygons = tuple(_check_and_pack_polygon(polygon) for polygon in shape if len(polygon) >= 6)
        return CocoObject(class_id, crowd, polygons)
    raise DataError("has a segmentation that is neither polygons nor run lengths; correct or remove it")


def _check_and_pack_polygon(numbers: Sequence[Any]) -> bytes:
    try:
        polygon = np.array(numbers, np.float64)
    except (TypeError, ValueError, OverflowError):
        polygon = np.array([np.nan])
    if polygon.ndim != 1 or len(polygon) % 2 or not (np.abs(polygon) < _MAX_COORDINATE).all():
        raise DataError("has a polygon that is not a list x, y, x, y, ... in pixels; correct or remove it")
    return polygon.tobytes()


def _to_compressed_run_lengths(shape: Mapping[str, Any], size: tuple[int, int]) -> bytes:
    counts, mask_size = shape.get("counts"), shape.get("size")
    height, width = size
    if mask_size != [height, width]:
        raise DataError(
            f"has a run-length mask of size {shorten(str(mask_size))} in an image of size {[height, width]}; correct "
            "or remove it"
        )
    if isinstance(counts, str) and counts.isascii():
        return counts.encode()  # checked when the mask is read
    if (
        isinstance(counts, list)
        and all(isinstance(n, int) and n >= 0 for n in counts)
        and sum(counts) == height * width
    ):
        from pycocotools import mask as rle

        return rle.frPyObjects({"size": mask_size, "counts": counts}, height, width)["counts"]
    raise DataError("has a run-length mask that does not fill the image; correct or remove it")
