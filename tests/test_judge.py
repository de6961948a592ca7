"""The recommended stage, on synthetic masks of networks that are good, blurred or degenerate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

import tagmask
import tagmask.judge
from tagmask.artifacts import write_json
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import RunError
from tagmask.judge import Recommendation, compare_masks, recommend_stage
from tagmask.label_map import IGNORE_INDEX, read_label_map, write_label_map
from tagmask.recipe import Recipe, load_recipe, recipe_with_stage
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder, StageRecord
from tests.runs import toy_run, write_toy

CLASSES = ("cat", "dog", "cow")
RECIPE = load_recipe("scratch", ["segment.class_balance=0"])
IMAGES = TaggedImages(CLASSES, tuple(Sample(f"{i}", f"{i}.jpg", (1 + i % 3,), size=(60, 80)) for i in range(12)))
Masks = Callable[[int], np.ndarray]


def teacher(number: int) -> np.ndarray:
    """A rectangle of the image's class."""
    labels = np.zeros((60, 80), np.uint8)
    labels[10 + number : 40, 20 : 50 + number] = 1 + number % 3
    return labels


def without_third_class(number: int) -> np.ndarray:
    labels = teacher(number)
    labels[labels == 3] = 0
    return labels


def only_background(number: int) -> np.ndarray:
    return np.zeros((60, 80), np.uint8)


def only_ignored(number: int) -> np.ndarray:
    return np.full((60, 80), IGNORE_INDEX, np.uint8)


def over_the_whole_image(number: int) -> np.ndarray:
    return np.full((60, 80), 1 + number % 3, np.uint8)


def with_halo(number: int) -> np.ndarray:
    return (binary_dilation(teacher(number) > 0, iterations=2) * (1 + number % 3)).astype(np.uint8)


def slightly_moved(number: int) -> np.ndarray:
    return np.roll(teacher(number), 1, axis=1)


def write_stage(folder: RunFolder, name: str, masks: Masks, key: str = "") -> None:
    write_json(folder.stage(name).record_path, StageRecord(status="done", key={"of": key or name}).model_dump())
    for number, sample in enumerate(IMAGES.samples):
        write_label_map(folder.stage(name).mask_path(sample.id), masks(number))


def recommend(tmp_path: Path, network: Masks, recipe: Recipe | None = None) -> Recommendation:
    folder = RunFolder(tmp_path)
    write_stage(folder, "pseudo_masks", teacher)
    write_stage(folder, "segment", network)
    recommendation = recommend_stage(recipe or RECIPE, folder, IMAGES)
    assert recommendation is not None
    return recommendation


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (without_third_class, "the network of segment has not learned cow, and agrees with pseudo_masks there in 0 %"),
        (only_background, "has not learned cat, dog, cow, and agrees with pseudo_masks there in at most 0 %"),
        (only_ignored, "has not learned cat, dog, cow"),
        (over_the_whole_image, "has not learned cat, dog, cow"),
    ],
)
def test_pseudo_masks_are_better_than_a_degenerate_network(tmp_path: Path, network: Masks, reason: str) -> None:
    recommendation = recommend(tmp_path, network)
    assert recommendation.stage == "pseudo_masks"
    assert recommendation.undertrained
    assert reason in recommendation.reason
    assert recommendation.reason.endswith(
        "; train it longer and with more weight for rare classes, e.g. --redo --set segment.epochs=20 "
        "--set segment.class_balance=0.5"
    )


@pytest.mark.parametrize("network", [teacher, slightly_moved, with_halo])
def test_a_network_that_agrees_with_its_pseudo_masks_is_better(tmp_path: Path, network: Masks) -> None:
    recommendation = recommend(tmp_path, network)
    assert recommendation.stage == "segment"
    assert not recommendation.undertrained
    assert recommendation.agreement is not None
    assert recommendation.agreement > 0.8


def test_the_agreement_is_the_mean_iou_with_the_pseudo_masks(tmp_path: Path) -> None:
    recommendation = recommend(tmp_path, only_background)
    share_of_background = np.mean([teacher(number) == 0 for number in range(12)])
    assert recommendation.agreement == pytest.approx(share_of_background / 4)


def test_ignored_pixels_of_the_pseudo_masks_do_not_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_stage(
        folder,
        "pseudo_masks",
        lambda number: np.where(over_the_whole_image(number) != teacher(number), IGNORE_INDEX, teacher(number)).astype(
            np.uint8
        ),
    )
    write_stage(folder, "segment", over_the_whole_image)
    recommendation = recommend_stage(RECIPE, folder, IMAGES)
    assert recommendation is not None
    assert recommendation.stage == "segment"
    assert recommendation.agreement == 1


def test_masks_that_ignore_everything_cannot_be_compared(tmp_path: Path) -> None:
    write_stage(RunFolder(tmp_path), "pseudo_masks", only_ignored)
    write_stage(RunFolder(tmp_path), "segment", slightly_moved)
    recommendation = recommend_stage(RECIPE, RunFolder(tmp_path), IMAGES)
    assert recommendation is not None
    assert (recommendation.stage, recommendation.agreement) == ("segment", None)


def test_a_chain_of_networks_is_followed_to_the_first_good_masks(tmp_path: Path) -> None:
    recipe = RECIPE
    recipe = recipe_with_stage(
        recipe, "segment", ["inputs={masks: segment}", "steps=100", "class_balance=0.5"], name="second"
    )
    write_stage(RunFolder(tmp_path), "second", only_background)
    first_is_good = recommend(tmp_path, slightly_moved, recipe)
    assert first_is_good.stage == "segment"
    assert first_is_good.undertrained  # the last network
    assert first_is_good.reason.endswith("; train it longer, e.g. --redo --set second.steps=200")
    assert recommend(tmp_path, over_the_whole_image, recipe).stage == "pseudo_masks"


