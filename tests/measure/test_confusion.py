import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index

from tagmask.measure import confusion_matrix, iou, mean_iou
from tagmask.measure.metrics import SegmentationMetric

TARGET = np.array([[0, 1], [1, 255]], np.uint8)
PREDS = np.array([[0, 1], [255, 0]], np.uint8)


def random_label_maps(seed: int, num_labels: int, shape: tuple[int, int] = (23, 31)) -> tuple[np.ndarray, np.ndarray]:
    """Return two random label maps; not every label occurs in them."""
    rng = np.random.default_rng(seed)
    values = np.append(rng.choice(num_labels, size=rng.integers(1, num_labels + 1)), 255).astype(np.uint8)
    return rng.choice(values, shape), rng.choice(values, shape)


def test_scores_match_hand_computed_values() -> None:
    # The background is correct. Class 1 is correct once and ignored once. The pixel with target 255 does not count.
    confusion = confusion_matrix(PREDS, TARGET, num_labels=3)
    assert confusion.tolist() == [[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(iou(confusion), [1, 1 / 2, np.nan])
    assert mean_iou(iou(confusion)) == 0.75

    metric = SegmentationMetric(num_labels=3)
    metric.update(PREDS, TARGET)
    report = metric.compute()
    assert (report.miou, report.pixel_accuracy, report.ignored) == (0.75, 2 / 3, 1 / 3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 255))
def test_scores_equal_torchmetrics(seed: int, num_labels: int) -> None:
    preds, target = random_label_maps(seed, num_labels)
    ours = confusion_matrix(preds, target, num_labels)
    # For torchmetrics, ignored predictions are one more label.
    torch_preds = torch.from_numpy(np.where(preds == 255, num_labels, preds).astype(np.int64))
    torch_target = torch.from_numpy(target.astype(np.int64))
    theirs = multiclass_confusion_matrix(torch_preds, torch_target, num_labels + 1, ignore_index=255)
    np.testing.assert_array_equal(ours, theirs[:num_labels])

    preds = np.where(preds == 255, 0, preds)
    torch_preds = torch.from_numpy(preds.astype(np.int64))
    ours = iou(confusion_matrix(preds, target, num_labels))
    theirs = multiclass_jaccard_index(torch_preds, torch_target, num_labels, average=None, ignore_index=255)
    np.testing.assert_allclose(np.nan_to_num(ours), theirs, rtol=1e-6)
    theirs = multiclass_jaccard_index(torch_preds, torch_target, num_labels, average="macro", ignore_index=255)
    if (target != 255).any():
        np.testing.assert_allclose(mean_iou(ours), theirs, rtol=1e-5)


@pytest.mark.parametrize("max_pixels", [1, 31, 100, 23 * 31])
def test_a_map_that_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch, max_pixels: int) -> None:
    preds, target = random_label_maps(0, 5)
    expected = confusion_matrix(preds, target, 5)
    monkeypatch.setattr("tagmask.measure.confusion._MAX_PIXELS", max_pixels)
    np.testing.assert_array_equal(confusion_matrix(preds, target, 5), expected)
    target[-1, -1] = 7
    with pytest.raises(ValueError, match="target has the value 7"):
        confusion_matrix(preds, target, 5)


def test_an_empty_map_has_no_pixels() -> None:
    assert not confusion_matrix(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), 2).any()


@pytest.mark.parametrize(("value", "argument"), [(3, "target"), (254, "preds")])
def test_error_names_the_invalid_value_and_the_argument(value: int, argument: str) -> None:
    invalid = TARGET.copy()
    invalid[1, 1] = value
    label_maps = {"preds": PREDS, "target": TARGET, argument: invalid}
    with pytest.raises(ValueError, match=rf"{argument} has the value {value}; valid values are 0..2 and 255"):
        confusion_matrix(**label_maps, num_labels=3)


def test_other_integer_types_are_converted_and_checked() -> None:
    np.testing.assert_array_equal(
        confusion_matrix(PREDS.astype(np.int32), TARGET.astype(np.int64), 3),
        confusion_matrix(PREDS, TARGET, 3),
    )
    with pytest.raises(ValueError, match="target has the value -1"):
        confusion_matrix(PREDS, np.full((2, 2), -1), 3)
    with pytest.raises(ValueError, match=r"target must be a label map .* of integers, not \[2, 2\] float"):
        confusion_matrix(PREDS, TARGET.astype(float), 3)


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match=r"preds is \[2, 1\] and target is \[2, 2\]"):
        confusion_matrix(PREDS[:, :1], TARGET, 3)


def test_miou_is_not_the_mean_over_the_images() -> None:
    # Class 1 is correct in 1 of 1 pixel of one image, and in 1 of 9 of the other: in 2 of 10 of the one matrix.
    metric = SegmentationMetric(num_labels=2)
    metric.update(np.ones((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    preds = np.zeros((1, 9), np.uint8)
    preds[0, 0] = 1
    metric.update(preds, np.ones((1, 9), np.uint8))
    assert metric.compute().iou[1] == 2 / 10


def test_merged_metrics_equal_a_single_one() -> None:
    images = [random_label_maps(seed, 6) for seed in range(6)]
    single, first, second = (SegmentationMetric(num_labels=6) for _ in range(3))
    for i, image in enumerate(images):
        single.update(*image)
        (first if i % 2 else second).update(*map(torch.from_numpy, image))
    first.merge_state(second)
    for name, expected, actual in zip(single.compute()._fields, single.compute(), first.compute(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12, err_msg=name)


def test_later_updates_do_not_change_a_report() -> None:
    metric = SegmentationMetric(num_labels=3)
    metric.update(PREDS, TARGET)
    before = metric.compute()
    metric.update(PREDS, TARGET)
    assert before.confusion.sum() == 3
    assert metric.compute().confusion.sum() == 6


def test_json_has_the_names_of_the_classes_and_null_for_nan() -> None:
    metric = SegmentationMetric(num_labels=3)
    metric.update(PREDS, TARGET)
    data = json.loads(json.dumps(metric.compute().to_json(["cat", "<script>"]), allow_nan=False))
    assert data["miou"] == 0.75
    assert data["ignored"] == 1 / 3
    assert data["iou"][1:] == [{"class": "cat", "iou": 0.5}, {"class": "<script>", "iou": None}]
    with pytest.raises(ValueError, match="got 1 class names for 2 classes"):
        metric.compute().to_json(["cat"])
    empty = SegmentationMetric(num_labels=3)
    empty.update(PREDS, np.full((2, 2), 255))
    assert empty.compute().to_json(["cat", "dog"])["miou"] is None
