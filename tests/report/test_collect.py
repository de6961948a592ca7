"""The tests write a finished run with known maps and masks, and check which of them the report shows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tagmask.artifacts import write_json
from tagmask.compute import Compute
from tagmask.data.images import read_image
from tagmask.data.samples import Problem, TaggedImages
from tagmask.evaluate import Evaluation, evaluate_run, held_out_folder
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.outputs.overlays import overlay
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.report.collect import collect_report, collect_threshold_report
from tagmask.report.content import Example, Report
from tagmask.report.page import render
from tagmask.report.sections import map_rows
from tagmask.run_folder import RunFolder, StageFolder

SIZE = (40, 48)


def maps_up_to(column: int, tags: tuple[int, ...]) -> ResponseMaps:
    """Return maps whose first class has activation 0.75 left of a column (of the 10×12 cells); all else is 0."""
    maps = np.zeros((len(tags), 10, 12), np.float32)
    maps[:1, :, :column] = 0.75
    return ResponseMaps(np.array(tags, int), maps, SIZE)


def labels_up_to(column: int, tags: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[:, :column] = tags[0] if tags else 0
    return labels


def write_stage_record(stage: StageFolder, num_images: int = 8) -> None:
    record = {"status": "done", "key": {}, "versions": {"torch": "2.6"}, "seconds": 4.0, "num_images": num_images}
    write_json(stage.record_path, record)


class FakeRun:
    """A finished run.

    Args:
        folder: where to write it.
        images: the training images.
        methods: the method of each stage.
        maps: for each stage that makes maps, the column up to which they are foreground.
        masks: for each stage that makes masks, the column up to which they are foreground.
        thresholds: for each stage that cuts maps, its threshold.json.
    """

    def __init__(
        self,
        folder: Path,
        images: TaggedImages,
        methods: dict[str, str],
        maps: dict[str, int],
        masks: dict[str, int],
        thresholds: dict[str, dict[str, object]],
    ) -> None:
        self.folder, self.images = RunFolder(folder), images
        self.recipe = Recipe.model_validate({"stages": {name: {"method": method} for name, method in methods.items()}})
        for name in methods:
            stage = self.folder.stage(name)
            write_stage_record(stage)
            for sample in images.samples:
                tags = sample.tags or ()
                if name in maps:
                    maps_up_to(maps[name], tags).save(stage.maps_path(sample.id))
                if name in masks:
                    write_label_map(stage.mask_path(sample.id), labels_up_to(masks[name], tags))
            if name in thresholds:
                write_json(stage.threshold_path, thresholds[name])

    def evaluation(self) -> Evaluation:
        return evaluate_run(self.recipe, self.folder, self.images, None, Compute(), Reporter(None))

    def report(self, held_out: TaggedImages | None = None) -> Report:
        return collect_report(self.recipe, self.folder, self.images, held_out, self.evaluation())

    def check_pictures(self, example: Example, **foreground: int) -> None:
        """Check that the column "map" shows maps that are foreground up to this column, the others such masks."""
        sample = next(sample for sample in self.images.samples if sample.id == example.id)
        image, tags = read_image(sample.image), sample.tags or ()
        for column, end in foreground.items():
            if column == "map":
                expected = np.array(maps_up_to(end, tags).figure(image))
            else:
                expected = overlay(image, labels_up_to(end, tags))
            np.testing.assert_array_equal(example.pictures[column.replace("_", " ")], expected, err_msg=column)


FIRST = {"cam": "cam", "pseudo_masks": "pseudo_masks", "segment": "segment"}
MASKS = {"pseudo_masks": 11, "segment": 13}
CUT: dict[str, dict[str, object]] = {"pseudo_masks": {"threshold": 0.4}}


def test_maps_without_masks_are_not_shown_beside_other_masks(tmp_path: Path, toy_images: TaggedImages) -> None:
    """`Run.run_stage("infercam")` adds maps to a finished run."""
    methods = {**FIRST, "later": "infercam"}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "later": 8}, MASKS, CUT)
    report = run.report()
    assert len(report.examples) == 7  # the images with tags
    for example in [*report.examples, *report.worst]:
        run.check_pictures(example, map=4, cut_map=16, refined=11, final=13)
    assert report.thresholds == {"cam (toy)": 0.4}
    assert report.columns == {
        "image": "",
        "map": "response maps of cam; red is the strongest activation",
        "cut map": "maps of cam, cut at the threshold 0.40",
        "refined": "masks of pseudo_masks",
        "final": "masks of segment, the result",
        "ground truth": "the correct mask, given for comparison",
    }


def test_masks_of_masks_show_the_maps_of_the_first_masks(tmp_path: Path, toy_images: TaggedImages) -> None:
    """The network was trained on the masks of cam's maps, although infercam made other maps before."""
    methods = {"cam": "cam", "pseudo_masks": "pseudo_masks", "later": "infercam", "segment": "segment"}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "later": 8}, MASKS, CUT)
    run.check_pictures(run.report().examples[0], map=4, cut_map=16, refined=11, final=13)