def test_changed_masks_of_a_network_stand_or_fall_with_it(tmp_path: Path) -> None:
    recipe = recipe_with_stage(RECIPE, "regions", ["vote_on=masks"])
    write_stage(RunFolder(tmp_path), "regions", with_halo)
    good = recommend(tmp_path, slightly_moved, recipe)
    assert good.stage == "regions"
    assert good.reason.startswith("the network of segment agrees with pseudo_masks, from which it learned, in ")
    bad = recommend(tmp_path, only_background, recipe)
    assert (bad.stage, bad.undertrained) == ("pseudo_masks", True)
    assert "the network of segment has not learned" in bad.reason


def test_without_a_network_the_last_masks_are_recommended(tmp_path: Path) -> None:
    recipe = recipe_with_stage(RECIPE, "pseudo_masks", name="new_masks")
    write_stage(RunFolder(tmp_path), "new_masks", only_background)
    recommendation = recommend(tmp_path, with_halo, recipe)
    assert recommendation.stage == "new_masks"
    assert recommendation.agreement is None
    assert not recommendation.undertrained


def test_a_recipe_without_masks_has_no_recommendation(tmp_path: Path) -> None:
    recipe = Recipe(stages={"cam": RECIPE.stages["cam"]})
    assert recommend_stage(recipe, RunFolder(tmp_path), IMAGES) is None


def test_nothing_is_compared_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recommendation = recommend(tmp_path, without_third_class)
    folder = RunFolder(tmp_path)
    write_json(folder.recommendation_path, recommendation.model_dump(mode="json"))
    with monkeypatch.context() as patch:
        patch.setattr(tagmask.judge, "compare_masks", None)
        assert recommend_stage(RECIPE, folder, IMAGES) == recommendation
    write_stage(folder, "segment", slightly_moved, key="trained longer")
    changed = recommend_stage(RECIPE, folder, IMAGES)
    assert changed is not None
    assert changed.stage == "segment"


def test_masks_of_another_size_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be compared"):
        recommend(tmp_path, lambda number: np.zeros((30, 40), np.uint8))


def test_a_damaged_recommendation_is_an_error(tmp_path: Path) -> None:
    for damaged in ({"stage": "segment"}, {"stage": "../../other", "reason": "", "keys": {"segment": "0"}}):
        write_json(tmp_path / "recommendation.json", damaged)
        with pytest.raises(RunError, match="is damaged"):
            Recommendation.read_if_any(RunFolder(tmp_path))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tagmask.Run:
    return toy_run(write_toy(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("runs") / "run")


def test_a_run_follows_the_recommendation(run: tagmask.Run, tmp_path: Path) -> None:
    recommendation = run.recommendation
    assert recommendation is not None
    assert run.recommended_stage == recommendation.stage
    for stage in ("segment", "pseudo_masks"):
        chosen = Recommendation(stage=stage, reason="chosen by the test", keys=recommendation.keys)
        write_json(run.folder / "recommendation.json", chosen.model_dump(mode="json"))
        assert run.recommended_stage == stage
        assert run.masks_dir == run.folder / stage / "masks"
        assert run.mask_path("3") == run.folder / stage / "masks" / "3.png"
        np.testing.assert_array_equal(run.load_mask("3"), read_label_map(run.folder / stage / "masks" / "3.png"))
        exported = run.export(tmp_path / stage, quiet=True)
        np.testing.assert_array_equal(read_label_map(exported / "masks" / "3.png"), run.load_mask("3"))
    write_json(run.folder / "recommendation.json", recommendation.model_dump(mode="json"))


def test_a_recommendation_of_other_masks_is_not_followed(run: tagmask.Run) -> None:
    recommendation = run.recommendation
    assert recommendation is not None
    stale = Recommendation(
        stage="pseudo_masks", reason="", keys={**recommendation.keys, "segment": "of other settings"}
    )
    write_json(run.folder / "recommendation.json", stale.model_dump(mode="json"))
    assert run.recommendation is None
    assert run.recommended_stage == "segment"
    run.update_report(quiet=True)
    assert run.recommendation == recommendation


def test_a_few_lost_classes_of_many_do_not_matter(tmp_path: Path) -> None:
    """One class of 3 is too many, one of 30 is not; a class of two images is not judged."""

    def masks(folder: str, num_classes: int, images_per_class: int, lost: int) -> list[Sample]:
        samples = []
        for number in range(num_classes * images_per_class):
            labels = np.full((4, 5), 1 + number % num_classes, np.uint8)
            labels[0] = 0
            for name, made in (("teacher", labels), ("network", np.where(labels == lost, 0, labels))):
                write_label_map(StageFolder(tmp_path / folder / name).mask_path(f"{number}"), made)
            samples.append(Sample(f"{number}", f"{number}.jpg", ()))
        return samples

    for folder, num_classes, images_per_class, is_worse in (("a", 3, 3, True), ("b", 30, 3, False), ("c", 3, 2, False)):
        samples = masks(folder, num_classes, images_per_class, lost=2)
        network, teacher = (StageFolder(tmp_path / folder / name) for name in ("network", "teacher"))
        names = [f"class {k}" for k in range(1, num_classes + 1)]
        comparison = compare_masks(samples, network, teacher, names)
        assert comparison.is_worse == is_worse
        assert comparison.lost == ({"class 2": 0.0} if images_per_class >= 3 else {})
