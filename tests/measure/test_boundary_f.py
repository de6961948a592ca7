import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from tagmask.measure import SegmentationScores, boundary_counts, boundary_f


def square(row: int, column: int, size: int = 10, shape: tuple[int, int] = (100, 100)) -> np.ndarray:
    """A square of class 1."""
    labels = np.zeros(shape, np.uint8)
    labels[row : row + size, column : column + size] = 1
    return labels


def test_square_moved_by_three_by_hand() -> None:
    # 100×100: the tolerance is 1.06 pixels. Of the 36 outline pixels of the moved square, near ones are
    # columns 43..50 of the top and bottom rows and one more at each end of its left side: 8 + 8 + 2.
    counts = boundary_counts(square(40, 40), square(40, 43), 2)
    assert counts[1].tolist() == [18, 36, 18, 36]
    scores = boundary_f(counts)
    assert scores[1] == 0.5
    assert np.isnan(scores[2])


def test_one_pixel_is_within_the_tolerance_two_are_not() -> None:
    assert boundary_f(boundary_counts(square(40, 40), square(40, 41), 1))[1] == 1
    assert boundary_f(boundary_counts(square(40, 40), square(41, 42), 1))[1] < 0.6
    assert boundary_f(boundary_counts(square(10, 10), square(70, 70), 1)).tolist() == [0, 0]


def brute_force(ground_truth: np.ndarray, prediction: np.ndarray, n: int) -> np.ndarray:
    """`boundary_counts` without unsure pixels, from all pairs of outline pixels."""
    height, width = ground_truth.shape
    outlines = []
    for labels in (prediction, ground_truth):
        points: list[list[tuple[int, int]]] = [[] for _ in range(n + 1)]
        for y in range(height):
            for x in range(width):
                around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [p for p in around if 0 <= p[0] < height and 0 <= p[1] < width]
                if any(labels[p] != labels[y, x] for p in inside):
                    points[labels[y, x]].append((y, x))
        outlines.append(points)
    counts = np.zeros((n + 1, 4), np.int64)
    for c, (predicted, true) in enumerate(zip(*outlines, strict=True)):
        counts[c, 1::2] = len(predicted), len(true)
        if predicted and true:
            near = cdist(predicted, true) < 0.0075 * np.sqrt(height**2 + width**2)
            counts[c, ::2] = near.any(axis=1).sum(), near.any(axis=0).sum()
    return counts


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([(12, 170), (200, 9), (5, 5), (1, 300), (1, 1)]))
def test_as_all_pairs(seed: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(0, 4, (-(-shape[0] // 4), -(-shape[1] // 4))).astype(np.uint8) for _ in range(2)]
    ground_truth, prediction = (np.kron(c, np.ones((4, 4), np.uint8))[: shape[0], : shape[1]] for c in coarse)
    np.testing.assert_array_equal(
        boundary_counts(ground_truth, prediction, 3), brute_force(ground_truth, prediction, 3)
    )


def test_outline_of_the_truth_is_in_the_middle_of_its_unsure_band() -> None:
    ground_truth = square(60, 60, 80, (400, 400))  # tolerance 4.2 pixels
    prediction = ground_truth.copy()
    ground_truth[57:143, 57:143] = 255
    ground_truth[63:137, 63:137] = 1
    assert boundary_f(boundary_counts(ground_truth, prediction, 1)).tolist() == [1, 1]


def test_outlines_deep_in_unsure_truth_are_left_out() -> None:
    ground_truth = square(40, 10)
    ground_truth[:, 50:] = 255
    prediction = square(40, 10)
    prediction[30:60, 70:90] = 1
    assert boundary_f(boundary_counts(ground_truth, prediction, 1)).tolist() == [1, 1]
    ground_truth[:] = 255
    assert not boundary_counts(ground_truth, prediction, 1).any()


def test_unsure_prediction_is_of_no_class() -> None:
    prediction = np.where(square(40, 40) == 1, 255, 0).astype(np.uint8)
    counts = boundary_counts(square(40, 40), prediction, 1)
    assert counts[1].tolist() == [0, 0, 0, 36]
    assert boundary_f(counts).tolist() == [1, 0]


def test_figure_of_a_set_is_the_mean_of_its_images() -> None:
    scores = SegmentationScores(1)
    scores.update(square(40, 40), square(40, 40))
    scores.update(square(10, 10), square(70, 70))
    scores.update(np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8))  # no outline: not counted
    report = scores.compute()
    assert report.boundary_f == pytest.approx(0.5)
    assert report.boundary_f_class.tolist() == [0.5, 0.5]
