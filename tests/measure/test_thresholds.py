import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagmask.measure import ThresholdCurve, ThresholdReport

GOLDENS = Path(__file__).parents[1] / "goldens" / "thresholds.npz"
Image = tuple[np.ndarray, np.ndarray, np.ndarray]


def golden_images(goldens: dict[str, np.ndarray]) -> list[Image]:
    """Maps, classes 1..n (the file counts from 0) and truth of each image."""
    return [
        (goldens[f"image{i}_maps"], goldens[f"image{i}_classes"] + 1, goldens[f"image{i}_truth"])
        for i in range(int(goldens["n_images"]))
    ]


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as file:
        return dict(file)


def measure(images: list[Image], n: int, thresholds: np.ndarray | None = None) -> ThresholdReport:
    curve = ThresholdCurve(n, thresholds)
    for image in images:
        curve.update(*image)
    return curve.compute()


def brute_force(image: Image, n: int, threshold: float) -> np.ndarray:
    """Confusion matrix of one image at one threshold: argmax over [t, maps...], all in float32."""
    maps, classes, ground_truth = image
    background = np.full((1, *ground_truth.shape), threshold, np.float32)
    best = np.concatenate([background, maps.astype(np.float32)]).argmax(axis=0)
    prediction = np.concatenate([[0], classes])[best]
    confusion = np.zeros((n + 1, n + 1), np.int64)
    np.add.at(confusion, (ground_truth[ground_truth != 255], prediction[ground_truth != 255]), 1)
    return confusion


def miou(confusion: np.ndarray) -> float:
    ious = [
        confusion[c, c] / union
        for c in range(len(confusion))
        if (union := confusion[c].sum() + confusion[:, c].sum() - confusion[c, c])
    ]
    return float(np.mean(ious)) if ious else float("nan")


