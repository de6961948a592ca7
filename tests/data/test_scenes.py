"""The generated demo set."""

import csv
import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tagmask.data import scenes
from tagmask.data.scenes import CLASSES, Scene, make_scene, simulate_saliency, write_scenes
from tagmask.data.voc_reader import read_voc
from tagmask.errors import DataError, RunError

SAMPLE = range(1000, 1300)


@pytest.fixture(scope="module")
def sample_scenes() -> list[Scene]:
    return [make_scene(index) for index in SAMPLE]


def are_equal(one: Scene, other: Scene) -> bool:
    pixels = np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
    return pixels and one.tags == other.tags


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_scene_does_not_depend_on_other_scenes() -> None:
    alone = make_scene(7, seed=3)
    for index in (9, 8):
        make_scene(index, seed=3)
    assert are_equal(alone, make_scene(7, seed=3))
    assert not are_equal(alone, make_scene(8, seed=3))
    assert not are_equal(alone, make_scene(7, seed=4))


def test_tags_are_the_classes_of_the_mask(sample_scenes: list[Scene]) -> None:
    for scene in sample_scenes:
        assert scene.image.shape == (96, 96, 3)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        assert scene.mask.shape == (96, 96)
        assert set(scene.tags) == set(np.unique(scene.mask).tolist()) - {0}
        assert scene.tags == tuple(sorted(scene.tags))
        assert min(np.count_nonzero(scene.mask == tag) for tag in scene.tags) >= 92  # 1 % of the image
    assert {tag for scene in sample_scenes for tag in scene.tags} == set(range(1, len(CLASSES) + 1))


@pytest.mark.parametrize("pair", [("fish", "snail"), ("bee", "beetle")])
def test_partners_mostly_appear_together(sample_scenes: list[Scene], pair: tuple[str, str]) -> None:
    one, other = (CLASSES.index(name) + 1 for name in pair)
    either = [scene for scene in sample_scenes if one in scene.tags or other in scene.tags]
    assert 0.6 < np.mean([one in scene.tags and other in scene.tags for scene in either]) < 0.9
    owls = [scene for scene in sample_scenes if CLASSES.index("owl") + 1 in scene.tags]
    assert np.mean([one in scene.tags for scene in owls]) < 0.4


@pytest.mark.parametrize("size", [48, 97, 192])
def test_another_size_shows_the_same_scene(size: int) -> None:
    for index in range(6):
        scene, usual = make_scene(index, size=size), make_scene(index)
        assert scene.image.shape == (size, size, 3)
        assert scene.tags == usual.tags
        nearest = np.asarray(Image.fromarray(usual.mask).resize((size, size), Image.Resampling.NEAREST))
        assert np.mean(nearest == scene.mask) > 0.97


def test_the_part_is_small_and_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [make_scene(index) for index in range(80)]
    monkeypatch.setattr(scenes, "_paint_part", lambda *_: None)
    plain = [make_scene(index) for index in range(80)]
    shares, contrasts = [], []
    for scene, bare in zip(whole, plain, strict=True):
        change = np.abs(scene.image.astype(float) - bare.image).mean(axis=2)
        shares.append(np.mean(change[scene.mask > 0] > 3))
        contrasts.append(change[change > 3].mean())
    assert 0.1 < np.mean(shares) < 0.25
    assert np.mean(contrasts) > 50


def test_bodies_differ_in_color_from_their_surroundings(sample_scenes: list[Scene]) -> None:
    """Compare the mean color in the mask with the mean color in a ring around it, which a dense CRF uses."""
    distances = []
    for scene in sample_scenes[:100]:
        ring = ndimage.binary_dilation(scene.mask > 0, iterations=6) & (scene.mask == 0)
        for tag in scene.tags:
            inside, outside = scene.image[scene.mask == tag].mean(axis=0), scene.image[ring].mean(axis=0)
            distances.append(np.linalg.norm(inside - outside))
    assert np.mean(np.array(distances) > 40) > 0.9


