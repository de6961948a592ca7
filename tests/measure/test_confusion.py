import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from tagmask.measure import SegmentationScores, confusion_matrix, iou, mean_iou

TRUTH = np.array([[0, 1], [1, 255]], np.uint8)
PREDICTION = np.array([[0, 1], [255, 0]], np.uint8)


def label_maps(seed: int, n: int, shape: tuple[int, int] = (23, 31)) -> tuple[np.ndarray, np.ndarray]:
    """Two random label maps of 0..n and 255; not every class is in them."""
    rng = np.random.default_rng(seed)
    values = np.append(rng.choice(n + 1, size=rng.integers(1, n + 2)), 255).astype(np.uint8)
    return rng.choice(values, shape), rng.choice(values, shape)


def test_two_by_two_by_hand() -> None:
    # Known: bg right, class 1 right once, unsure once. The pixel with truth 255 counts nowhere.
    confusion = confusion_matrix(TRUTH, PREDICTION, 2)
    assert confusion.tolist() == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(iou(confusion), [1, 1 / 2, np.nan])
    assert mean_iou(iou(confusion)) == 0.75

    scores = SegmentationScores(2, boundary=False)
    scores.update(TRUTH, PREDICTION)
    report = scores.compute()
    assert (report.miou, report.pixel_accuracy, report.unsure) == (0.75, 2 / 3, 1 / 3)
    assert np.isnan(report.boundary_f)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 254))
def test_as_torchmetrics(seed: int, n: int) -> None:
    ground_truth, prediction = label_maps(seed, n)
    ours = confusion_matrix(ground_truth, prediction, n)
    # To torchmetrics an unsure prediction is a class of its own, n + 1.
    pixels = torch.from_numpy(np.where(prediction == 255, n + 1, prediction).astype(np.int64))
    target = torch.from_numpy(ground_truth.astype(np.int64))
    theirs = multiclass_confusion_matrix(pixels, target, n + 2, ignore_index=255)
    np.testing.assert_array_equal(ours, theirs[: n + 1])

    sure = np.where(prediction == 255, 0, prediction)
    pixels = torch.from_numpy(sure.astype(np.int64))
    ours = iou(confusion_matrix(ground_truth, sure, n))
    theirs = multiclass_jaccard_index(pixels, target, n + 1, average=None, ignore_index=255)
    np.testing.assert_allclose(np.nan_to_num(ours), theirs, rtol=1e-6)
    theirs = multiclass_jaccard_index(pixels, target, n + 1, average="macro", ignore_index=255)
    if (ground_truth != 255).any():
        np.testing.assert_allclose(mean_iou(ours), theirs, rtol=1e-5)


@pytest.mark.parametrize(("value", "other"), [(3, "truth"), (254, "prediction")])
def test_a_value_out_of_range_is_named(value: int, other: str) -> None:
    wrong = TRUTH.copy()
    wrong[1, 1] = value
    maps = {"truth": TRUTH, "prediction": PREDICTION, other: wrong}
    with pytest.raises(ValueError, match=rf"{other} has the value {value}; valid are 0..2 and 255"):
        confusion_matrix(**maps, num_classes=2)


def test_other_integers_are_taken_and_checked() -> None:
    np.testing.assert_array_equal(
        confusion_matrix(TRUTH.astype(np.int64), PREDICTION.astype(np.int32), 2),
        confusion_matrix(TRUTH, PREDICTION, 2),
    )
    with pytest.raises(ValueError, match="truth has the value -1"):
        confusion_matrix(np.full((2, 2), -1), PREDICTION, 2)
    with pytest.raises(ValueError, match="float"):
        confusion_matrix(TRUTH.astype(float), PREDICTION, 2)


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\], prediction \[2, 1\]"):
        confusion_matrix(TRUTH, PREDICTION[:, :1], 2)


def test_miou_is_not_the_mean_of_the_images() -> None:
    # Class 1: 1 of 1 pixel in one image, 1 of 9 in the other. One matrix: 2 of 10.
    scores = SegmentationScores(1)
    scores.update(np.ones((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    prediction = np.zeros((1, 9), np.uint8)
    prediction[0, 0] = 1
    scores.update(np.ones((1, 9), np.uint8), prediction)
    assert scores.compute().iou[1] == 2 / 10


def test_two_processes_give_what_one_gives() -> None:
    images = [label_maps(seed, 5) for seed in range(6)]
    one, first, second = SegmentationScores(5), SegmentationScores(5), SegmentationScores(5)
    for i, image in enumerate(images):
        one.update(*image)
        (first if i % 2 else second).update(*map(torch.from_numpy, image))
    first.merge_state(second)
    for name, expected, got in zip(one.compute()._fields, one.compute(), first.compute(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, err_msg=name)


def test_a_report_does_not_change_with_later_updates() -> None:
    scores = SegmentationScores(2)
    scores.update(TRUTH, PREDICTION)
    before = scores.compute()
    scores.update(TRUTH, PREDICTION)
    assert before.confusion.sum() == 3
    assert scores.compute().confusion.sum() == 6


def test_json() -> None:
    scores = SegmentationScores(2)
    scores.update(TRUTH, PREDICTION)
    data = json.loads(json.dumps(scores.compute().to_json(["cat", "<script>"]), allow_nan=False))
    assert data["miou"] == 0.75
    assert data["iou"][1:] == [{"class": "cat", "iou": 0.5}, {"class": "<script>", "iou": None}]
    with pytest.raises(ValueError, match="1 class names for 2"):
        scores.compute().to_json(["cat"])
    empty = SegmentationScores(2)
    empty.update(np.full((2, 2), 255), PREDICTION)
    assert empty.compute().to_json(["cat", "dog"])["miou"] is None
