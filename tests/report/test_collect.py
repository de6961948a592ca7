"""What the report shows of a run: figures and pictures of the stages that they are said to be of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tagmask.artifacts import write_json
from tagmask.compute import Compute
from tagmask.data.images import read_image
from tagmask.data.samples import TaggedImages
from tagmask.evaluate import Evaluation, evaluate_run
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.outputs.overlays import overlay
from tagmask.pipeline import RECORD
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.report.collect import collect_report
from tagmask.report.page import Example, Report
from tagmask.report.sections import map_results
from tagmask.stage import maps_path, mask_path

SIZE = (40, 48)


def maps_up_to(column: int, tags: tuple[int, ...]) -> ResponseMaps:
    """Activation 0.75 left of a column (of the 10×12 cells) for the first tag, and nothing else."""
    maps = np.zeros((len(tags), 10, 12), np.float32)
    maps[:1, :, :column] = 0.75
    return ResponseMaps(np.array(tags, int), maps, SIZE)


def labels_up_to(column: int, tags: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[:, :column] = tags[0] if tags else 0
    return labels


class FakeRun:
    """A finished run: `maps` and `masks` say for each stage how far left its maps and masks are foreground."""

    def __init__(
        self,
        folder: Path,
        images: TaggedImages,
        methods: dict[str, str],
        maps: dict[str, int],
        masks: dict[str, int],
        thresholds: dict[str, dict[str, object]],
    ) -> None:
        self.folder, self.images = folder, images
        self.recipe = Recipe.model_validate({"stages": {name: {"method": method} for name, method in methods.items()}})
        for name in methods:
            write_json(folder / name / RECORD, {"status": "done", "versions": {}})
            for sample in images.samples:
                tags = sample.tags or ()
                if name in maps:
                    maps_up_to(maps[name], tags).save(maps_path(folder / name, sample))
                if name in masks:
                    write_label_map(mask_path(folder / name, sample), labels_up_to(masks[name], tags))
        for name, kept in thresholds.items():
            write_json(folder / name / "threshold.json", kept)

    def evaluation(self) -> Evaluation:
        return evaluate_run(self.recipe, self.folder, self.images, None, Compute(), Reporter(None))

    def report(self) -> Report:
        return collect_report(self.recipe, self.folder, self.images, None, self.evaluation())

    def check(self, example: Example, **foreground: int) -> None:
        """That these columns show a mask that is foreground up to there, and the column "map" such maps."""
        sample = next(s for s in self.images.samples if s.id == example.id)
        image, tags = read_image(sample.image), sample.tags or ()
        for column, end in foreground.items():
            if column == "map":
                expected = np.array(maps_up_to(end, tags).figure(image))
            else:
                expected = overlay(image, labels_up_to(end, tags))
            np.testing.assert_array_equal(example.columns[column], expected, err_msg=column)


FIRST = {"cam": "cam", "crf": "crf", "segment": "segment"}
MASKS = {"crf": 11, "segment": 13}


def test_maps_that_no_mask_is_from_are_not_shown_beside_the_masks(tmp_path: Path, toy_images: TaggedImages) -> None:
    """As after `Run.add("infercam")`."""
    methods = {**FIRST, "later": "infercam"}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "later": 8}, MASKS, {"crf": {"threshold": 0.4}})
    report = run.report()
    assert len(report.examples) == 7  # of the images with tags
    for example in [*report.examples, *report.worst]:
        run.check(example, map=4, seed=16, refined=11, final=13)
    assert report.chosen == {"cam (toy)": 0.4}


def test_masks_from_masks_are_from_the_maps_of_those(tmp_path: Path, toy_images: TaggedImages) -> None:
    """The network learnt from cam's masks, though other maps were made in between; the seeds are cam's as well."""
    methods = {"cam": "cam", "crf": "crf", "later": "infercam", "segment": "segment"}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "later": 8}, MASKS, {"crf": {"threshold": 0.4}})
    run.check(run.report().examples[0], map=4, seed=16, refined=11, final=13)


def test_later_masks_from_other_maps(tmp_path: Path, toy_images: TaggedImages) -> None:
    methods = {**FIRST, "later": "infercam", "again": "crf"}
    thresholds: dict[str, dict[str, object]] = {"crf": {"threshold": 0.4}, "again": {"threshold": 0.2}}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "later": 8}, {**MASKS, "again": 17}, thresholds)
    report = run.report()
    run.check(report.examples[0], map=8, seed=33, refined=13, final=17)
    assert report.chosen == {"cam (toy)": 0.4, "later (toy)": 0.2}


def test_a_threshold_for_each_image_is_not_shown_as_one_for_all(tmp_path: Path, toy_images: TaggedImages) -> None:
    kept = {"threshold": 0.4, "per_image": True}
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, {"crf": kept})
    assert run.evaluation().chosen == {}
    report = run.report()
    [row] = map_results(report)
    assert row.name == "cam (toy)"
    assert math.isnan(row.chosen)
    assert math.isnan(row.miou)
    assert not math.isnan(report.maps["cam (toy)"].auto)
    run.check(report.examples[0], map=4, refined=11, final=13)
    assert "seed" not in report.examples[0].columns


def test_the_threshold_for_all_stays_where_each_image_has_one_later(tmp_path: Path, toy_images: TaggedImages) -> None:
    methods = {**FIRST, "own": "per_image"}
    thresholds: dict[str, dict[str, object]] = {
        "crf": {"threshold": 0.4},
        "own": {"threshold": 0.2, "per_image": True},
    }
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4}, {**MASKS, "own": 17}, thresholds)
    report = run.report()
    run.check(report.examples[0], map=4, seed=16, refined=13, final=17)
    assert report.chosen == run.evaluation().chosen == {"cam (toy)": pytest.approx(0.4)}


def test_maps_alone(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, {"cam": "cam", "later": "infercam"}, {"cam": 4, "later": 8}, {}, {})
    report = run.report()
    run.check(report.examples[0], map=8)
    assert set(report.examples[0].columns) == {"image", "map", "truth"}
    assert report.worst == []
    assert report.chosen == {}
