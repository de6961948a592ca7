"""The tests write a finished run with known maps and masks, and check which of them the report shows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.report.fake_run import SIZE, FakeRun, labels_up_to, maps_up_to, write_stage_record

from tagmask.data.images import read_image
from tagmask.data.samples import PngMask, Problem, ReviewedMask, TaggedImages
from tagmask.data.tag_warnings import tag_warnings
from tagmask.evaluate import held_out_folder
from tagmask.judge import Recommendation
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure.image_score import ImageScore
from tagmask.report.collect import collect_report, collect_threshold_report, worst_examples
from tagmask.report.content import Example
from tagmask.report.drawing import draw_mask, resize_picture
from tagmask.report.examples import ExampleStages, draw_maps, relative_path
from tagmask.report.page import render
from tagmask.report.sections import map_rows


def check_pictures(run: FakeRun, example: Example, **foreground: int) -> None:
    """Check that the column "map" shows maps that are foreground up to this column, the others such masks."""
    sample = next(sample for sample in run.images.samples if sample.id == example.id)
    image, tags = read_image(sample.image), sample.tags or ()
    for column, end in foreground.items():
        shown = example.pictures[column.replace("_", " ")]
        if column == "map":
            maps = maps_up_to(end, tags)
            assert [picture.class_id for picture in shown] == list(tags)
            for k, picture in enumerate(shown):
                own = ResponseMaps(maps.classes[k : k + 1], maps.maps[k : k + 1], SIZE)
                np.testing.assert_array_equal(picture.pixels, resize_picture(np.array(own.figure(image))))
        else:
            np.testing.assert_array_equal(shown[0].pixels, draw_mask(image, labels_up_to(end, tags)), err_msg=column)


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
        check_pictures(run, example, map=4, cut_map=16, refined=11, final=13)
    assert report.thresholds == {"cam (toy)": 0.4}
    assert report.columns == {
        "image": "",
        "map": "response maps of cam; red is the strongest activation",
        "cut map": "maps of cam, cut at the threshold 0.40",
        "refined": "masks of pseudo_masks",
        "final": "masks of segment",
        "ground truth": "the correct mask, given for comparison",
    }


def test_masks_of_masks_show_the_maps_of_the_first_masks(tmp_path: Path, toy_images: TaggedImages) -> None:
    """The network was trained on the masks of cam's maps, although infercam made other maps before."""
    methods = {"cam": "cam", "pseudo_masks": "pseudo_masks", "later": "infercam", "segment": "segment"}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "later": 8}, MASKS, CUT)
    check_pictures(run, run.report().examples[0], map=4, cut_map=16, refined=11, final=13)


def test_random_walk_maps_are_shown(tmp_path: Path, toy_images: TaggedImages) -> None:
    """IRN makes maps of cam's maps, and the masks are cut from IRN's maps."""
    methods = {"cam": "cam", "irn": "irn", "pseudo_masks": "pseudo_masks", "segment": "segment"}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4, "irn": 8}, MASKS, CUT)
    report = run.report()
    check_pictures(run, report.examples[0], map=8, cut_map=32, refined=11, final=13)
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
    check_pictures(run, report.examples[0], map=8, cut_map=33, refined=13, final=17)
    assert report.thresholds == {"cam (toy)": 0.4, "later (toy)": 0.2}


def test_threshold_per_image_is_not_shown_as_one_threshold(tmp_path: Path, toy_images: TaggedImages) -> None:
    record: dict[str, object] = {"threshold": 0.4, "per_image": True}
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, {"pseudo_masks": record})
    report = run.report()
    [row] = map_rows(report.maps, report.thresholds)
    assert row.name == "cam (toy)"
    assert row.per_image
    assert math.isnan(row.threshold)
    assert math.isnan(row.miou)
    assert not math.isnan(report.maps["cam (toy)"].auto_threshold)
    check_pictures(run, report.examples[0], map=4, refined=11, final=13)
    assert "cut map" not in report.columns
    assert "cut map" not in report.examples[0].pictures


def test_seed_of_an_earlier_stage_than_the_threshold_per_image(tmp_path: Path, toy_images: TaggedImages) -> None:
    methods = {**FIRST, "own": "pseudo_masks"}
    thresholds: dict[str, dict[str, object]] = {**CUT, "own": {"threshold": 0.2, "per_image": True}}
    run = FakeRun(tmp_path, toy_images, methods, {"cam": 4}, {**MASKS, "own": 17}, thresholds)
    assert run.report().thresholds == {"cam (toy)": pytest.approx(0.4)}
    check_pictures(run, run.report().examples[0], map=4, cut_map=16, refined=13, final=17)


def test_run_of_maps_alone(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, {"cam": "cam", "later": "infercam"}, {"cam": 4, "later": 8}, {}, {})
    report = run.report()
    check_pictures(run, report.examples[0], map=8)
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
    assert [example.id for example in examples] == ["0", "1", "3", "4"]
    for example in examples:
        check_pictures(run, example, final=5)
        assert set(example.pictures) == {"image", "final", "ground truth"}
    stage = report.stages[-1]
    assert (stage.name, stage.inputs, stage.num_images) == ("held-out images", {"segmenter": "segment"}, 6)