def test_body_colors_do_not_identify_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the parts, the mean colors of the classes are nearly equal."""
    monkeypatch.setattr(scenes, "_paint_part", lambda *_: None)
    made = [make_scene(index) for index in range(600)]
    bodies = [(tag, scene.image[scene.mask == tag].mean(axis=0)) for scene in made for tag in scene.tags]
    tags, colors = np.array([tag for tag, _ in bodies]), np.array([color for _, color in bodies])
    between = np.linalg.norm(np.array([colors[tags == tag].mean(axis=0) for tag in np.unique(tags)]) - colors.mean(0))
    assert between / np.sqrt(6) < 0.25 * np.linalg.norm(colors.std(axis=0))


def test_saliency_has_half_the_size_and_is_mostly_right(sample_scenes: list[Scene]) -> None:
    agreements = []
    for index, scene in enumerate(sample_scenes[:100]):
        saliency = simulate_saliency(scene.mask, np.random.default_rng(index))
        assert saliency.shape == (48, 48)
        assert saliency.dtype == np.uint8
        agreements.append(np.mean((saliency > 127) == (scene.mask[::2, ::2] > 0)))
    assert 0.85 < np.mean(agreements) < 0.99
    assert min(agreements) < 0.85  # some maps are wrong
    assert simulate_saliency(sample_scenes[0].mask[:95, :31], np.random.default_rng(0)).shape == (48, 16)


def test_folder_has_the_voc_layout(tmp_path: Path) -> None:
    done: list[int] = []
    write_scenes(tmp_path, num_train=5, num_val=3, size=48, seed=2, advance=done.append)
    assert done == [1] * 8
    assert (tmp_path / "classes.txt").read_text().split() == list(CLASSES)
    names = {
        split: (tmp_path / f"ImageSets/Segmentation/{split}.txt").read_text().split() for split in ("train", "val")
    }
    assert names["train"] == [f"scene_{index:05d}" for index in range(5)]
    assert names["val"] == [f"scene_{index:05d}" for index in range(5, 8)]
    with (tmp_path / "tags.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        scene, name = make_scene(index, seed=2, size=48), f"scene_{index:05d}"
        assert row == {
            "image": name,
            "tags": ";".join(CLASSES[tag - 1] for tag in scene.tags),
            "split": "train" if index < 5 else "val",
        }
        with Image.open(tmp_path / f"JPEGImages/{name}.png") as image:
            assert np.array_equal(np.asarray(image), scene.image)
        with Image.open(tmp_path / f"SegmentationClass/{name}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]  # VOC's first colors
            assert np.array_equal(np.asarray(mask), scene.mask)
        with Image.open(tmp_path / f"Saliency/{name}.png") as saliency:
            assert (saliency.mode, saliency.size) == ("L", (24, 24))


def test_the_voc_reader_reads_it(tmp_path: Path) -> None:
    write_scenes(tmp_path, num_train=4, num_val=2, size=32)
    found = read_voc(tmp_path, split="val")
    assert tuple(found.classes) == CLASSES
    assert [sample.id for sample in found.samples] == ["scene_00004", "scene_00005"]
    assert [tuple(sample.tags) for sample in found.samples] == [make_scene(i, size=32).tags for i in (4, 5)]


def test_an_interrupted_call_is_resumed(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    calls = iter(range(1, 9))

    def interrupt(step: int) -> None:
        if next(calls) == 4:
            raise Interrupted

    write_scenes(tmp_path / "whole", num_train=6, num_val=2, size=32)
    with pytest.raises(Interrupted):
        write_scenes(tmp_path / "interrupted", num_train=6, num_val=2, size=32, advance=interrupt)
    assert not (tmp_path / "interrupted/classes.txt").exists()
    (
        tmp_path / "interrupted/JPEGImages/scene_00002.png"
    ).unlink()  # as if it was killed before it wrote the image, which comes last
    kept = tmp_path / "interrupted/JPEGImages/scene_00001.png"
    before = kept.stat().st_mtime_ns
    write_scenes(tmp_path / "interrupted", num_train=6, num_val=2, size=32)
    assert kept.stat().st_mtime_ns == before
    assert read_files(tmp_path / "interrupted") == read_files(tmp_path / "whole")


def test_another_seed_is_refused(tmp_path: Path) -> None:
    write_scenes(tmp_path, num_train=2, num_val=0, size=32)
    with pytest.raises(DataError, match="seed"):
        write_scenes(tmp_path, num_train=2, num_val=0, size=32, seed=1)
    write_scenes(tmp_path, num_train=3, num_val=1, size=32)  # more scenes of the same set
    assert len(list((tmp_path / "JPEGImages").iterdir())) == 4


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("image,tags\n")
    with pytest.raises(DataError, match="is not empty and holds no scenes: choose another folder"):
        write_scenes(tmp_path, num_train=1, num_val=0, size=32)
    assert [file.name for file in tmp_path.iterdir()] == ["tags.csv"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(RunError, match=r"scene_00000\.png.*No space left"):
        write_scenes(tmp_path, num_train=1, num_val=0, size=32)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["scenes.json"]


@pytest.mark.parametrize("arguments", [{"index": -1}, {"index": 0, "seed": -1}, {"index": 0, "size": 8}])
def test_invalid_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        make_scene(**arguments)
