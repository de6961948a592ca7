"""The images and classes of a run, as the readers of corrected masks need them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tagmask.data.image_ids import strip_image_suffix
from tagmask.data.samples import Sample
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX
from tagmask.outputs.mask_item import unused_name
from tagmask.outputs.writer import image_file_name
from tagmask.text import did_you_mean


class Region(NamedTuple):
    """A part of a corrected mask.

    Attributes:
        label: the name of its class.
        mask: [H, W] bool.
    """

    label: str
    mask: np.ndarray


@dataclass(frozen=True)
class CorrectedMask:
    """The corrected mask of an image.

    Attributes:
        name: the name of the image in the file.
        image_id: id of the image in the run; None if the run has no such image.
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored; None if `image_id` is None.
        keeps_ignored: whether the format can hold ignored pixels.
        has_polygons: whether a region was a polygon, whose outline is not exact to a pixel.
    """

    name: str
    image_id: str | None
    labels: np.ndarray | None
    keeps_ignored: bool = True
    has_polygons: bool = False


class KnownImages:
    """The images and classes of a run.

    Args:
        samples: the images.
        classes: names of the classes; class id k is classes[k - 1].
        read_mask: reads the run's mask of an image from its id, [H, W] uint8; may raise RunError.
    """

    def __init__(
        self, samples: Sequence[Sample], classes: Sequence[str], read_mask: Callable[[str], np.ndarray]
    ) -> None:
        self.by_id = {sample.id: sample for sample in samples}
        self.classes = classes
        self._read_mask = read_mask
        self._label_ids = {name: k for k, name in enumerate(classes, 1)}
        self._label_ids |= {unused_name("background", classes): 0, unused_name("ignored", classes): IGNORE_INDEX}
        self._by_ending: dict[str, set[str]] = {}
        for sample in samples:
            for name in {sample.id, image_file_name(sample)}:
                for ending in _endings(name):
                    self._by_ending.setdefault(ending, set()).add(sample.id)

    def find(self, name: str) -> str | None:
        """Return the id of the image that a file name or path means; None if there is none.

        Leading folders may be missing or added, and so may the suffix.

        Raises:
            DataError: the name is ambiguous.
        """
        if name in self.by_id:
            return name
        for ending in _endings(name):
            matches = self._by_ending.get(ending) or self._by_ending.get(strip_image_suffix(ending)) or set()
            if len(matches) > 1:
                first, second, *_ = sorted(matches)
                raise DataError(f"the image {name!r} may be {first} or {second}; write more of its path.")
            if matches:
                return next(iter(matches))
        return None

    def read_run_mask(self, image_id: str) -> np.ndarray:
        """Read the mask that the run made of an image, [H, W] uint8. Raises RunError if it is missing or damaged."""
        return self._read_mask(image_id)

    def paint(self, image_id: str, regions: Iterable[Region]) -> np.ndarray:
        """Paint regions over each other, in their order, on background.

        Returns:
            [H, W] uint8.

        Raises:
            DataError: a label is not a class of the run.
        """
        labels = np.zeros(self.size(image_id), np.uint8)
        for label, mask in regions:
            labels[mask] = self.label_id(label)
        return labels

    def label_id(self, name: str) -> int:
        """Return the id of a class, 0 for "background", 255 for "ignored". Raises DataError for any other name."""
        if name not in self._label_ids:
            raise DataError(f"the label {name!r} is not a class of the run{did_you_mean(name, self._label_ids)}")
        return self._label_ids[name]

    def size(self, image_id: str) -> tuple[int, int]:
        """Return the size (H, W) of an image in pixels."""
        height, width = self.read_run_mask(image_id).shape
        return height, width

    def check_size(self, image_id: str, size: tuple[object, object]) -> None:
        """Raise DataError if a corrected mask of this (H, W) does not fit its image."""
        height, width = self.size(image_id)
        if size != (height, width):
            raise DataError(
                f"the corrected mask of {image_id!r} has {size[1]}×{size[0]} pixels, but the image has "
                f"{width}×{height}; correct the masks of the images of this run."
            )


@contextmanager
def location_in_errors(location: str) -> Iterator[None]:
    """Put a location before the message of each DataError in the `with` block."""
    try:
        yield
    except DataError as error:
        text = str(error).removesuffix(".")
        raise DataError(f"{location}: {text}{'' if text.endswith('?') else '.'}") from error


def _endings(name: str) -> list[str]:
    """Return a path, and what remains of it without its leading folders, longest first."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return ["/".join(parts[i:]) for i in range(len(parts))]
