"""Runs on data sets with unusual names, classes and images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.label_map import read_label_map
from tests.cli.runner import TOY, RunCommand, RunFailing
from tests.runs import write_toy

HOSTILE = {"red": "<script>alert(1)</script>", "green": "a/b [red]", "blue": "grün 🐕"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes and files with names that have a meaning in HTML, paths, terminals or tables."""
    folder = write_toy(tmp_path_factory.mktemp("hostile") / "<b>[bold] images & co 🐕", HOSTILE, masks=False)
    names = {"0": "sub dir/a b", "1": "sub dir/🐕 ünï", "2": "<img src=x onerror=alert(1)>", "3": "100% [red]'\"&;"}
    table = (folder / "tags.csv").read_text()
    for old, new in names.items():
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / f"{old}.png").rename(folder / f"{new}.png")
        table = table.replace(f"\n{old}.png", '\n"' + new.replace('"', '""') + '.png"')
    (folder / "tags.csv").write_text(table)
    return folder


def test_names_are_never_interpreted(command: RunCommand, hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "run & <i>🐕</i> [b]"
    checked = command("check", hostile)
    assert checked.status == 0, checked.out
    assert HOSTILE["red"] in checked.out
    result = command("run", hostile, "--out", out, *TOY)
    assert result.status == 0, result.err
    masks = {str(f.relative_to(out / "segment/masks")) for f in (out / "segment/masks").rglob("*.png")}
    assert {"sub dir/🐕 ünï.png", "<img src=x onerror=alert(1)>.png", "100% [red]'\"&;.png"} < masks
    assert len(masks) == 8
    page = (out / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    line = ["predict", out, hostile, "--out", tmp_path / "p", "--also", "coco", "--device=cpu", "--json"]
    assert len(command(*line).json["masks"]) == 8
    coco = json.loads((tmp_path / "p/coco/annotations/instances_train.json").read_text())
    assert {category["name"] for category in coco["categories"]} == set(HOSTILE.values())
    assert HOSTILE["red"] in (tmp_path / "p" / "legend.txt").read_text()


def test_a_single_class(command: RunCommand, data: Path, tmp_path: Path) -> None:
    line = ["run", data, "--classes", "green", "--out", tmp_path / "run", "--masks", "masks", *TOY, "--json"]
    result = command(*line)
    assert result.status == 0, result.err
    assert result.json["evaluation"]["classes"] == ["green"]
    labels = [read_label_map(f) for f in (tmp_path / "run/segment/masks").iterdir()]
    assert {int(value) for mask in labels for value in np.unique(mask)} <= {0, 1}


def test_one_image_per_class_and_a_single_image(command: RunCommand, data: Path, tmp_path: Path) -> None:
    for rows, n in (("0.png,red\n1.png,green\n2.png,blue\n", 3), ("0.png,red\n", 1)):
        table = tmp_path / f"{n}.csv"
        table.write_text(f"image,tags\n{rows}")
        larger = "--set=segment.crop_size=64"  # with less, a batch of one image would be pooled to a single value
        result = command("run", data, "--tags", table, "--out", tmp_path / f"run{n}", *TOY, larger)
        assert result.status == 0, result.err
        assert len(list((tmp_path / f"run{n}" / "segment" / "masks").iterdir())) == n


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of every kind that can be used; one of them is rotated by its EXIF data and has an upright mask."""
    folder = tmp_path_factory.mktemp("formats")
    rgb = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    image = Image.fromarray(rgb)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rgb[..., 0].astype(np.uint16) << 8).save(folder / "deep.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "transparent.png")
    image.convert("1").save(folder / "bits.png")
    image.save(folder / "animation.gif", save_all=True, append_images=[image.rotate(90)])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("L", (300, 1)).save(folder / "line.png")
    rotation = Image.Exif()
    rotation[0x0112] = 6
    image.save(folder / "rotated.JPG", exif=rotation)
    (folder / "masks").mkdir()
    Image.new("L", (40, 48), 1).save(folder / "masks" / "rotated.png")
    tags = ["cat", "dog", "", "cat;dog"]
    names = sorted(f.name for f in folder.iterdir() if f.is_file())
    rows = [f"{name},{tags[i % 4]}\n" for i, name in enumerate(names)]
    (folder / "tags.csv").write_text("image,tags\n" + "".join(rows))
    return folder


def test_images_of_every_kind(command: RunCommand, formats: Path, tmp_path: Path) -> None:
    result = command("run", formats, "--masks", "masks", "--out", tmp_path / "run", *TOY)
    assert result.status == 0, result.err
    assert len(list((tmp_path / "run/segment/masks").iterdir())) == 9
    assert read_label_map(tmp_path / "run/segment/masks/rotated.png").shape == (48, 40)
    assert read_label_map(tmp_path / "run/segment/masks/dot.png").shape == (1, 1)
    out = ["--out", tmp_path / "p", "--device=cpu", "--also", "coco-polygons", "--also", "overlays"]
    assert command("predict", tmp_path / "run", formats, *out).status == 0


def test_images_that_are_too_large_or_do_not_fit_their_mask(fails: RunFailing, formats: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (20_000, 20_000)).save(large)
    (tmp_path / "tags.csv").write_text("image,tags\nlarge.png,cat\n")
    sentence = fails("run", tmp_path, "--out", tmp_path / "out", *TOY)
    assert "has more than 100 million pixels; make it smaller or cut it into tiles" in sentence
    folder = shutil.copytree(formats, tmp_path / "formats")
    Image.new("L", (48, 40), 1).save(folder / "masks" / "rotated.png")
    sentence = fails("run", folder, "--masks", "masks", "--out", tmp_path / "out", *TOY)
    assert "has 48×40 pixels and its image 40×48" in sentence
    assert "EXIF" in sentence
    assert not (tmp_path / "out").exists()
