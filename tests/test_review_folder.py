"""Reviewed masks and the log of their changes."""

from __future__ import annotations

import doctest
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

import tagmask.artifacts
from tagmask import review_folder, review_log
from tagmask.errors import RunError
from tagmask.label_map import read_label_map
from tagmask.review_folder import ReviewedImage, ReviewFolder
from tagmask.review_log import ReviewLog


def labels(value: int) -> np.ndarray:
    return np.full((3, 4), value, np.uint8)


@pytest.fixture
def review(tmp_path: Path) -> ReviewFolder:
    return ReviewFolder(tmp_path / "review")


def test_masks_states_and_the_log(review: ReviewFolder) -> None:
    assert review.read_states() == {}
    review.record("a", "accepted", labels(1), source="page")
    review.record("sub/b", "corrected", labels(2), source="page", tags=("cat", "dög"))
    review.record("a", "corrected", labels(255), source="import")
    states = review.read_states()
    assert {image_id: (event.state, event.tags) for image_id, event in states.items()} == {
        "a": ("corrected", None),
        "sub/b": ("corrected", ("cat", "dög")),
    }
    assert (review.read_mask("a") == 255).all()
    assert (read_label_map(review.path / "masks" / "sub" / "b.png") == 2).all()
    assert [(event.image, event.source) for event in review.log.read()] == [
        ("a", "page"), ("sub/b", "page"), ("a", "import"),
    ]  # fmt: skip
    first, last = review.history("a")
    assert first.time <= last.time
    assert first.user
    assert first.before is None
    assert last.before is not None
    assert (read_label_map(review.path / "history" / last.before) == 1).all()


def test_drafts_and_rejected_masks_are_no_ground_truth(review: ReviewFolder) -> None:
    review.record("a", "corrected", labels(1), source="page")
    review.record("b", "draft", labels(2), source="page")
    review.record("c", "rejected", None, source="page", tags=("cat",))
    assert list(review.read_ground_truth()) == ["a"]
    assert list(review.read_states()) == ["a", "b", "c"]
    assert (review.read_mask("b") == 2).all()
    review.record("b", "rejected", None, source="page")
    assert not review.mask_path("b").exists()
    review.restore("b", 0)
    assert (review.read_states()["b"].state, int(review.read_mask("b").max())) == ("draft", 2)
    review.restore("c", 0)
    assert (review.read_states()["c"].state, review.read_states()["c"].tags) == ("rejected", ("cat",))
    with pytest.raises(ValueError, match="the mask is given"):
        review.record("c", "rejected", labels(1), source="page")


def test_every_earlier_state_can_be_restored(review: ReviewFolder) -> None:
    for value in (1, 2, 3):
        review.record("a", "corrected", labels(value), source="page", tags=(str(value),))
    review.restore("a", 0)
    assert (review.read_mask("a") == 1).all()
    assert review.read_states()["a"].tags == ("1",)
    review.restore("a", 2)  # redo: nothing is lost by an undo
    assert (review.read_mask("a") == 3).all()
    review.restore("a", -1)
    assert review.read_states() == {}
    with pytest.raises(RunError, match="has no reviewed mask"):
        review.read_mask("a")
    review.restore("a", 1)
    assert (review.read_mask("a") == 2).all()
    assert [event.state for event in review.history("a")] == [*["corrected"] * 5, "open", "corrected"]
    with pytest.raises(IndexError):
        review.restore("a", 99)


def test_the_copies_for_a_run_stay_when_the_masks_change(review: ReviewFolder) -> None:
    assert review.read_reviews() == {}
    assert not review.path.exists()  # reading creates nothing
    review.record("a", "accepted", labels(1), source="page")
    review.record("sub/b", "corrected", labels(2), source="page", tags=("cat",))
    review.record("c", "rejected", None, source="page", tags=())
    review.record("d", "draft", labels(3), source="page")
    review.record("e", "accepted", labels(1), source="page")
    reviews = review.read_reviews()
    assert {i: (r.mask is not None, r.is_rejected, r.tags) for i, r in reviews.items()} == {
        "a": (True, False, None), "sub/b": (True, False, ("cat",)), "c": (False, True, ()), "e": (True, False, None),
    }  # fmt: skip
    masks = {image_id: reviewed.mask for image_id, reviewed in reviews.items() if reviewed.mask}
    assert masks["a"] == masks["e"]  # of the same content
    review.record("a", "draft", labels(3), source="page")
    review.record("sub/b", "rejected", None, source="page")
    assert {image_id: read_label_map(mask).max() for image_id, mask in masks.items()} == {"a": 1, "sub/b": 2, "e": 1}
    assert list(review.read_reviews()) == ["sub/b", "c", "e"]
    (review.path / "used" / ".0.tmp").touch()  # of a killed process
    review.remove_unused_copies([masks["e"]])
    assert list((review.path / "used").iterdir()) == [masks["e"]]


