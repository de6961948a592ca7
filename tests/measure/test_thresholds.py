import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagmask.measure import ThresholdReport, confusion_at_thresholds
from tagmask.measure.metrics import ThresholdCurveMetric

GOLDENS = Path(__file__).parents[1] / "goldens" / "thresholds.npz"
Image = tuple[np.ndarray, np.ndarray, np.ndarray]


def golden_images(goldens: dict[str, np.ndarray]) -> list[Image]:
    """Return maps, class ids and target of each image; the file counts its classes from 0."""
    return [
        (goldens[f"image{i}_maps"], goldens[f"image{i}_classes"] + 1, goldens[f"image{i}_truth"])
        for i in range(int(goldens["n_images"]))
    ]


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as file:
        return dict(file)


def measure(images: list[Image], num_labels: int, thresholds: np.ndarray | None = None) -> ThresholdCurveMetric:
    metric = ThresholdCurveMetric(num_labels, thresholds)
    for image in images:
        metric.update(*image)
    return metric


def report_of(images: list[Image], num_labels: int, thresholds: np.ndarray | None = None) -> ThresholdReport:
    return measure(images, num_labels, thresholds).compute()


def confusion_of(images: list[Image], num_labels: int, thresholds: np.ndarray | None = None) -> np.ndarray:
    return confusion_at_thresholds(measure(images, num_labels, thresholds).joint.numpy())


def brute_force(image: Image, num_labels: int, threshold: float) -> np.ndarray:
    """Compute the confusion matrix of one image at one threshold as argmax over [threshold, maps...] in float32."""
    maps, classes, target = image
    background = np.full((1, *target.shape), threshold, np.float32)
    best = np.concatenate([background, maps.astype(np.float32)]).argmax(axis=0)
    preds = np.concatenate([[0], classes])[best]
    confusion = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(confusion, (target[target != 255], preds[target != 255]), 1)
    return confusion


def miou(confusion: np.ndarray) -> float:
    ious = [
        confusion[c, c] / union
        for c in range(len(confusion))
        if (union := confusion[c].sum() + confusion[:, c].sum() - confusion[c, c])
    ]
    return float(np.mean(ious)) if ious else float("nan")


