"""Exports of annotation tools (as tags and as corrected masks), and the log of reviews, as targets of the fuzzer."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.corrections.archive import Archive
from tagmask.corrections.formats import load_reader
from tagmask.corrections.known_images import KnownImages
from tagmask.data.samples import Sample
from tagmask.data.source import DataSource
from tagmask.label_map import read_label_map, write_label_map
from tagmask.outputs.writer import write_masks_as
from tagmask.review_folder import ReviewFolder
from tests.robustness.targets import CLASSES, SIZE, Target
from tests.runs import reading

FORMATS = {"cvat": "xml", "label-studio": "json", "coco": "json"}


def make_correction_targets(folder: Path) -> Iterator[Target]:
    """Write valid files below a folder and yield a target for each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(SIZE, np.uint8)
    labels[3:9, 4:20], labels[12:20, 4:9] = 1, 3
    samples = []
    for i in range(2):
        Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / f"{i}.png")
        write_label_map(folder / "masks" / f"{i}.png", labels)
        samples.append(Sample(str(i), str(folder / f"{i}.png"), (1, 3), size=SIZE))

    def mask_path(image_id: str) -> Path:
        return folder / "masks" / f"{image_id}.png"

    known = KnownImages(samples, CLASSES, lambda image_id: read_label_map(mask_path(image_id)))
    for name, kind in FORMATS.items():
        exported = write_masks_as(samples, reading(mask_path), CLASSES, folder / "exports", name)
        seeds = [file.read_bytes() for file in exported.rglob(f"*.{kind}")]
        yield Target(f"corrections {name}", kind, seeds, _reader(folder / f"{name}.{kind}", name, known), 2)
        if name != "coco":
            yield Target(f"tags {name}", kind, seeds, _tags_reader(folder, folder / f"tags.{kind}"), 2)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"export.{kind}", seeds[0])
        read_zip = _reader(folder / f"{name}.zip", name, known)
        yield Target(f"corrections {name} zip", "binary", [buffer.getvalue()], read_zip, 0.5)

    yield from _yolo_targets(folder / "yolo")
    if find_spec("openpyxl"):
        yield Target("tags xlsx", "binary", [_workbook()], _tags_reader(folder, folder / "tags.xlsx"))

    review = ReviewFolder(folder / "review")
    review.record("0", "corrected", labels, source="by hand")
    review.record("1", "accepted", labels, source="by hand")

    def read_log(content: bytes) -> None:
        review.log_path.write_bytes(content)
        review.read_reviews()

    yield Target("review log", "json", [review.log_path.read_bytes()], read_log)


def _tags_reader(root: Path, path: Path) -> Callable[[bytes], object]:
    def read(content: bytes) -> object:
        path.write_bytes(content)
        return DataSource(root=str(root), tags=str(path)).read()

    return read


def _workbook() -> bytes:
    import openpyxl

    book, buffer = openpyxl.Workbook(), io.BytesIO()
    for row in (["image", "tags"], ["0.png", "cat;dog"], ["1.png", None]):
        book.active.append(row)
    book.save(buffer)
    return buffer.getvalue()


def _yolo_targets(root: Path) -> Iterator[Target]:
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for i in range(2):
        Image.new("RGB", (SIZE[1], SIZE[0])).save(root / "images" / f"{i}.png")
    settings = b"path: .\ntrain: images\nval: images\nnames:\n  0: cat\n  1: dog\n"
    labels = b"0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.9 0.1 0.5 0.9\n"
    files = {root / "data.yaml": ("yaml", settings), root / "labels" / "0.txt": ("text", labels)}
    for path, (_, valid) in files.items():
        path.write_bytes(valid)
    for path, (kind, valid) in files.items():

        def read(content: bytes, path: Path = path, valid: bytes = valid) -> object:
            path.write_bytes(content)
            try:
                return DataSource(root=str(root), format="yolo").read()
            finally:
                path.write_bytes(valid)

        yield Target(f"YOLO {path.name}", kind, [valid], read)


def _reader(path: Path, name: str, known: KnownImages) -> Callable[[bytes], object]:
    def read(content: bytes) -> object:
        path.write_bytes(content)
        return list(load_reader(name)(Archive(path), known))

    return read