def random_images(seed: int, n: int, dtype: type, count: int = 3) -> list[Image]:
    """Images of several sizes with 0..n tags, ties between maps, and activations exactly on thresholds."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        shape = tuple(rng.integers(1, 12, 2))
        classes = rng.permutation(n)[: rng.integers(0, n + 1)] + 1
        maps = rng.choice([rng.random(), *np.arange(0, 101, 5) / 100], (len(classes), *shape)).astype(dtype)
        ground_truth = rng.choice([*range(n + 1), 255], shape).astype(np.uint8)
        images.append((maps, classes, ground_truth))
    images[0][2][0, 0] = 0  # at least one pixel is known
    return images


def test_goldens(goldens: dict[str, np.ndarray]) -> None:
    images, n = golden_images(goldens), int(goldens["n_classes"])
    report = measure(images, n, goldens["thresholds"])
    np.testing.assert_array_equal(report.thresholds, goldens["thresholds"])
    np.testing.assert_array_equal(report.confusion, goldens["confusion"])
    np.testing.assert_array_equal(report.iou, goldens["iou_per_class"])
    np.testing.assert_array_equal(report.miou, goldens["miou"])
    assert report.best_miou == goldens["miou"].max()


def test_goldens_of_each_image_and_the_oracle(goldens: dict[str, np.ndarray]) -> None:
    images, n, thresholds = golden_images(goldens), int(goldens["n_classes"]), goldens["thresholds"]
    for image, expected in zip(images, goldens["miou_of_each_image"], strict=True):
        np.testing.assert_array_equal(measure([image], n, thresholds).miou, expected)
    best = goldens["miou_of_each_image"].argmax(axis=1)
    report = measure(images, n, thresholds)
    np.testing.assert_array_equal(report.image_best, np.bincount(best, minlength=len(thresholds)))
    oracle = sum(brute_force(image, n, thresholds[b]) for image, b in zip(images, best, strict=True))
    assert report.oracle_miou == pytest.approx(miou(oracle), rel=1e-12)
    ordered = sorted(thresholds[best])
    assert report.image_percentiles == (ordered[0], ordered[2], ordered[5])  # ranks 0.6, 3, 5.4 of 6


def test_goldens_in_other_types(goldens: dict[str, np.ndarray]) -> None:
    images, n = golden_images(goldens), int(goldens["n_classes"])
    expected = measure(images, n).confusion
    curve = ThresholdCurve(n)
    for maps, classes, ground_truth in images:
        curve.update(torch.from_numpy(maps), torch.from_numpy(classes), torch.from_numpy(ground_truth).long())
    np.testing.assert_array_equal(curve.compute().confusion, expected)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.sampled_from([np.float16, np.float32]),
    st.sampled_from(
        [
            np.arange(101) / 100,
            np.array([0.35]),
            np.array([-0.5, 0.0, 0.1, 0.101, 0.5, 2.0]),
            np.array([0.3, 0.30000007]),
            np.array([0.0, 0.9, 0.95, 1.0]),  # dense above, so that even steps guess too high
            np.array([0.4, 0.5, 0.6]),  # most activations are below the first
        ]
    ),
)
def test_as_a_loop_over_thresholds(seed: int, n: int, dtype: type, thresholds: np.ndarray) -> None:
    images = random_images(seed, n, dtype)
    report = measure(images, n, thresholds)
    loop = np.array([[brute_force(image, n, t) for t in thresholds] for image in images])
    np.testing.assert_array_equal(report.confusion, loop.sum(axis=0))
    curve = [miou(confusion) for confusion in loop.sum(axis=0)]
    np.testing.assert_allclose(report.miou, curve, rtol=1e-12)
    assert report.best_miou == pytest.approx(max(curve))
    # An image's best mIoU, whichever of equals is taken, and the number of images that prefer any.
    own = np.array([[miou(confusion) for confusion in image] for image in loop])
    assert report.image_best.sum() == sum(np.ptp(row) > 1e-12 for row in own if not np.isnan(row).any())


def test_equal_maps_first_wins_and_equal_to_the_threshold_is_background() -> None:
    maps = np.array([[[0.5, 0.5, 0.2]], [[0.5, 0.2, 0.2]]], np.float32)
    report = measure([(maps, np.array([2, 1]), np.zeros((1, 3), np.uint8))], 2, np.array([0.2, 0.5]))
    assert report.confusion[:, 0].tolist() == [[1, 0, 2], [3, 0, 0]]


def test_float16_is_compared_as_float32() -> None:
    # 0.1 in float16 is 0.09998, below float32's 0.1; float32's own 0.1 is above float64's, yet a tie here.
    ground_truth = np.ones((1, 1), np.uint8)
    for dtype, cut in ((np.float16, [0.0999, 0.1]), (np.float32, [0.0999, 0.1])):
        report = measure([(np.full((1, 1, 1), 0.1, dtype), np.array([1]), ground_truth)], 1, np.array(cut))
        assert report.confusion[:, 1].tolist() == [[0, 1], [1, 0]]


def test_robustness_figures_by_hand() -> None:
    # 100 pixels of class 1 with activations 0.005, 0.015, ...: IoU at t is the share above t.
    maps = (np.arange(100, dtype=np.float32)[None, None] + 0.5) / 100
    report = measure([(maps, np.array([1]), np.ones((1, 100), np.uint8))], 1)
    np.testing.assert_allclose(report.iou[:, 1], 1 - np.arange(101) / 100)
    # The background, falsely predicted, has IoU 0 and is in the mean from t = 0.01 on.
    np.testing.assert_allclose(report.miou, [1, *(1 - np.arange(1, 101) / 100) / 2])
    assert (report.best_threshold, report.best_miou, report.interval, report.width) == (0, 1, (0, 0), 0)
    assert report.area == pytest.approx(0.01 * (1.495 / 2 + sum((99 - k) / 200 + 0.0025 for k in range(1, 100))))


def test_interval_is_the_run_around_the_best_threshold() -> None:
    # Class 1 covers 100 pixels; the false ones (above t) fall in steps, so the IoU rises in steps.
    maps = np.zeros((1, 1, 200), np.float32)
    maps[0, 0, :100] = 0.8
    maps[0, 0, 100:102] = 0.6
    maps[0, 0, 102:] = 0.2
    ground_truth = np.zeros((1, 200), np.uint8)
    ground_truth[0, :100] = 1
    report = measure([(maps, np.array([1]), ground_truth)], 1)
    assert report.interval == (0.2, 0.79)
    assert report.width == pytest.approx(0.59)
    assert report.best_miou == 1
    assert 0.6 <= report.best_threshold <= 0.79


def test_each_class_at_its_own_threshold() -> None:
    # Class 1 is right above 0.2 (its false pixels have 0.1), class 2 only above 0.7.
    ground_truth = np.array([[1, 1, 0, 0]], np.uint8), np.array([[2, 2, 0, 0]], np.uint8)
    maps = (
        np.array([[[0.3, 0.3, 0.1, 0.1]]], np.float32),
        np.array([[[0.9, 0.9, 0.7, 0.7]]], np.float32),
    )
    images = [(m, np.array([c]), t) for m, c, t in zip(maps, (1, 2), ground_truth, strict=True)]
    report = measure(images, 3, np.array([0.0, 0.2, 0.5, 0.8]))
    assert report.class_best[1:3].tolist() == [0.2, 0.8]
    assert np.isnan(report.class_best[3])
    assert report.class_miou == 1
    assert report.oracle_miou == 1
    assert report.best_miou < 1


def test_images_without_a_preference() -> None:
    ground_truth = np.array([[0, 1]], np.uint8)
    none = (np.zeros((0, 1, 2), np.float32), np.zeros(0, np.int64), ground_truth)
    zero = (np.zeros((1, 1, 2), np.float32), np.array([1]), ground_truth)
    unknown = (np.ones((1, 1, 2), np.float32), np.array([1]), np.full((1, 2), 255, np.uint8))
    report = measure([none, zero, unknown], 1)
    assert (report.confusion == [[2, 0], [2, 0]]).all()
    assert report.image_best.sum() == 0
    assert np.isnan(report.image_percentiles).all()
    assert report.oracle_miou == report.best_miou == 0.25


def test_two_processes_give_what_one_gives(goldens: dict[str, np.ndarray]) -> None:
    images, n = golden_images(goldens), int(goldens["n_classes"])
    one, first, second = ThresholdCurve(n), ThresholdCurve(n), ThresholdCurve(n)
    for i, image in enumerate(images):
        one(*image)  # torchmetrics' forward: the image's own figures, and added to the whole
        (first if i % 2 else second).update(*image)
    first.merge_state(second)
    for name, expected, got in zip(ThresholdReport._fields, one.compute(), first.compute(), strict=True):
        np.testing.assert_array_equal(got, expected, err_msg=name)
    np.testing.assert_array_equal(measure(images, n).confusion, one.compute().confusion)


def test_state_does_not_grow_and_reports_do_not_change(goldens: dict[str, np.ndarray]) -> None:
    curve = ThresholdCurve(4)
    image = golden_images(goldens)[0]
    curve.update(*image)
    before, size = curve.compute(), {k: v.numel() for k, v in curve.metric_state.items()}
    for _ in range(5):
        curve.update(*image)
    assert before.image_best.sum() == 1
    assert {k: v.numel() for k, v in curve.metric_state.items()} == size


def test_json(goldens: dict[str, np.ndarray]) -> None:
    data = measure(golden_images(goldens), 4).to_json(["a", "b", "c", "d"])
    data = json.loads(json.dumps(data, allow_nan=False))
    assert len(data["miou"]) == 101
    assert [c["class"] for c in data["classes"]] == ["background", "a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("maps", "classes", "truth", "message"),
    [
        (np.zeros((1, 2, 2)), [1, 2], np.zeros((2, 2), np.uint8), r"\[1, 2, 2\], \[2\], \[2, 2\]"),
        (np.zeros((1, 2, 2)), [1], np.zeros((2, 3), np.uint8), r"\[2, 3\]"),
        (np.zeros((1, 2, 2)), [0], np.zeros((2, 2), np.uint8), r"classes are \[0\]; each must be in 1..3"),
        (np.zeros((2, 2, 2)), [1, 1], np.zeros((2, 2), np.uint8), "once"),
        (np.zeros((1, 2, 2)), [1], np.full((2, 2), 7, np.uint8), "truth has the value 7; valid are 0..3"),
        (np.full((1, 2, 2), np.nan), [1], np.zeros((2, 2), np.uint8), "nan"),
        (np.zeros((1, 2, 2)), [1], np.zeros((2, 2)), "label map"),
    ],
)
def test_bad_input(maps: np.ndarray, classes: list[int], ground_truth: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ThresholdCurve(3).update(maps, classes, ground_truth)


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.5], [0.5, 0.1], [[0.1, 0.2]], [0.1, 0.1 + 1e-12]])
def test_bad_thresholds(thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        ThresholdCurve(3, thresholds)


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_no_image_no_curve() -> None:
    with pytest.raises(ValueError, match="no pixel with a known truth"):
        ThresholdCurve(3).compute()
