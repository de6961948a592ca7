import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from tagmask.measure import activation_histogram, otsu_threshold
from tagmask.measure.metrics import ActivationHistogram


@settings(deadline=None, max_examples=50)
@example(seed=772, bins=227)
@given(st.integers(0, 2**32), st.integers(2, 300))
def test_threshold_of_a_histogram_equals_scikit_image(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    # Every bin has counts: with empty bins, several splits are equally good, and rounding chooses one.
    counts = rng.poisson(1000 * rng.random(bins)) + 1
    centers = np.arange(bins) / bins
    ours, theirs = otsu_threshold(counts, centers), threshold_otsu(hist=(counts, centers))
    if ours != theirs:  # two splits can be nearly equally good, and scikit-image computes in float32
        ours, theirs = (between_class_variance(counts, centers, threshold) for threshold in (ours, theirs))
        assert theirs <= ours <= theirs * (1 + 1e-6)


def between_class_variance(counts: np.ndarray, values: np.ndarray, threshold: float) -> float:
    lower = values <= threshold
    means = [np.average(values[part], weights=counts[part]) for part in (lower, ~lower)]
    return float(counts[lower].sum() * counts[~lower].sum() * (means[0] - means[1]) ** 2)


def bimodal_maps(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0.2, 0.1, 6000), rng.normal(0.7, 0.12, 4000)]).clip(0, 1)
    return rng.permutation(values).reshape(2, 50, 100).astype(np.float16)


def test_threshold_of_pooled_activations_is_close_to_scikit_image() -> None:
    histogram = ActivationHistogram()
    images = [bimodal_maps(seed) for seed in range(4)]
    for maps in images:
        histogram.update(maps)
    pooled = np.concatenate([maps.max(axis=0).ravel() for maps in images]).astype(np.float32)
    assert histogram.otsu() == pytest.approx(threshold_otsu(pooled, nbins=4096), abs=1.5 / 256)
    assert histogram.compute().sum() == pooled.size


def test_threshold_separates_two_values() -> None:
    histogram = ActivationHistogram()
    histogram.update(np.array([[[0.25, 0.25, 0.75]]]))
    assert histogram.otsu() == 0.25  # only the other value is above it


def test_bins_end_where_a_threshold_cuts() -> None:
    counts = activation_histogram(np.array([[[0, 1 / 256, 1 / 256 + 1e-6, 1, 1.5, -1]]], np.float32))
    assert (counts[0], counts[1], counts[2], counts[256]) == (2, 1, 1, 2)
    assert counts.shape == (257,)


def test_histograms_without_two_values() -> None:
    histogram = ActivationHistogram()
    histogram.update(np.zeros((0, 4, 4), np.float32))
    with pytest.raises(ValueError, match="empty histogram"):
        histogram.otsu()
    histogram.update(np.zeros((2, 4, 4), np.float32))
    assert histogram.otsu() == 0  # no activation is above 0: all pixels are background
    with pytest.raises(ValueError, match="nan"):
        histogram.update(np.full((1, 2, 2), np.nan))
    with pytest.raises(ValueError, match=r"\[3\] and values is \[2\]"):
        otsu_threshold(np.ones(3), np.ones(2))


def test_merged_histograms_equal_a_single_one() -> None:
    single, first, second = (ActivationHistogram() for _ in range(3))
    for seed in range(4):
        single.update(bimodal_maps(seed))
        (first if seed % 2 else second).update(torch.from_numpy(bimodal_maps(seed)))
    first.merge_state(second)
    np.testing.assert_array_equal(first.compute(), single.compute())
    assert first.otsu() == single.otsu()
