"""COCO masks whose polygons stay in the file of annotations until they are drawn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from tagmask.data.coco_mask import CocoMask, CrowdPixels, DrawingOrder, parse_segmentation
from tagmask.data.json_spans import Span
from tagmask.errors import DataError

ClassIds = tuple[tuple[int, int], ...]
"""Pairs of a category id and its class id."""


@dataclass(frozen=True)
class AnnotationFile:
    """A file of annotations as it was when it was read.

    Attributes:
        path: the absolute path.
        size: in bytes.
        mtime_ns: the time of its last change.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> AnnotationFile:
        """Describe a file. Raises OSError."""
        status = os.stat(path)
        return cls(os.path.abspath(path), status.st_size, status.st_mtime_ns)

    def read_items(self, spans: Sequence[Span]) -> list[dict[str, object]]:
        """Read items of the file.

        Raises:
            DataError: the file has changed, or cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                if AnnotationFile.of(self.path) != self:
                    raise DataError(f"{self.path} has changed while it was used: run the same command again.")
                items = []
                for start, end in spans:
                    file.seek(start)
                    items.append(json.loads(file.read(end - start)))
                return items
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be read any more ({error.strerror}): run the command again."
            ) from error


@dataclass(frozen=True)
class CocoFileMask:
    """The annotations of one image, which are read from the file and drawn when the mask is read.

    All masks of a file share the objects `file` and `class_ids`, so that a mask takes only some hundred bytes.

    Attributes:
        size: (H, W) in pixels.
        file: the file of annotations.
        spans: [2N] int64 as bytes: where the N annotations are in the file.
        class_ids: the class ids of the categories; a category that is not in it is background.
        digest: of the annotations.
        order, crowds: as in `CocoMask`.
    """

    size: tuple[int, int]
    file: AnnotationFile
    spans: bytes
    class_ids: ClassIds
    digest: str
    order: DrawingOrder = "area"
    crowds: CrowdPixels = "ignored"

    @property
    def has_objects(self) -> bool:
        """Whether there is an annotation."""
        return bool(self.spans)

    def read(self) -> np.ndarray:
        """Draw the label map, [H, W] uint8. Raises DataError: run lengths are damaged, or the file has changed."""
        spans = [(int(start), int(end)) for start, end in np.frombuffer(self.spans, np.int64).reshape(-1, 2)]
        ids = dict(self.class_ids)
        objects = [
            parse_segmentation(item, ids.get(item["category_id"], 0), self.size)  # type: ignore[call-overload]
            for item in self.file.read_items(spans)
        ]
        return CocoMask(self.size, tuple(item for item in objects if item), self.order, self.crowds).read()

    def remap(self, new_ids: dict[int, int]) -> CocoFileMask:
        """Return the same mask with other class ids; ids that are not in `new_ids` become background."""
        return replace(self, class_ids=_remapped(self.class_ids, tuple(new_ids.items())))

    def fingerprint(self) -> str:
        """Return a text that changes when the annotations or the class ids change."""
        return f"{self.digest}|{_digest(self.class_ids)}|{self.order}|{self.crowds}"


@lru_cache(maxsize=8)  # all masks of a set share one table
def _remapped(class_ids: ClassIds, new_ids: tuple[tuple[int, int], ...]) -> ClassIds:
    table = dict(new_ids)
    return tuple((category, table.get(class_id, 0)) for category, class_id in class_ids)


@lru_cache(maxsize=8)
def _digest(class_ids: ClassIds) -> str:
    return hashlib.blake2b(repr(class_ids).encode(), digest_size=8).hexdigest()