def test_tags_count_without_a_mask_and_those_of_drafts_do_not(review: ReviewFolder) -> None:
    review.record("a", "open", None, source="page", tags=("cat",))
    review.record("b", "open", None, source="page", tags=("cat",))
    review.record("b", "draft", labels(1), source="page", tags=("cat", "dog"))
    review.record("c", "draft", labels(1), source="page", tags=("dog",))
    review.record("d", "open", None, source="page", tags=("cat",))
    review.record("d", "open", None, source="page")
    assert review.read_reviews() == {"a": ReviewedImage(tags=("cat",)), "b": ReviewedImage(tags=("cat",))}
    review.record("b", "accepted", labels(1), source="page", tags=("cat", "dog"))
    assert review.read_reviews()["b"].tags == ("cat", "dog")


def test_masks_can_be_read_without_copies(review: ReviewFolder) -> None:
    review.record("a", "accepted", labels(1), source="page")
    assert review.read_reviews(copy=False)["a"].mask == review.mask_path("a")
    assert not (review.path / "used").exists()
    review.mask_path("a").unlink()
    with pytest.raises(RunError, match=r"masks/a\.png does not exist"):
        review.read_reviews()


def test_a_state_without_its_mask_is_refused(review: ReviewFolder) -> None:
    with pytest.raises(ValueError, match="the mask is missing"):
        review.record("a", "accepted", None, source="page")
    with pytest.raises(ValueError, match="the mask is given"):
        review.record("a", "open", labels(0), source="page")
    assert not review.path.exists()


def test_a_line_that_a_power_cut_has_torn_does_no_harm(review: ReviewFolder) -> None:
    review.record("a", "accepted", labels(1), source="page")
    whole = review.log_path.read_bytes()
    review.log_path.write_bytes(whole + whole[: len(whole) // 2])
    assert list(review.read_states()) == ["a"]
    review.record("b", "accepted", labels(1), source="page")
    assert list(review.read_states()) == ["a", "b"]
    assert review.log_path.read_bytes().startswith(whole)


def test_a_damaged_line_is_named(review: ReviewFolder) -> None:
    review.record("a", "accepted", labels(1), source="page")
    review.log_path.write_text(review.log_path.read_text() + '{"state": "perfect"}\n')
    with pytest.raises(RunError, match=r"log\.jsonl, line 2 is damaged"):
        review.read_states()


@pytest.mark.parametrize(("field", "path"), [("image", "../../secret"), ("image", "/etc/x"), ("before", "a/../../x")])
def test_a_path_that_leads_out_of_the_folder_is_refused(review: ReviewFolder, field: str, path: str) -> None:
    review.record("a", "corrected", labels(1), source="page")
    line = json.loads(review.log_path.read_text()) | {field: path}
    review.log_path.write_text(json.dumps(line) + "\n")
    with pytest.raises(RunError, match=r"log\.jsonl, line 1 is damaged .* leads out of the folder"):
        review.read_reviews()
    assert not (review.path / "used").exists()


def test_a_full_disk_changes_no_state(review: ReviewFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    review.record("a", "accepted", labels(1), source="page")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tagmask.artifacts.os, "replace", fail)
    with pytest.raises(RunError, match="No space left on device"):
        review.record("a", "corrected", labels(2), source="page")
    assert review.read_states()["a"].state == "accepted"
    assert (review.read_mask("a") == 1).all()


@pytest.mark.parametrize(
    ("step", "kept"),
    [((ReviewFolder, "_write_pending"), ("accepted", 1)), ((ReviewFolder, "_keep_in_history"), ("accepted", 1)),
     ((ReviewLog, "append"), ("accepted", 1)), ((ReviewFolder, "_replace_mask"), ("draft", 2))],
)  # fmt: skip
@pytest.mark.parametrize(
    "reader", ["read_mask", "read_states", "read_ground_truth", "read_reviews", "record", "restore"]
)
def test_a_process_killed_at_any_step_leaves_the_mask_of_the_state(
    review: ReviewFolder, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str], kept: tuple[str, int], reader: str
) -> None:
    review.record("sub/a", "accepted", labels(1), source="page")

    def kill(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*step, kill)
        review.record("sub/a", "draft", labels(2), source="page")
    if reader == "record":
        review.record("b", "rejected", None, source="page")
    elif reader == "restore":
        review.restore("sub/a", 1 if kept[0] == "draft" else 0)
    elif reader == "read_mask":
        review.read_mask("sub/a")
    else:
        getattr(review, reader)()
    assert (read_label_map(review.mask_path("sub/a")) == kept[1]).all()
    assert review.read_states()["sub/a"].state == kept[0]
    assert not [*review.path.glob("pending*")]
    review.restore("sub/a", 0)
    assert (review.read_mask("sub/a") == 1).all()


def _record_many(path: Path, value: int) -> None:
    for _ in range(20):
        ReviewFolder(path).record("a", "corrected", labels(value), source=str(value))


@pytest.mark.skipif(review_log.fcntl is None, reason="this system has no file locks")
def test_two_processes_lose_no_change(review: ReviewFolder) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_record_many, args=(review.path, value)) for value in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    events = review.history("a")
    assert len(events) == 40
    kept = [event.before for event in events[1:]]
    assert events[0].before is None
    for event, before in zip(events, kept, strict=False):  # what an event made is what the next one kept
        assert (read_label_map(review.path / "history" / str(before)) == int(event.source)).all()
    assert (review.read_mask("a") == int(events[-1].source)).all()


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(review_folder).failed == 0
