"""Export of the masks of a run in the formats that annotation tools read.

To add a format, write a module with a function like `outputs.png.write_png`, and add it to `OUTPUT_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tagmask.data.images import is_url
from tagmask.data.samples import Sample
from tagmask.errors import RunError
from tagmask.label_map import read_label_map
from tagmask.outputs.coco import write_coco
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.overlays import write_overlays
from tagmask.outputs.png import write_png
from tagmask.text import did_you_mean


class OutputFormat(NamedTuple):
    """A format in which masks can be written.

    Attributes:
        file_name: name of the file or folder in the output folder.
        write: writes the masks: (path of the file or folder, images with label maps, class names) → None.
    """

    file_name: str
    write: Callable[[Path, Iterable[MaskItem], Sequence[str]], None]


OUTPUT_FORMATS = {
    "png": OutputFormat("masks", write_png),
    "coco": OutputFormat("masks.json", write_coco),
    "coco-polygons": OutputFormat("polygons.json", partial(write_coco, polygons=True)),
    "overlays": OutputFormat("overlays", write_overlays),
}


def write_masks_as(
    samples: Sequence[Sample],
    mask_path: Callable[[str], Path],
    classes: Sequence[str],
    out: Path,
    format: str,
    advance: Callable[[int], None] = lambda step: None,
) -> Path:
    """Write label maps that exist on disk in another format.

    Args:
        samples: the images.
        mask_path: returns the path of the label map of an image from its id, as `StageFolder.mask_path` does.
        classes: names of the classes; class id k is classes[k - 1].
        out: the output folder.
        format: one of `OUTPUT_FORMATS`: png (indexed, with a legend), coco (one JSON file with RLE masks),
            coco-polygons (one JSON file with polygons) or overlays (masks drawn over the images).
        advance: called with 1 after each image is read, to show the progress.

    Returns:
        The file or folder that was written.

    Raises:
        RunError: the format is not known, a label map is missing or damaged, or a file cannot be written.
        DataError: an image cannot be read (overlays only).
    """
    path = output_path(out, format)

    def items() -> Iterator[MaskItem]:
        for sample in samples:
            yield MaskItem(sample.id, image_file_name(sample), sample.image, read_label_map(mask_path(sample.id)))
            advance(1)

    OUTPUT_FORMATS[format].write(path, items(), classes)
    return path


def output_path(out: Path, format: str) -> Path:
    """Return the file or folder in the output folder that a format is written to.

    Raises:
        RunError: the format is not known.
    """
    if format not in OUTPUT_FORMATS:
        raise RunError(f"format {format!r} is not known{did_you_mean(format, OUTPUT_FORMATS)}")
    return out / OUTPUT_FORMATS[format].file_name


def image_file_name(sample: Sample) -> str:
    """Return the path of an image in its data set, with the suffix of its file.

    Example:
        >>> image_file_name(Sample("beach/001", "/photos/beach/001.jpg", tags=(1,)))
        'beach/001.jpg'
    """
    suffix = Path(sample.image.partition("?")[0] if is_url(sample.image) else sample.image).suffix
    return sample.id if sample.id.endswith(suffix) else sample.id + suffix
