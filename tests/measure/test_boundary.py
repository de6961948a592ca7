import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tagmask.label_map import IGNORE_INDEX, label_boundaries
from tagmask.measure import boundary_counts, boundary_f
from tagmask.measure.metrics import SegmentationMetric


def square(row: int, column: int, size: int = 10, shape: tuple[int, int] = (100, 100)) -> np.ndarray:
    """Return a label map with a square of class 1 on background."""
    labels = np.zeros(shape, np.uint8)
    labels[row : row + size, column : column + size] = 1
    return labels


def test_counts_match_hand_computed_values_for_a_shifted_square() -> None:
    # The tolerance of a 100×100 image is 1.06 pixels. Of the 36 boundary pixels of the shifted square, these are
    # close: columns 43..50 of the top and bottom rows, and one more pixel at each end of its left side: 8 + 8 + 2.
    counts = boundary_counts(preds=square(40, 43), target=square(40, 40), num_labels=3)
    assert counts[1].tolist() == [18, 36, 18, 36]
    scores = boundary_f(counts)
    assert scores[1] == 0.5
    assert np.isnan(scores[2])


def test_a_shift_by_one_pixel_is_within_the_tolerance_and_by_two_is_not() -> None:
    assert boundary_f(boundary_counts(square(40, 41), square(40, 40), 2))[1] == 1
    assert boundary_f(boundary_counts(square(41, 42), square(40, 40), 2))[1] < 0.6
    assert boundary_f(boundary_counts(square(70, 70), square(10, 10), 2)).tolist() == [0, 0]


def brute_force_counts(preds: np.ndarray, target: np.ndarray, num_labels: int) -> np.ndarray:
    """Compute `boundary_counts` of label maps without ignored pixels from all pairs of boundary pixels."""
    height, width = target.shape
    boundaries = []
    for labels in (preds, target):
        points: list[list[tuple[int, int]]] = [[] for _ in range(num_labels)]
        for y in range(height):
            for x in range(width):
                neighbors = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [p for p in neighbors if 0 <= p[0] < height and 0 <= p[1] < width]
                if any(labels[p] != labels[y, x] for p in inside):
                    points[labels[y, x]].append((y, x))
        boundaries.append(points)
    counts = np.zeros((num_labels, 4), np.int64)
    for label, (predicted, true) in enumerate(zip(*boundaries, strict=True)):
        counts[label, 1::2] = len(predicted), len(true)
        if predicted and true:
            close = cdist(predicted, true) < 0.0075 * np.sqrt(height**2 + width**2)
            counts[label, ::2] = close.any(axis=1).sum(), close.any(axis=0).sum()
    return counts


@pytest.mark.parametrize("tree_share", [0, 2], ids=["distance transform", "tree"])
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([(12, 170), (200, 9), (5, 5), (1, 300), (1, 1)]))
def test_counts_equal_brute_force(tree_share: float, seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, 4, (-(-shape[0] // 4), -(-shape[1] // 4))).astype(np.uint8) for _ in range(2)]
    preds, target = (np.kron(c, np.ones((4, 4), np.uint8))[: shape[0], : shape[1]] for c in coarse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagmask.measure.boundary.MAX_TREE_SHARE", tree_share)
        counts = boundary_counts(preds, target, 4)
    np.testing.assert_array_equal(counts, brute_force_counts(preds, target, 4))


@pytest.mark.parametrize("tree_share", [0, 2], ids=["distance transform", "tree"])
def test_a_distance_equal_to_the_tolerance_is_not_close(monkeypatch: pytest.MonkeyPatch, tree_share: float) -> None:
    """The diagonal of 240×320 pixels is 400, so the tolerance is 3: outlines 2 pixels apart are close, 3 are not."""
    monkeypatch.setattr("tagmask.measure.boundary.MAX_TREE_SHARE", tree_share)
    upper = np.zeros((240, 320), np.uint8)
    upper[:100] = 1
    for shift, num_close in ((2, 320), (3, 0)):
        assert boundary_counts(np.roll(upper, shift, 0) | upper, upper, 2)[1].tolist() == [num_close, 320] * 2


def test_target_boundary_is_in_the_middle_of_its_ignored_band() -> None:
    target = square(60, 60, 80, (400, 400))  # the tolerance is 4.2 pixels
    preds = target.copy()
    target[57:143, 57:143] = 255
    target[63:137, 63:137] = 1
    assert boundary_f(boundary_counts(preds, target, 2)).tolist() == [1, 1]


def test_boundaries_deep_in_ignored_target_pixels_are_left_out() -> None:
    target = square(40, 10)
    target[:, 50:] = 255
    preds = square(40, 10)
    preds[30:60, 70:90] = 1
    assert boundary_f(boundary_counts(preds, target, 2)).tolist() == [1, 1]
    target[:] = 255
    assert not boundary_counts(preds, target, 2).any()


def test_ignored_prediction_belongs_to_no_label() -> None:
    preds = np.where(square(40, 40) == 1, 255, 0).astype(np.uint8)
    counts = boundary_counts(preds, square(40, 40), 2)
    assert counts[1].tolist() == [0, 0, 0, 36]
    assert boundary_f(counts).tolist() == [1, 0]


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match="their shapes must be equal"):
        boundary_counts(square(40, 40), square(40, 40)[:50], 2)


def test_metric_is_the_mean_over_the_images() -> None:
    metric = SegmentationMetric(num_labels=2)
    metric.update(preds=square(40, 40), target=square(40, 40))
    metric.update(preds=square(70, 70), target=square(10, 10))
    metric.update(preds=np.zeros((9, 9), np.uint8), target=np.zeros((9, 9), np.uint8))  # no boundary: not counted
    report = metric.compute()
    assert report.boundary_f == pytest.approx(0.5)
    assert report.boundary_f_class.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("seed", range(3))
def test_tiles_of_large_label_maps_give_the_same_counts(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Regions that cross the borders of tiles, bands of ignored pixels, and tiles in which all pixels are ignored."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, (9, 12)).repeat(17, 0).repeat(15, 1).astype(np.uint8)
    preds = np.roll(target, (2, 1), (0, 1))
    preds[rng.random(preds.shape) < 0.01] = 3
    target[label_boundaries(target)] = IGNORE_INDEX
    target[:60, :60] = preds[-30:, -30:] = IGNORE_INDEX
    whole = boundary_counts(preds, target, num_labels=4)
    monkeypatch.setattr("tagmask.measure.boundary.TILE_SIDE", 41)
    np.testing.assert_array_equal(boundary_counts(preds, target, num_labels=4), whole)
    assert (whole[:, 0] > 0).all()
    assert (whole[:, 0] < whole[:, 1]).any()


def test_memory_of_large_label_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole, an image of 100 megapixels would take 5 GB."""
    monkeypatch.setattr("tagmask.measure.boundary.TILE_SIDE", 200)
    target = square(100, 100, 600, shape=(1200, 1200))
    target[98:102] = IGNORE_INDEX
    boundary_counts(target[:50], target[:50], num_labels=2)  # imports SciPy
    tracemalloc.start()
    boundary_counts(np.roll(target, 3), target, num_labels=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * target.size
