"""Tests of the export of masks in all formats."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.samples import Sample
from tagmask.data.scenes import make_scene
from tagmask.errors import RunError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.outputs import writer
from tagmask.outputs.writer import OUTPUT_FORMATS, image_file_name, output_path, write_masks_as

CLASSES = ("circle", "square")


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two images in different folders, and their label maps in `masks/`."""
    samples = []
    for i, sample_id in enumerate(("a", "sub/b")):
        image = tmp_path / "images" / f"{sample_id}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_scene(i, size=64).image).save(image)
        write_label_map(tmp_path / "masks" / f"{sample_id}.png", np.full((64, 64), i + 1, np.uint8))
        samples.append(Sample(sample_id, str(image), (i + 1,)))
    return samples


@pytest.mark.parametrize("format", list(OUTPUT_FORMATS))
def test_every_format_writes_all_masks_to_its_path(tmp_path: Path, samples: list[Sample], format: str) -> None:
    steps: list[int] = []
    out = tmp_path / "out"
    path = write_masks_as(
        samples, lambda image_id: tmp_path / "masks" / f"{image_id}.png", CLASSES, out, format, steps.append
    )
    assert path == output_path(out, format)
    assert steps == [1, 1]
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        assert [image["file_name"] for image in content["images"]] == ["a.png", "sub/b.png"]
        assert [annotation["area"] for annotation in content["annotations"]] == [64 * 64] * 2
        assert isinstance(content["annotations"][0]["segmentation"], list) == (format == "coco-polygons")
    else:
        files = sorted(str(file.relative_to(path)) for file in path.rglob("*.*"))
        assert files == (["a.png", "sub/b.png"] if format == "png" else ["a.jpg", "sub/b.jpg"])


def test_png_masks_are_label_maps_with_a_legend(tmp_path: Path, samples: list[Sample]) -> None:
    write_masks_as(samples, lambda image_id: tmp_path / "masks" / f"{image_id}.png", CLASSES, tmp_path / "out", "png")
    assert (read_label_map(tmp_path / "out" / "masks" / "sub" / "b.png") == 2).all()
    legend = (tmp_path / "out" / "legend.txt").read_text().splitlines()
    assert legend == ["0 0 0 0 background", "1 128 0 0 circle", "2 0 128 0 square"]


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("cocoo", r"format 'cocoo' is not known: did you mean 'coco'\?$"),
        ("x", "format 'x' is not known: .*png, coco, coco-polygons, overlays"),
    ],
)
def test_unknown_formats_are_refused(tmp_path: Path, format: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        write_masks_as([], lambda image_id: tmp_path, CLASSES, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_missing_label_map_is_an_error(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(RunError, match=r"none\.png does not exist"):
        write_masks_as(samples, lambda image_id: tmp_path / "none.png", CLASSES, tmp_path / "out", "coco")


@pytest.mark.parametrize(
    ("sample_id", "image", "file_name"),
    [
        ("b/1", "/data/b/1.jpg", "b/1.jpg"),
        ("1.jpg", "/data/1.jpg", "1.jpg"),
        ("1", "https://host/1.png?size=3.5", "1.png"),
        ("1", "/data/1", "1"),
    ],
)
def test_image_file_name(sample_id: str, image: str, file_name: str) -> None:
    assert image_file_name(Sample(sample_id, image, ())) == file_name


def test_importing_does_not_import_torch() -> None:
    code = "import sys, tagmask.outputs.writer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(writer).failed == 0