def test_notes(tmp_path: Path, toy_images: TaggedImages) -> None:
    samples = tuple(replace(sample, mask=None) for sample in toy_images.samples)
    problem = Problem("cat.jpg", "is empty", "remove it")
    images = replace(toy_images, samples=samples, problems=(problem,))
    report = FakeRun(tmp_path, images, FIRST, {"cam": 4}, MASKS, CUT).report()
    assert report.notes == [
        f"Run folder {tmp_path}. Seed 0. Versions: torch 2.6.",
        "The training images have no ground truth, so the quality of their masks is unknown.",
        "No held-out images were given, so the quality of the network on new images is unknown.",
        "1 bad image was left out: cat.jpg: is empty; remove it.",
    ]
    assert [example.note[:5] for example in report.worst] == ["doubt"] * 6
    assert "ground truth" not in report.examples[0].pictures
    page = render(report)
    assert "Images to look at first" in page
    assert "Worst images" not in page


def test_reviewed_masks_are_counted(tmp_path: Path, toy_images: TaggedImages) -> None:
    reviews = {"0": ReviewedMask(PngMask(tmp_path / "0.png"), "digest"), "1": ReviewedMask(None)}
    samples = tuple(replace(sample, reviewed=reviews.get(sample.id)) for sample in toy_images.samples)
    report = FakeRun(tmp_path, replace(toy_images, samples=samples), FIRST, {"cam": 4}, MASKS, CUT).report()
    assert report.counts["reviewed masks"] == 1
    assert report.notes[1].startswith("Reviewed masks: 1 of 8.")


def test_report_of_a_run_that_has_not_finished(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, CUT)
    run.folder.stage("segment").record_path.unlink()
    assert [stage.status for stage in run.report().stages] == ["done", "done", "not started"]
    assert "(not started)" in render(run.report())


def test_threshold_report(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, CUT)
    report = collect_threshold_report(run.recipe, run.folder, toy_images, run.evaluation())
    assert report.title == f"{tmp_path.name}: thresholds"
    assert set(report.maps) == {"cam (toy)"}
    assert len(report.examples) == len(report.scores) == len(report.stages) == 0
    html = render(report)
    assert 'id="threshold"' in html
    assert "tagmask learned from 8 images and their tags" in html


def test_the_worst_images_are_searched_among_all(tmp_path: Path, toy_images: TaggedImages) -> None:
    sample = toy_images.samples[0]
    samples = [replace(sample, id=f"{n:04}") for n in range(2100)]
    scores = [
        ImageScore(s.id, n / 2100, 0.5, 0.5, 0.0, 0.0, 0.0, 0.5, (), 1, 0, 1 - n / 2100) for n, s in enumerate(samples)
    ]
    images = replace(toy_images, samples=tuple(samples[-10:]))
    run = FakeRun(tmp_path, images, FIRST, {"cam": 4}, MASKS, CUT)
    images = replace(toy_images, samples=tuple(samples))
    stages = ExampleStages.of_run(run.recipe, run.folder)
    worst = worst_examples(stages, images, scores)
    assert [example.id for example in worst] == ["2099", "2098", "2097", "2096", "2095", "2094"]
    assert worst[0].note == "mIoU 0.0 %"
    unmeasured = [score._replace(miou=math.nan) for score in scores]
    assert [e.id for e in worst_examples(stages, images, unmeasured)] == [e.id for e in worst]


def test_links_are_relative_to_the_run_folder(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path / "run", toy_images, FIRST, {"cam": 4}, MASKS, CUT)
    report = run.report()
    pictures = report.examples[0].pictures
    assert pictures["final"][0].file == "segment/masks/0.png"
    assert pictures["map"][0].file == "cam/maps/0.safetensors"
    for column in ("image", "ground truth", "refined"):
        assert (run.folder.path / pictures[column][0].file).is_file()
    for path in report.outputs.values():
        assert not Path(path).is_absolute()
    assert report.outputs["Masks of segment"] == "segment/masks"
    assert relative_path("s3://bucket/a.jpg", tmp_path) == ""


def test_many_tags_show_the_strongest_maps() -> None:
    maps = np.linspace(1, 0.1, 9, dtype=np.float32)[[3, 0, 8, 1, 7, 2, 6, 4, 5], None, None] * np.ones((9, 10, 12))
    pictures = draw_maps(np.zeros((*SIZE, 3), np.uint8), ResponseMaps(np.arange(1, 10), maps, SIZE), "file")
    assert [picture.class_id for picture in pictures] == [1, 2, 4, 6, 8, 9]


def test_data_warnings(tmp_path: Path, toy_images: TaggedImages) -> None:
    report = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, CUT).report()
    assert report.warnings == tag_warnings(toy_images)
    assert report.warnings  # of a set of eight images


def test_recommended_stage(tmp_path: Path, toy_images: TaggedImages) -> None:
    run = FakeRun(tmp_path, toy_images, FIRST, {"cam": 4}, MASKS, CUT)
    recommendation = Recommendation(stage="pseudo_masks", reason="the network is bad", keys={"pseudo_masks": ""})
    report = collect_report(run.recipe, run.folder, toy_images, None, run.evaluation(), (), recommendation)
    assert report.recommended == "pseudo_masks"
    assert report.recommendation == "Recommended masks: those of the stage pseudo_masks (the network is bad)."
    assert report.columns["refined"] == "masks of pseudo_masks, recommended"
    assert "mIoU of pseudo_masks (toy)" in render(report)
