"""The archive for VOC's evaluation server, read back with tarfile and Pillow."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.samples import Sample
from tagmask.errors import RunError
from tagmask.label_map import IGNORE_INDEX, write_label_map
from tagmask.outputs.settings import ExportSettings
from tagmask.outputs.voc_server import check
from tagmask.outputs.writer import write_masks_as
from tests.runs import reading

ORDER_OF_VOC = [  # http://host.robots.ox.ac.uk/pascal/VOC/voc2012/segexamples/index.html
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
SHUFFLED = tuple(np.random.default_rng(0).permutation(ORDER_OF_VOC).tolist())


def read_archive(path: Path) -> dict[str, Image.Image]:
    """Return the images in an archive by name."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert all(member.isfile() and member.mtime == 0 for member in members)
        files = [archive.extractfile(member) for member in members]
        images = {
            member.name: Image.open(io.BytesIO(file.read()))
            for member, file in zip(members, files, strict=True)
            if file
        }
    assert all(image.mode == "P" for image in images.values())
    return images


def write_archive(folder: Path, labels: dict[str, np.ndarray], settings: ExportSettings | None = None) -> Path:
    for image_id, values in labels.items():
        write_label_map(folder / "masks" / f"{image_id}.png", values)
    samples = [Sample(image_id, f"{image_id}.jpg", None, size=values.shape) for image_id, values in labels.items()]

    def mask_path(image_id: str) -> Path:
        return folder / "masks" / f"{image_id}.png"

    return (
        write_masks_as(samples, reading(mask_path), SHUFFLED, folder / "out", "voc-server", settings) / "results.tar.gz"
    )


def test_masks_have_the_names_the_ids_and_the_colors_of_voc(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = {name: rng.integers(0, 21, (37, 50), np.uint8) for name in ("2008_000006", "2008_000011")}
    images = read_archive(write_archive(tmp_path, labels))
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    assert list(images) == [f"{folder}/2008_000006.png", f"{folder}/2008_000011.png"]
    names, ordered = np.array(["background", *SHUFFLED]), np.array(["background", *ORDER_OF_VOC])
    for image, values in zip(images.values(), labels.values(), strict=True):
        np.testing.assert_array_equal(ordered[np.array(image)], names[values])
        palette = np.reshape(image.getpalette() or [], (-1, 3))
        assert palette[[0, 1, 8, 15, 20]].tolist() == [
            [0, 0, 0],
            [128, 0, 0],
            [64, 0, 0],
            [192, 128, 128],
            [0, 64, 128],
        ]


def test_the_bytes_do_not_depend_on_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"a": np.eye(30, dtype=np.uint8) * 7}
    first = write_archive(tmp_path / "first", labels).read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert write_archive(tmp_path / "second", labels).read_bytes() == first
    assert first[3:8] == bytes(5), "the header of gzip has neither a name nor a time (RFC 1952)"


def test_competition_and_subset_are_parts_of_the_path(tmp_path: Path) -> None:
    settings = ExportSettings(subset="val", competition="comp5")
    images = read_archive(write_archive(tmp_path, {"a": np.zeros((2, 3), np.uint8)}, settings))
    assert list(images) == ["results/VOC2012/Segmentation/comp5_val_cls/a.png"]
    with pytest.raises(RunError, match="competition is 'comp7': choose from comp5, comp6"):
        ExportSettings(competition="comp7")  # type: ignore[arg-type]


def test_ignored_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a\.jpg has ignored pixels, which the evaluation server refuses"):
        write_archive(tmp_path, {"a": np.full((2, 3), IGNORE_INDEX, np.uint8)})
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "ids", "message"),
    [
        (ORDER_OF_VOC[:-1], [], r"needs VOC's 20 classes \(missing: tvmonitor\): train"),
        ([*ORDER_OF_VOC, "zebra"], [], r"\(unknown: zebra\): train"),
        (["cat", "table"], [], r"\(missing: aeroplane, bicycle, bird, ...; unknown: table\): train"),
        (SHUFFLED, ["1", "JPEGImages/2"], "has no place for folders, as in 'JPEGImages/2': name the folder of VOC"),
    ],
)
def test_other_classes_and_folders_are_refused(classes: list[str], ids: list[str], message: str) -> None:
    check(SHUFFLED, ["1", "2"])
    with pytest.raises(RunError, match=message):
        check(classes, ids)
