"""A whole run learns from what people have reviewed (tests/test_reviews.py tests the parts)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tagmask
import tagmask.api
from tagmask.artifacts import read_json
from tagmask.errors import DataError, RunError
from tagmask.image_scores import sort_scores
from tagmask.label_map import read_label_map, write_label_map
from tests.runs import contents, toy_run, write_toy

SHORT = ["cam.epochs=1", "segment.epochs=1", "segment.crf=null"]
CORRECTED = ("0", "6")


def circle(label: int) -> np.ndarray:
    """Return a label map that no stage would make: a circle of a class, and ignored pixels at the top."""
    y, x = np.mgrid[:40, :48]
    labels = np.where((y - 20) ** 2 + (x - 24) ** 2 < 100, label, 0).astype(np.uint8)
    labels[:4] = 255
    return labels


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tagmask.Run:
    return toy_run(data, tmp_path_factory.mktemp("runs") / "run", SHORT)


@pytest.fixture(scope="module")
def continued(finished: tagmask.Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tagmask.Run:
    """Return a finished run in which two masks were corrected and one rejected, and that was run again.

    A person goes on with one of the masks while the run learns; this has no effect on the run.
    """
    folder = shutil.copytree(finished.folder, tmp_path_factory.mktemp("continued") / "run")
    review = tagmask.load(folder).review
    for image_id in CORRECTED:
        review.record(image_id, "corrected", circle(3), source="test")
    review.record("3", "rejected", None, source="test")
    review.record("4", "draft", circle(1), source="test")
    run_stages = tagmask.api.run_stages

    def reject_and_run(*arguments: Any, **settings: Any) -> None:
        review.record(CORRECTED[0], "rejected", None, source="test")
        assert not review.mask_path(CORRECTED[0]).exists()
        run_stages(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagmask.api.run_stages", reject_and_run)
        run = toy_run(data, folder, SHORT)
    review.record(CORRECTED[0], "corrected", circle(3), source="test")
    return run


def test_the_reviewed_masks_are_the_masks_of_their_images_in_every_stage(continued: tagmask.Run) -> None:
    for stage in ("pseudo_masks", "segment"):
        for image_id in CORRECTED:
            labels = read_label_map(continued.folder / stage / "masks" / f"{image_id}.png")
            np.testing.assert_array_equal(labels, circle(3))
        for image_id in ("3", "4"):  # rejected, draft
            assert 255 not in read_label_map(continued.folder / stage / "masks" / f"{image_id}.png")


def test_only_stages_that_depend_on_masks_are_made_again(continued: tagmask.Run, finished: tagmask.Run) -> None:
    before, after = contents(finished.folder), contents(continued.folder)
    changed = {name for name in before if before[name] != after[name]}
    assert not {name for name in changed if name.startswith("cam/")}
    assert {"segment/segmenter.safetensors", "pseudo_masks/stage.json", "segment/stage.json"} <= changed
    assert (continued.folder / "cam/stage.json").read_bytes() == (finished.folder / "cam/stage.json").read_bytes()
    masks = {f"pseudo_masks/masks/{i}.png" for i in range(8)}
    assert changed & masks == {f"pseudo_masks/masks/{i}.png" for i in CORRECTED}
    assert read_json(continued.folder / "segment/stage.json")["key"]["reviewed"]["masks"] == 2


def test_a_run_that_has_reviewed_masks_from_its_start_gives_the_same(
    continued: tagmask.Run, data: Path, tmp_path: Path
) -> None:
    """One mask is in --reviewed, the other one in the review of the run, which wins where both have one."""
    (folder := tmp_path / "run").mkdir()
    shutil.copy(continued.folder / "run.json", folder)
    review = tagmask.load(folder).review
    review.record("6", "corrected", circle(3), source="test")
    review.record("3", "rejected", None, source="test")
    for image_id, label in (("0", 3), ("6", 1)):
        write_label_map(tmp_path / "reviewed" / f"{image_id}.png", circle(label))
    source = tagmask.DataSource(root=str(data), masks="masks", reviewed=str(tmp_path / "reviewed"))
    run = toy_run(data, folder, SHORT, source=source)
    files = [contents(made.folder) for made in (run, continued)]
    stages = [{name: value for name, value in f.items() if name.split("/")[0] in run.recipe.stages} for f in files]
    assert stages[0] == stages[1]
    assert run.evaluation.to_json() == continued.evaluation.to_json()


def test_a_finished_run_with_reviews_is_finished_until_they_change(
    continued: tagmask.Run, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(continued.folder, tmp_path / "run")
    toy_run(data, folder, SHORT, quiet=False)
    assert "is already finished" in capfd.readouterr().err
    assert len(list((folder / "review" / "used").iterdir())) == 1  # both masks have the same content
    tagmask.load(folder).review.record("7", "draft", circle(1), source="test")
    toy_run(data, folder, SHORT, quiet=False)
    assert "is already finished" in capfd.readouterr().err
    before = contents(folder)
    tagmask.load(folder).review.record(CORRECTED[0], "rejected", None, source="test")
    with pytest.raises(RunError, match=r"pseudo_masks was made with other settings \(threshold 'auto' → 0\.4\)"):
        toy_run(data, folder, [*SHORT, "pseudo_masks.threshold=0.4"])
    changed = {name for name, value in contents(folder).items() if before.get(name) != value}
    assert all(name.startswith("review/") for name in changed)


def test_reviewed_masks_have_no_doubt_and_are_counted(continued: tagmask.Run) -> None:
    scores = continued.scores(quiet=True)
    assert all(score.doubt == 0 for score in scores if score.image in CORRECTED)
    table = (continued.folder / "scores.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table[1:]] == [score.image for score in scores]
    assert {score.image for score in sort_scores(scores)[-3:]} >= set(CORRECTED)  # after them only the untagged image
    assert "reviewed masks" in continued.report.read_text(encoding="utf-8")


def test_other_classes_than_those_of_the_reviewed_masks_are_refused(
    continued: tagmask.Run, data: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(continued.folder, tmp_path / "run")
    other = shutil.copytree(data, tmp_path / "other")
    (other / "classes.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(RunError, match=r"are of the classes blue, green, red, but the data has red, green, blue"):
        toy_run(other, folder, SHORT, redo=True)


def test_a_reviewed_mask_that_does_not_fit_is_named(data: Path, tmp_path: Path) -> None:
    source = tagmask.DataSource(root=str(data), reviewed=str(tmp_path / "reviewed"))
    write_label_map(tmp_path / "reviewed" / "0.png", np.full((40, 48), 9))
    with pytest.raises(DataError, match=r"reviewed/0\.png: has pixels of class 9, but the largest class id is 3"):
        toy_run(data, tmp_path / "run", source=source)
    write_label_map(tmp_path / "reviewed" / "0.png", np.zeros((48, 40)))
    with pytest.raises(DataError, match=r"reviewed/0\.png: has 40×48 pixels and its image 48×40"):
        toy_run(data, tmp_path / "run", source=source)