def random_images(seed: int, num_labels: int, dtype: type, count: int = 3) -> list[Image]:
    """Return images of several sizes and numbers of tags, with equal maps and activations exactly on thresholds."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        shape = tuple(rng.integers(1, 12, 2))
        classes = rng.permutation(num_labels - 1)[: rng.integers(0, num_labels)] + 1
        maps = rng.choice([rng.random(), *np.arange(0, 101, 5) / 100], (len(classes), *shape)).astype(dtype)
        target = rng.choice([*range(num_labels), 255], shape).astype(np.uint8)
        images.append((maps, classes, target))
    images[0][2][0, 0] = 0  # at least one pixel counts
    return images


def test_report_equals_the_goldens(goldens: dict[str, np.ndarray]) -> None:
    images, num_labels = golden_images(goldens), int(goldens["n_classes"]) + 1
    metric = measure(images, num_labels, goldens["thresholds"])
    report = metric.compute()
    np.testing.assert_array_equal(report.thresholds, goldens["thresholds"])
    np.testing.assert_array_equal(confusion_at_thresholds(metric.joint.numpy()), goldens["confusion"])
    np.testing.assert_array_equal(report.iou, goldens["iou_per_class"])
    np.testing.assert_array_equal(report.miou, goldens["miou"])
    assert report.best_miou == goldens["miou"].max()


def test_curve_of_each_image_and_oracle_equal_the_goldens(goldens: dict[str, np.ndarray]) -> None:
    images, num_labels, thresholds = golden_images(goldens), int(goldens["n_classes"]) + 1, goldens["thresholds"]
    for image, expected in zip(images, goldens["miou_of_each_image"], strict=True):
        np.testing.assert_array_equal(report_of([image], num_labels, thresholds).miou, expected)
    best = goldens["miou_of_each_image"].argmax(axis=1)
    report = report_of(images, num_labels, thresholds)
    np.testing.assert_array_equal(report.image_best, np.bincount(best, minlength=len(thresholds)))
    oracle = sum(brute_force(image, num_labels, thresholds[b]) for image, b in zip(images, best, strict=True))
    assert report.oracle_miou == pytest.approx(miou(oracle), rel=1e-12)
    ordered = sorted(thresholds[best])
    assert report.image_percentiles == (ordered[0], ordered[2], ordered[5])  # ranks 0.6, 3, 5.4 of 6


def test_tensors_and_other_integer_types_give_the_same_counts(goldens: dict[str, np.ndarray]) -> None:
    images, num_labels = golden_images(goldens), int(goldens["n_classes"]) + 1
    metric = ThresholdCurveMetric(num_labels)
    for maps, classes, target in images:
        metric.update(torch.from_numpy(maps), torch.from_numpy(classes), torch.from_numpy(target).long())
    np.testing.assert_array_equal(metric.joint, measure(images, num_labels).joint)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32),
    st.integers(2, 5),
    st.sampled_from([np.float16, np.float32]),
    st.sampled_from(
        [
            np.arange(101) / 100,
            np.array([0.35]),
            np.array([-0.5, 0.0, 0.1, 0.101, 0.5, 2.0]),
            np.array([0.3, 0.30000007]),
            np.array([0.0, 0.9, 0.95, 1.0]),  # dense at the upper end: even spacing guesses too high an index
            np.array([0.4, 0.5, 0.6]),  # most activations are below the first one
        ]
    ),
)
def test_one_pass_equals_a_loop_over_thresholds(
    seed: int, num_labels: int, dtype: type, thresholds: np.ndarray
) -> None:
    images = random_images(seed, num_labels, dtype)
    metric = measure(images, num_labels, thresholds)
    report = metric.compute()
    loop = np.array([[brute_force(image, num_labels, t) for t in thresholds] for image in images])
    np.testing.assert_array_equal(confusion_at_thresholds(metric.joint.numpy()), loop.sum(axis=0))
    curve = [miou(confusion) for confusion in loop.sum(axis=0)]
    np.testing.assert_allclose(report.miou, curve, rtol=1e-12)
    assert report.best_miou == pytest.approx(max(curve))
    # `image_best` counts the images whose mIoU depends on the threshold, whichever of equal thresholds it chooses.
    image_curves = np.array([[miou(confusion) for confusion in image] for image in loop])
    assert report.image_best.sum() == sum(np.ptp(row) > 1e-12 for row in image_curves if not np.isnan(row).any())


def test_first_of_equal_maps_wins_and_an_activation_at_the_threshold_is_background() -> None:
    maps = np.array([[[0.5, 0.5, 0.2]], [[0.5, 0.2, 0.2]]], np.float32)
    image = (maps, np.array([2, 1]), np.zeros((1, 3), np.uint8))
    assert confusion_of([image], 3, np.array([0.2, 0.5]))[:, 0].tolist() == [[1, 0, 2], [3, 0, 0]]


def test_float16_maps_are_compared_as_float32() -> None:
    # 0.1 in float16 is 0.09998, which is below 0.1 in float32. 0.1 in float32 is above 0.1 in float64, but equal here.
    target = np.ones((1, 1), np.uint8)
    for dtype in (np.float16, np.float32):
        image = (np.full((1, 1, 1), 0.1, dtype), np.array([1]), target)
        assert confusion_of([image], 2, np.array([0.0999, 0.1]))[:, 1].tolist() == [[0, 1], [1, 0]]


def test_robustness_matches_hand_computed_values() -> None:
    # 100 pixels of class 1 with activations 0.005, 0.015, ...: the IoU at t is the fraction of them above t.
    maps = (np.arange(100, dtype=np.float32)[None, None] + 0.5) / 100
    report = report_of([(maps, np.array([1]), np.ones((1, 100), np.uint8))], 2)
    np.testing.assert_allclose(report.iou[:, 1], 1 - np.arange(101) / 100)
    # From t = 0.01, some pixels are falsely predicted as background, whose IoU of 0 then counts in the mean.
    np.testing.assert_allclose(report.miou, [1, *(1 - np.arange(1, 101) / 100) / 2])
    assert (report.best_threshold, report.best_miou, report.interval, report.width) == (0, 1, (0, 0), 0)
    assert report.area == pytest.approx(0.01 * (1.495 / 2 + sum((99 - k) / 200 + 0.0025 for k in range(1, 100))))


def test_interval_is_the_run_around_the_best_threshold() -> None:
    # Class 1 covers 100 pixels. The number of false pixels above t falls in steps, so the IoU rises in steps.
    maps = np.zeros((1, 1, 200), np.float32)
    maps[0, 0, :100] = 0.8
    maps[0, 0, 100:102] = 0.6
    maps[0, 0, 102:] = 0.2
    target = np.zeros((1, 200), np.uint8)
    target[0, :100] = 1
    report = report_of([(maps, np.array([1]), target)], 2)
    assert report.interval == (0.2, 0.79)
    assert report.width == pytest.approx(0.59)
    assert report.best_miou == 1
    assert 0.6 <= report.best_threshold <= 0.79


def test_each_class_has_its_own_best_threshold() -> None:
    # Class 1 is correct from 0.2 (its false pixels have 0.1), class 2 only from 0.8 (its false pixels have 0.7).
    images = [
        (np.array([[[0.3, 0.3, 0.1, 0.1]]], np.float32), np.array([1]), np.array([[1, 1, 0, 0]], np.uint8)),
        (np.array([[[0.9, 0.9, 0.7, 0.7]]], np.float32), np.array([2]), np.array([[2, 2, 0, 0]], np.uint8)),
    ]
    report = report_of(images, 4, np.array([0.0, 0.2, 0.5, 0.8]))
    assert report.class_best[1:3].tolist() == [0.2, 0.8]
    assert np.isnan(report.class_best[3])
    assert report.class_miou == 1
    assert report.oracle_miou == 1
    assert report.best_miou < 1


def test_images_without_a_best_threshold_are_not_counted() -> None:
    target = np.array([[0, 1]], np.uint8)
    no_tag = (np.zeros((0, 1, 2), np.float32), np.zeros(0, np.int64), target)
    zeros = (np.zeros((1, 1, 2), np.float32), np.array([1]), target)
    all_ignored = (np.ones((1, 1, 2), np.float32), np.array([1]), np.full((1, 2), 255, np.uint8))
    metric = measure([no_tag, zeros, all_ignored], 2)
    report = metric.compute()
    assert (confusion_at_thresholds(metric.joint.numpy()) == [[2, 0], [2, 0]]).all()
    assert report.image_best.sum() == 0
    assert np.isnan(report.image_percentiles).all()
    assert report.oracle_miou == report.best_miou == 0.25


def test_merged_metrics_equal_a_single_one(goldens: dict[str, np.ndarray]) -> None:
    images, num_labels = golden_images(goldens), int(goldens["n_classes"]) + 1
    single, first, second = (ThresholdCurveMetric(num_labels) for _ in range(3))
    for i, image in enumerate(images):
        single(*image)  # torchmetrics' forward returns the report of the image, and adds the image to the state
        (first if i % 2 else second).update(*image)
    first.merge_state(second)
    for name, expected, actual in zip(ThresholdReport._fields, single.compute(), first.compute(), strict=True):
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    np.testing.assert_array_equal(measure(images, num_labels).joint, single.joint)


def test_state_does_not_grow_and_later_updates_do_not_change_a_report(goldens: dict[str, np.ndarray]) -> None:
    metric = ThresholdCurveMetric(num_labels=5)
    image = golden_images(goldens)[0]
    metric.update(*image)
    before, sizes = metric.compute(), {name: state.numel() for name, state in metric.metric_state.items()}
    for _ in range(5):
        metric.update(*image)
    assert before.image_best.sum() == 1
    assert {name: state.numel() for name, state in metric.metric_state.items()} == sizes


def test_json_has_a_curve_for_each_class(goldens: dict[str, np.ndarray]) -> None:
    data = report_of(golden_images(goldens), 5).to_json(["a", "b", "c", "d"])
    data = json.loads(json.dumps(data, allow_nan=False))
    assert len(data["miou"]) == 101
    assert [c["class"] for c in data["classes"]] == ["background", "a", "b", "c", "d"]
    assert data["width"] == data["interval"][1] - data["interval"][0]


@pytest.mark.parametrize(
    ("maps", "classes", "target", "message"),
    [
        (
            np.zeros((1, 2, 2)),
            [1, 2],
            np.zeros((2, 2), np.uint8),
            r"\[1, 2, 2\], classes is \[2\] and target is \[2, 2\]",
        ),
        (np.zeros((1, 2, 2)), [1], np.zeros((2, 3), np.uint8), r"\[2, 3\]"),
        (np.zeros((1, 2, 2)), [0], np.zeros((2, 2), np.uint8), r"classes are \[0\]; each must be in 1..3"),
        (np.zeros((2, 2, 2)), [1, 1], np.zeros((2, 2), np.uint8), "once"),
        (np.zeros((1, 2, 2)), [1], np.full((2, 2), 7, np.uint8), "target has the value 7; valid values are 0..3"),
        (np.full((1, 2, 2), np.nan), [1], np.zeros((2, 2), np.uint8), "nan"),
        (np.zeros((1, 2, 2)), [1], np.zeros((2, 2)), "label map"),
    ],
)
def test_invalid_input_is_an_error(maps: np.ndarray, classes: list[int], target: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThresholdCurveMetric(num_labels=4).update(maps, classes, target)


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.5], [0.5, 0.1], [[0.1, 0.2]], [0.1, 0.1 + 1e-12]])
def test_thresholds_must_be_ascending(thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        ThresholdCurveMetric(num_labels=4, thresholds=thresholds)


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_no_curve_without_images() -> None:
    with pytest.raises(ValueError, match="no pixel with a ground-truth label"):
        ThresholdCurveMetric(num_labels=4).compute()
