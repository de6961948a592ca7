"""Runs: which stages are skipped, refused or made again, and what a killed process leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from pydantic import BaseModel

import tagmask
from tagmask.artifacts import read_json, write_text
from tagmask.compute import Compute
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.source import DataSource
from tagmask.errors import DataError, RunError
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.pipeline import fingerprint, run_stages, write_run_record
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.run_folder import RunFolder, RunSources
from tagmask.stage import ArtifactKind, Method, StageContext
from tests.runs import contents, toy_run, write_toy

IMAGES = TaggedImages(("a", "b"), (Sample("x", "x.png", (1,), size=(4, 4)), Sample("y", "y.png", (), size=(4, 4))))


class Part(BaseModel):
    weight: float = 1.0


class PartOfTheNextVersion(Part):
    power: float | None = None


class Maker(Method):
    """Write the maps or masks of all images, and a file with the setting and with the files of the inputs."""

    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    text: str = "first"
    part: Part = Part()
    fail: bool = False

    def run(self, context: StageContext) -> None:
        before = "".join((stage.path / "made").read_text() for stage in context.inputs.values())
        with (context.folder.path / "begun").open("a") as log:
            log.write("x")
        if self.fail:
            raise RunError("failed.")
        for sample in context.images.samples:
            if "maps" in self.makes:
                ResponseMaps(np.zeros(0, int), np.zeros((0, 1, 1)), (4, 4)).save(context.folder.maps_path(sample.id))
            else:
                write_label_map(context.folder.mask_path(sample.id), np.zeros((4, 4), np.uint8))
        write_text(context.folder.path / "made", before + self.text)


class MakerOfTheNextVersion(Maker):
    part: PartOfTheNextVersion = PartOfTheNextVersion()
    new: int = 0


class Changer(Maker):
    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)


def recipe(one: dict[str, object] | None = None, two: dict[str, object] | None = None, seed: int = 0) -> Recipe:
    return Recipe(seed=seed, stages={"one": Maker(**(one or {})), "two": Changer(**(two or {}))})


def run_toy(folder: Path, chosen: Recipe, images: TaggedImages = IMAGES, redo: bool = False) -> str:
    """Run the recipe and return what the last stage wrote."""
    write_run_record(RunFolder(folder), chosen, images, RunSources(images=DataSource(root="toy")), redo=redo)
    run_stages(chosen, images, RunFolder(folder), compute=Compute(), reporter=Reporter(), redo=redo)
    return (folder / "two" / "made").read_text()


def num_starts(folder: Path) -> dict[str, int]:
    return {name: len((folder / name / "begun").read_text()) for name in ("one", "two")}


def test_a_stage_that_is_done_is_skipped(tmp_path: Path) -> None:
    assert run_toy(tmp_path, recipe()) == "firstfirst"
    before = contents(tmp_path)
    assert run_toy(tmp_path, recipe()) == "firstfirst"
    assert num_starts(tmp_path) == {"one": 1, "two": 1}
    assert contents(tmp_path) == before
    record = read_json(tmp_path / "one" / "stage.json")
    assert record["status"] == "done"
    assert record["num_images"] == 2
    assert {"tagmask", "torch", "timm"} <= set(record["versions"])


def test_a_stage_that_failed_is_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RunError, match="failed"):
            run_toy(tmp_path, recipe(two={"fail": True}))
    assert num_starts(tmp_path) == {"one": 1, "two": 2}
    assert read_json(tmp_path / "two" / "stage.json")["status"] == "running"


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (recipe(one={"text": "1"}), r"one was made with other settings \(text 'first' → '1'\)"),
        (recipe(two={"text": "2"}), r"two was made with other settings \(text 'first' → '2'\)"),
        (recipe(seed=1), r"one was made with other settings \(another seed\)"),
    ],
)
def test_other_settings_are_refused_and_change_nothing(tmp_path: Path, changed: Recipe, difference: str) -> None:
    run_toy(tmp_path, recipe())
    before = contents(tmp_path)
    with pytest.raises(RunError, match=difference) as error:
        run_toy(tmp_path, changed)
    assert "choose another --out, or add --redo" in str(error.value)
    assert contents(tmp_path) == before  # recipe.yaml and run.json, too


def test_a_setting_that_a_new_version_adds_changes_nothing_at_its_default(tmp_path: Path) -> None:
    run_toy(tmp_path, recipe())
    before = contents(tmp_path)
    new = Recipe(stages={"one": MakerOfTheNextVersion(part={"weight": 1}), "two": Changer()})
    assert run_toy(tmp_path, new) == "firstfirst"
    after = contents(tmp_path)
    assert {name: after[name] for name in after if name != "recipe.yaml"} == {
        name: before[name] for name in before if name != "recipe.yaml"
    }
    other = Recipe(stages={"one": MakerOfTheNextVersion(new=1), "two": Changer()})
    with pytest.raises(RunError, match=r"one was made with other settings \(new None → 1\)"):
        run_toy(tmp_path, other)
    powerful = Recipe(stages={"one": MakerOfTheNextVersion(part={"power": 2}), "two": Changer()})
    with pytest.raises(RunError, match=r"one was made with other settings \(part "):
        run_toy(tmp_path, powerful)
    run_toy(tmp_path, other, redo=True)
    with pytest.raises(RunError, match=r"one was made with other settings \(new 1 → 0\)"):
        run_toy(tmp_path, new)


def test_other_images_or_tags_are_refused(tmp_path: Path) -> None:
    run_toy(tmp_path, recipe())
    others = [
        IMAGES.select(lambda sample: sample.id == "x"),
        TaggedImages(("a", "c"), IMAGES.samples),
        TaggedImages(("a", "b"), (Sample("x", "x.png", (2,), size=(4, 4)), IMAGES.samples[1])),
        TaggedImages(("a", "b"), (Sample("x", "x.png", (1,), size=(4, 5)), IMAGES.samples[1])),
    ]
    for images in others:
        with pytest.raises(RunError, match="other images or tags"):
            run_toy(tmp_path, recipe(), images)
    assert len({fingerprint(images) for images in [IMAGES, *others]}) == 5


def test_redo_makes_changed_stages_and_their_dependents_again(tmp_path: Path) -> None:
    run_toy(tmp_path, recipe())
    assert run_toy(tmp_path, recipe(two={"text": "2"}), redo=True) == "first2"
    assert num_starts(tmp_path) == {"one": 1, "two": 1}  # one was kept
    (tmp_path / "one" / "stray").write_text("of the old one")
    assert run_toy(tmp_path, recipe(one={"text": "1"}, two={"text": "2"}), redo=True) == "12"
    assert not (tmp_path / "one" / "stray").exists()
    assert not list(tmp_path.glob(".*.removed"))
    assert run_toy(tmp_path, recipe(one={"text": "1"}, two={"text": "2"})) == "12"


def test_redo_replaces_the_link_to_a_stage_folder_and_not_what_it_points_to(tmp_path: Path) -> None:
    run_toy(tmp_path / "run", recipe())
    stage, elsewhere = tmp_path / "run" / "one", tmp_path / "elsewhere"
    stage.rename(elsewhere)
    stage.symlink_to(elsewhere)
    assert run_toy(tmp_path / "run", recipe()) == "firstfirst"
    assert run_toy(tmp_path / "run", recipe(one={"text": "1"}), redo=True) == "1first"
    assert not stage.is_symlink()
    assert (elsewhere / "made").read_text() == "first"


def test_a_stage_folder_without_its_record_is_made_again(tmp_path: Path) -> None:
    """After a kill, or because the user wants the stage again."""
    run_toy(tmp_path, recipe())
    (tmp_path / "one" / "stage.json").unlink()
    (tmp_path / "one" / "made").write_text("who knows from what")
    (tmp_path / ".one.removed").mkdir()
    assert run_toy(tmp_path, recipe()) == "firstfirst"
    assert (tmp_path / "one" / "made").read_text() == "first"
    assert not list(tmp_path.glob(".*.removed"))


def test_a_damaged_record_gives_one_sentence(tmp_path: Path) -> None:
    run_toy(tmp_path, recipe())
    (tmp_path / "one" / "stage.json").write_text("{")
    with pytest.raises(RunError, match=r"one/stage\.json is not JSON .*: remove it, then run the same command again"):
        run_toy(tmp_path, recipe())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no tagmask run: choose another --out"):
        run_toy(tmp_path, recipe(), redo=True)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunError, match="is a file, not a folder"):
        run_toy(tmp_path / "thesis.tex", recipe())


def test_hidden_files_do_not_make_a_folder_something_else(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").touch()
    (tmp_path / f".{'0' * 32}.tmp").touch()  # of a process killed before run.json was there
    assert run_toy(tmp_path, recipe()) == "firstfirst"


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (TaggedImages(("a",), (Sample("x", "x.png", None),)), "the tags of 1 training images are unknown"),
        (TaggedImages(("a",), (Sample("x", "x.png", ()),), name="photos"), "no image of photos has a tag"),
    ],
)
def test_images_without_tags_are_refused_before_anything_is_written(
    tmp_path: Path, images: TaggedImages, reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        run_toy(tmp_path / "run", recipe(), images)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    toy_run(data, out)
    return out


def test_the_same_command_twice_makes_the_same_files(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = toy_run(data, tmp_path / "again")
    assert contents(run.folder) == contents(undisturbed)
    before = {f: f.stat().st_mtime_ns for f in run.folder.rglob("*.safetensors")}
    toy_run(data, tmp_path / "again")
    assert {f: f.stat().st_mtime_ns for f in run.folder.rglob("*.safetensors")} == before


def test_another_seed_makes_other_files(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    short = [f"{stage}.epochs=0" for stage in ("cam", "segment")]
    first, second = (toy_run(data, tmp_path / str(seed), short, seed=seed) for seed in (0, 1))
    weights = [contents(run.folder)["cam/classifier.safetensors"] for run in (first, second)]
    assert weights[0] != weights[1]


def test_the_files_of_a_finished_run(undisturbed: Path) -> None:
    names = {str(f.relative_to(undisturbed)) for f in undisturbed.rglob("*") if f.is_file()}
    every = [f"{i}" for i in range(8)]
    assert names == {
        "run.json", "recipe.yaml", "evaluation.json", "report.html", "recommendation.json", "scores.csv",
        ".scores.json", ".verified.json", ".files.json",
        "cam/stage.json", "cam/history.json", "cam/config.json", "cam/classifier.safetensors",
        *(f"cam/maps/{i}.safetensors" for i in every),
        "pseudo_masks/stage.json", "pseudo_masks/threshold.json", *(f"pseudo_masks/masks/{i}.png" for i in every),
        "segment/stage.json", "segment/history.json", "segment/config.json", "segment/segmenter.safetensors",
        *(f"segment/masks/{i}.png" for i in every),
    }  # fmt: skip


def test_a_changed_run_is_refused_and_still_opens(data: Path, undisturbed: Path) -> None:
    before = contents(undisturbed)
    with pytest.raises(RunError, match=r"pseudo_masks was made with other settings \(threshold 'auto' → 0\.4\)"):
        toy_run(data, undisturbed, ["pseudo_masks.threshold=0.4"])
    assert contents(undisturbed) == before
    assert tagmask.load(undisturbed, device="cpu").classes == ("blue", "green", "red")
