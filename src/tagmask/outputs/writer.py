"""Export of masks that exist on disk in the formats that other tools read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tagmask.artifacts import atomic_folder
from tagmask.data.images import image_suffix
from tagmask.data.samples import Sample
from tagmask.errors import RunError
from tagmask.outputs.cleaning import fill_holes, remove_small_regions
from tagmask.outputs.formats import check_format, find_format, load_writer
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings


def write_masks_as(
    samples: Sequence[Sample],
    read_mask: Callable[[Sample], np.ndarray],
    classes: Sequence[str],
    out: Path,
    format: str,
    settings: ExportSettings | None = None,
    advance: Callable[[int], None] = lambda step: None,
) -> Path:
    """Write label maps that exist on disk in another format. An earlier export of this format is replaced.

    Args:
        samples: the images.
        read_mask: reads the label map of an image, [H, W] uint8; may raise RunError.
        classes: names of the classes; class id k is classes[k - 1].
        out: the output folder.
        format: one of `OUTPUT_FORMATS`.
        settings: None: the default settings.
        advance: called with 1 after each image is read, to show the progress.

    Returns:
        The folder that was written: `out`/`format`. It appears when it is complete.

    Raises:
        RunError: the format is not known, has no place for images or cannot hold these classes or ids; a label map is
            missing or damaged; or a file cannot be written.
        DataError: an image cannot be read (only in formats with images).
    """
    path = output_path(out, format)
    settings = _with_defaults(settings or ExportSettings(), format)
    check_format(format, classes, [sample.id for sample in samples])
    has_polygons = find_format(format).has_polygons

    def items() -> Iterator[MaskItem]:
        for sample in samples:
            labels = read_mask(sample)
            min_area = settings.min_area_of(labels.shape, has_polygons=has_polygons)
            if min_area > 1:
                labels = remove_small_regions(labels, min_area)
            if settings.fill_holes:
                labels = fill_holes(labels)
            yield MaskItem(sample.id, image_file_name(sample), sample.image, labels)
            advance(1)

    with atomic_folder(path) as folder:
        load_writer(format)(folder, items(), classes, settings)
    return path


def _with_defaults(settings: ExportSettings, format: str) -> ExportSettings:
    """Return the settings with the default for images of a format. Raises RunError if it has no place for images."""
    default = find_format(format).images
    if default is None and settings.images in ("copy", "link"):
        raise RunError(f"the format {format!r} has no place for images: leave out the option images.")
    return replace(settings, images=settings.images or default or "none")


def output_path(out: Path, format: str) -> Path:
    """Return the folder in the output folder that a format is written to.

    Raises:
        RunError: the format is not known.
    """
    find_format(format)
    return out / format


def image_file_name(sample: Sample) -> str:
    """Return the path of an image in its data set, with the suffix of its file.

    Example:
        >>> image_file_name(Sample("beach/001", "/photos/beach/001.jpg", tags=(1,)))
        'beach/001.jpg'
    """
    suffix = image_suffix(sample.image)
    return sample.id if sample.id.endswith(suffix) else sample.id + suffix
