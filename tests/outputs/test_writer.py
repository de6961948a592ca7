"""Tests of the export of masks in all formats."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagmask.data.samples import Sample
from tagmask.data.scenes import make_scene
from tagmask.data.voc_reader import VOC_CLASSES
from tagmask.errors import RunError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.outputs import writer
from tagmask.outputs.formats import OUTPUT_FORMATS
from tagmask.outputs.settings import ExportSettings
from tagmask.outputs.writer import image_file_name, output_path, write_masks_as
from tests.runs import reading

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


@pytest.fixture
def flat_samples(samples: list[Sample], mask_path: Callable[[str], Path]) -> list[Sample]:
    """The two images as if they were in one folder."""
    mask_path("b").write_bytes(mask_path("sub/b").read_bytes())
    return [samples[0], replace(samples[1], id="b")]


@pytest.fixture
def mask_path(tmp_path: Path) -> Callable[[str], Path]:
    """The path of the label map of a sample."""
    return lambda image_id: tmp_path / "masks" / f"{image_id}.png"


@pytest.mark.parametrize("format", list(OUTPUT_FORMATS))
def test_every_format_appears_when_it_is_complete(
    tmp_path: Path, samples: list[Sample], flat_samples: list[Sample], mask_path: Callable[[str], Path], format: str
) -> None:
    out, steps = tmp_path / "out", []
    classes, samples = (VOC_CLASSES, flat_samples) if format == "voc-server" else (CLASSES, samples)

    def stop_at_the_second(step: int) -> None:
        steps.append(step)
        assert [path.name for path in out.iterdir()] == [f".{format}.tmp"], "hidden until it is complete"
        if len(steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_masks_as(samples, reading(mask_path), classes, out, format, advance=stop_at_the_second)
    assert list(out.iterdir()) == []
    (out / f".{format}.tmp").mkdir()
    (out / f".{format}.tmp" / "of a killed process").touch()
    for _ in range(2):
        path = write_masks_as(samples, reading(mask_path), classes, out, format)
        assert path == output_path(out, format) == out / format
        assert [folder.name for folder in out.iterdir()] == [format]
        files = [file for file in path.rglob("*") if file.is_file()]
        assert files
        assert not any(file.name.startswith((".", "of a killed")) for file in files)


def test_png_masks_are_label_maps_with_a_legend(
    tmp_path: Path, samples: list[Sample], mask_path: Callable[[str], Path]
) -> None:
    path = write_masks_as(samples, reading(mask_path), CLASSES, tmp_path / "out", "png")
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*.*")) == [
        "legend.txt", "masks/a.png", "masks/sub/b.png",
    ]  # fmt: skip
    assert (read_label_map(path / "masks" / "sub" / "b.png") == 2).all()
    legend = (path / "legend.txt").read_text().splitlines()
    assert legend == ["0 0 0 0 background", "1 128 0 0 circle", "2 0 128 0 square"]


def test_overlays_are_written_for_every_image(
    tmp_path: Path, samples: list[Sample], mask_path: Callable[[str], Path]
) -> None:
    path = write_masks_as(samples, reading(mask_path), CLASSES, tmp_path / "out", "overlays")
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*.*")) == ["a.jpg", "sub/b.jpg"]


def test_crumbs_and_holes_are_removed_by_default_only_from_polygons(
    tmp_path: Path, samples: list[Sample], mask_path: Callable[[str], Path]
) -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[10:40, 10:40], labels[15:18, 15], labels[20:30, 20:30], labels[50, 50] = 1, 0, 0, 2
    write_label_map(mask_path("a"), labels)

    def areas(format: str, **settings: Any) -> list[float]:
        path = write_masks_as(samples[:1], reading(mask_path), CLASSES, tmp_path, format, ExportSettings(**settings))
        content = json.loads((path / "annotations" / "instances_train.json").read_text())
        return [annotation["area"] for annotation in content["annotations"]]

    assert areas("coco") == areas("coco-polygons", min_area=0, simplify=0) == [900 - 3 - 100, 1]
    assert areas("coco-polygons", simplify=0) == areas("coco", min_area=4) == [900 - 100]  # 0.1 % of 64 · 64 is 4
    assert areas("coco", fill_holes=True) == [900, 1]
    assert areas("coco", fill_holes=True, min_area=2) == [900]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_area": -1}, "min_area is -1: give a number of pixels"),
        ({"simplify": float("nan")}, "simplify is nan: give a number of pixels"),
        ({"images": "move"}, "images is 'move': choose from copy, link, none"),
        ({"subset": "../train"}, r"subset is '\.\./train': give a name of letters"),
    ],
)
def test_settings_that_are_not_valid(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        ExportSettings(**settings)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("cocoo", r"format 'cocoo' is not known: did you mean 'coco'\?$"),
        ("x", "format 'x' is not known: choose from png, coco, coco-polygons, .*overlays"),
    ],
)
def test_unknown_formats_are_refused(tmp_path: Path, format: str, message: str) -> None:
    with pytest.raises(RunError, match=message):
        write_masks_as([], reading(lambda image_id: tmp_path), CLASSES, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_a_missing_label_map_is_an_error(tmp_path: Path, samples: list[Sample]) -> None:
    with pytest.raises(RunError, match=r"none\.png does not exist"):
        write_masks_as(samples, reading(lambda image_id: tmp_path / "none.png"), CLASSES, tmp_path / "out", "coco")


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
    modules = ", ".join(f"tagmask.outputs.{name.replace('-', '_')}" for name in ("writer", *OUTPUT_FORMATS))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(writer).failed == 0