def test_random_walk_maps_are_shown(tmp_path: Path, toy_images: TaggedImages) -> None:
    """IRN makes maps of cam's maps, and the masks are cut from IRN's maps."""
    methods = {"cam": "cam", "irn": "irn", "pseudo_masks": "pseudo_masks", "segment": "segment"}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "irn": 8}, MASKS, CUT)
    report = run.report()
    run.check_pictures(report.examples[0], map=8, cut_map=32, refined=11, final=13)
    assert report.thresholds == {"irn (toy)": 0.4}
    assert {stage.name: stage.inputs for stage in report.stages} == {
        "cam": {},
        "irn": {"maps": "cam", "classifier": "cam"},
        "pseudo_masks": {"maps": "irn"},
        "segment": {"masks": "pseudo_masks", "classifier": "cam"},
    }


def test_later_masks_of_other_maps(tmp_path: Path, toy_images: TaggedImages) -> None:
    methods = {**FIRST, "later": "infercam", "again": "pseudo_masks"}
    thresholds: dict[str, dict[str, object]] = {**CUT, "again": {"threshold": 0.2}}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "later": 8}, {**MASKS, "again": 17}, thresholds)
    report = run.report()
    run.check_pictures(report.examples[0], map=8, cut_map=33, refined=13, final=17)
    assert report.thresholds == {"cam (toy)": 0.4, "later (toy)": 0.2}


def test_threshold_per_image_is_not_shown_as_one_threshold(tmp_path: Path, toy_images: TaggedImages) -> None:
    record = {"threshold": 0.4, "per_image": True}
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, {"pseudo_masks": record})
    report = run.report()
    [row] = map_rows(report.maps, report.thresholds)
    assert row.name == "cam (toy)"
    assert row.per_image
    assert math.isnan(row.threshold)
    assert math.isnan(row.miou)
    assert not math.isnan(report.maps["cam (toy)"].auto_threshold)
    run.check_pictures(report.examples[0], map=4, refined=11, final=13)
    assert "cut map" not in report.columns
    assert "cut map" not in report.examples[0].pictures


def test_seed_of_an_earlier_stage_than_the_threshold_per_image(tmp_path: Path, toy_images: TaggedImages) -> None:
    methods = {**FIRST, "own": "pseudo_masks"}
    thresholds: dict[str, dict[str, object]] = {**CUT, "own": {"threshold": 0.2, "per_image": True}}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4}, {**MASKS, "own": 17}, thresholds)
    assert run.report().thresholds == {"cam (toy)": pytest.approx(0.4)}
    run.check_pictures(run.report().examples[0], map=4, cut_map=16, refined=13, final=17)


def test_run_of_maps_alone(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, {"cam": "cam", "later": "infercam"}, {"cam": 4, "later": 8}, {}, {})
    report = run.report()
    run.check_pictures(report.examples[0], map=8)
    assert set(report.examples[0].pictures) == {"image", "map", "ground truth"}
    assert report.worst == []
    assert report.thresholds == {}


def test_held_out_images(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, CUT)
    held_out = replace(toy_images, samples=toy_images.samples[:6], name="val")
    assert run.report(held_out).stages[-1].status == "not started"
    masks = held_out_folder(run.folder, held_out)
    for sample in held_out.samples:
        write_label_map(masks.mask_path(sample.id), labels_up_to(5, sample.tags or ()))
    write_stage_record(masks, num_images=6)
    report = run.report(held_out)
    assert report.counts == {
        "training images": 8, "classes": 3, "held-out images": 6, "images without a tag": 1
    }  # fmt: skip
    examples = [example for example in report.examples if "held-out" in example.note]
    assert [example.id for example in examples] == ["0", "2", "3", "5"]
    for example in examples:
        run.check_pictures(example, final=5)
        assert set(example.pictures) == {"image", "final", "ground truth"}
    stage = report.stages[-1]
    assert (stage.name, stage.inputs, stage.num_images) == ("held-out images", {"segmenter": "segment"}, 6)


def test_notes(tmp_path: Path, toy_images: TaggedImages) -> None:
    samples = tuple(replace(sample, mask=None) for sample in toy_images.samples)
    problem = Problem("cat.jpg", "is empty", "remove it")
    images = replace(toy_images, samples=samples, problems=(problem,))
    report = FakeRun(tmp_path, images, FIRST, {"cam": 4}, MASKS, CUT).report()
    assert report.notes == [
        "Seed 0. Versions: torch 2.6.",
        "The training images have no ground truth, so the quality of their masks is unknown.",
        "No held-out images were given, so the quality of the network on new images is unknown.",
        "1 bad image was left out: cat.jpg: is empty; remove it.",
    ]
    assert report.worst == []
    assert "ground truth" not in report.examples[0].pictures


def test_report_of_a_run_that_has_not_finished(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, CUT)
    run.folder.stage("segment").record_path.unlink()
    assert [stage.status for stage in run.report().stages] == ["done", "done", "not started"]
    assert "(not started)" in render(run.report())


def test_threshold_report(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, CUT)
    report = collect_threshold_report(run.recipe, run.folder, run.evaluation())
    assert report.title == f"{tmp_path.name}: thresholds"
    assert set(report.maps) == {"cam (toy)"}
    assert len(report.examples) == len(report.scores) == len(report.stages) == 0
    assert 'id="threshold"' in render(report)
