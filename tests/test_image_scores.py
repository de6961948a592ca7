"""Scores of a run: what they are computed from, when they are computed again, and scores.csv."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tagmask.artifacts import write_json
from tagmask.compute import Compute
from tagmask.data.samples import PngMask, ReviewedMask, TaggedImages
from tagmask.errors import RunError
from tagmask.image_scores import SCORES_FILE, format_csv, sort_scores, update_image_scores
from tagmask.label_map import write_label_map
from tagmask.measure.image_score import ImageScore
from tagmask.progress import Reporter
from tests.report.fake_run import FakeRun, labels_up_to

METHODS = {"cam": "cam", "pseudo_masks": "pseudo_masks", "segment": "segment"}
MASKS = {"pseudo_masks": 11, "segment": 13}


def scores_of(run: FakeRun, stage: str | None = None, workers: int = 0) -> list[ImageScore]:
    compute = Compute(workers=workers)
    return update_image_scores(run.recipe, run.folder, run.images, compute, Reporter(None), stage=stage)


@pytest.fixture
def run(tmp_path: Path, toy_images: TaggedImages) -> FakeRun:
    return FakeRun(tmp_path / "run", toy_images, METHODS, {"cam": 4}, MASKS, {"pseudo_masks": {"threshold": 0.4}})


def test_the_masks_of_all_stages_are_compared(run: FakeRun) -> None:
    scores = scores_of(run)
    assert [score.image for score in scores] == [sample.id for sample in run.images.samples]
    # image 0 has one tag; of its 48 columns, the maps give it 16, the pseudo-masks 11 and the network 13
    assert scores[0].disagreement == pytest.approx(1 - (11 / 13 + 35 / 37) / 2)
    assert (scores[0].ambiguous, scores[0].class_overlap) == (0, 0)
    assert 0 < scores[0].color_contrast < 1
    assert scores[0].foreground == pytest.approx(13 / 48)
    assert scores[3].missing_tags == (2,)
    assert 0 < scores[0].miou < 1
    earlier = scores_of(run, "pseudo_masks")
    assert earlier[0].disagreement == scores[0].disagreement
    assert earlier[0].foreground == pytest.approx(11 / 48)


def test_worker_processes_give_the_same_scores(run: FakeRun) -> None:
    alone = format_csv(scores_of(run), run.images.classes)
    (run.folder.path / ".scores.json").unlink()
    assert format_csv(scores_of(run, workers=2), run.images.classes) == alone


def test_scores_are_computed_again_only_if_something_changed(run: FakeRun) -> None:
    first = scores_of(run)
    mask = run.folder.stage("segment").mask_path("0")
    write_label_map(mask, labels_up_to(40, (1,)))
    assert format_csv(scores_of(run), run.images.classes) == format_csv(first, run.images.classes)  # read, not computed
    stage = run.folder.stage("segment")
    write_json(stage.record_path, {"status": "done", "key": {"settings": {"lr": 1}}})
    assert scores_of(run)[0].foreground == pytest.approx(40 / 48)


def test_a_review_removes_the_doubt_and_scores_nothing_again(run: FakeRun) -> None:
    first = scores_of(run)
    write_label_map(run.folder.stage("segment").mask_path("0"), labels_up_to(40, (1,)))  # would change its score
    reviewed = {"0": ReviewedMask(PngMask(Path("0.png"))), "1": ReviewedMask(None)}
    samples = tuple(replace(sample, reviewed=reviewed.get(sample.id)) for sample in run.images.samples)
    run.images = replace(run.images, samples=samples)
    expected = [first[0]._replace(doubt=0.0), *first[1:]]
    assert first[0].doubt > 0
    assert format_csv(scores_of(run), run.images.classes) == format_csv(expected, run.images.classes)
    table = (run.folder.path / SCORES_FILE).read_text()
    assert table == format_csv(sort_scores(expected), run.images.classes)
    run.images = replace(run.images, samples=tuple(replace(sample, reviewed=None) for sample in samples))
    assert format_csv(scores_of(run), run.images.classes) == format_csv(first, run.images.classes)


@pytest.mark.parametrize("text", ["", "[]", '{"key": 1, "scores": []}', '{"key": "a", "scores": [["a", "b"]]}'])
def test_a_damaged_cache_is_replaced(run: FakeRun, text: str) -> None:
    expected = format_csv(scores_of(run), run.images.classes)
    (run.folder.path / ".scores.json").write_text(text)
    assert format_csv(scores_of(run), run.images.classes) == expected


def test_table_has_one_line_per_image_with_the_largest_doubt_first(run: FakeRun) -> None:
    scores_of(run)
    table = run.folder.path / SCORES_FILE
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 8
    doubts = [float(row["doubt"]) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    assert next(row for row in rows if row["image"] == "6")["missing_tags"] == "green; blue"
    before = table.read_bytes()
    table.unlink()
    scores_of(run)
    assert table.read_bytes() == before


def test_run_without_maps_or_threshold(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path / "run", toy_images, METHODS, {"cam": 4}, MASKS, {})
    score = scores_of(run)[0]
    assert math.isnan(score.ambiguous)
    assert score.doubt == pytest.approx((score.disagreement + 1 - score.color_contrast + score.border) / 4)


def test_threshold_per_image_grows_with_the_number_of_tags(tmp_path: Path, toy_images: TaggedImages) -> None:
    record: dict[str, object] = {"threshold": 0.7, "per_image": True}
    run = FakeRun(tmp_path / "run", toy_images, METHODS, {"cam": 4}, MASKS, {"pseudo_masks": record})
    scores = scores_of(run)
    assert (scores[0].ambiguous, scores[6].ambiguous) == (0, 1)  # the activation is 0.75; one tag, three tags


def test_a_stage_that_is_missing_or_not_finished(run: FakeRun, tmp_path: Path, toy_images: TaggedImages) -> None:
    with pytest.raises(RunError, match="has no masks of 'cam' to score"):
        scores_of(run, "cam")
    run.folder.stage("pseudo_masks").record_path.unlink()
    with pytest.raises(RunError, match=r"'pseudo_masks' of .* is not finished"):
        scores_of(run)
    with pytest.raises(RunError, match="has no masks to score"):
        scores_of(FakeRun(tmp_path / "maps", toy_images, {"cam": "cam"}, {"cam": 4}, {}, {}))


def test_a_mask_of_another_size_is_named(run: FakeRun) -> None:
    write_label_map(run.folder.stage("pseudo_masks").mask_path("0"), np.zeros((4, 4), np.uint8))
    with pytest.raises(RunError, match="the masks and maps of image 0 do not fit each other"):
        scores_of(run)


def test_sorting(run: FakeRun) -> None:
    scores = scores_of(run)
    assert [s.foreground for s in sort_scores(scores, "foreground")] == sorted(s.foreground for s in scores)
    assert len(sort_scores(scores, "missing_tags")[0].missing_tags) == 2
    with pytest.raises(RunError, match="no column 'mIoU' to sort by: did you mean 'miou'"):
        sort_scores(scores, "mIoU")
