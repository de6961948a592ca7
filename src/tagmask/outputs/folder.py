"""Masks written to a folder, in the forms that people and annotation tools want."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from tagmask.artifacts import write_text
from tagmask.data.images import is_url, read_image
from tagmask.data.samples import Sample
from tagmask.errors import RunError
from tagmask.label_map import read_label_map, voc_palette, write_label_map
from tagmask.outputs.coco import write_coco
from tagmask.outputs.overlays import write_overlay

Format = Literal["png", "coco", "coco-polygons", "overlays"]


def write_outputs(
    samples: Sequence[Sample],
    mask_of: Callable[[Sample], Path],
    classes: tuple[str, ...],
    out: Path,
    form: str,
    advance: Callable[[int], None] = lambda step: None,
) -> Path:
    """Write label maps that exist on disk in another form; returns the file or folder.

    Args:
        form: png (indexed, with a legend), coco (RLE) or coco-polygons (one JSON file), overlays (pictures).

    Raises:
        RunError: the form is not known, or a label map is missing.
    """
    target = target_of(out, form)

    def label_maps() -> Iterator[tuple[Sample, np.ndarray]]:
        for sample in samples:
            if not mask_of(sample).exists():
                raise RunError(f"{mask_of(sample)} does not exist: finish the run first (start it again).")
            yield sample, read_label_map(mask_of(sample))
            advance(1)

    if form.startswith("coco"):
        items = ((file_name(sample), labels) for sample, labels in label_maps())
        write_coco(target, items, classes, polygons=form == "coco-polygons")
        return target
    for sample, labels in label_maps():
        if form == "png":
            write_label_map(target / f"{sample.id}.png", labels)
        else:
            write_overlay(target / f"{sample.id}.jpg", read_image(sample.image), labels)
    if form == "png":
        write_legend(out, classes)
    return target


def target_of(out: Path, form: str) -> Path:
    """The file or folder in `out` that a form is written to. Raises RunError for a form that is not known."""
    if form not in get_args(Format):
        raise RunError(f"format {form!r} is not known: give {', '.join(get_args(Format))}.")
    return out / {"png": "masks", "coco": "masks.json", "coco-polygons": "polygons.json"}.get(form, form)


def file_name(sample: Sample) -> str:
    """The image's path in its set, with its suffix."""
    suffix = Path(sample.image.partition("?")[0] if is_url(sample.image) else sample.image).suffix
    return sample.id if sample.id.endswith(suffix) else sample.id + suffix


def write_legend(out: Path, classes: tuple[str, ...]) -> None:
    """`legend.txt` beside a folder of masks: id, red, green, blue, name; one class a line."""
    colors = np.reshape(voc_palette(), (256, 3))
    lines = [f"{i} {' '.join(map(str, colors[i]))} {name}" for i, name in enumerate(("background", *classes))]
    write_text(out / "legend.txt", "\n".join(lines) + "\n")
