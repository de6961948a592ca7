import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from tagmask.measure import ActivationHistogram, otsu_threshold


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(2, 300))
def test_as_scikit_image_on_histograms(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    # Every bin is filled: where some are empty, splits are equally good and rounding picks one.
    counts = rng.poisson(1000 * rng.random(bins)) + 1
    centres = np.arange(bins) / bins
    assert otsu_threshold(counts, centres) == threshold_otsu(hist=(counts, centres))


def two_humps(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0.2, 0.1, 6000), rng.normal(0.7, 0.12, 4000)]).clip(0, 1)
    return rng.permutation(values).reshape(2, 50, 100).astype(np.float16)


def test_as_scikit_image_on_pooled_activations() -> None:
    histogram = ActivationHistogram()
    images = [two_humps(seed) for seed in range(4)]
    for maps in images:
        histogram.update(maps)
    pooled = np.concatenate([maps.max(axis=0).ravel() for maps in images]).astype(np.float32)
    assert histogram.otsu() == pytest.approx(threshold_otsu(pooled, nbins=4096), abs=1.5 / 256)
    assert histogram.compute().sum() == pooled.size


def test_two_values_by_hand() -> None:
    histogram = ActivationHistogram()
    histogram.update(np.array([[[0.25, 0.25, 0.75]]]))
    assert histogram.otsu() == 0.25  # above it is the other value alone


def test_edges_of_the_bins_split_as_the_label_rule_does() -> None:
    histogram = ActivationHistogram()
    histogram.update(np.array([[[0, 1 / 256, 1 / 256 + 1e-6, 1, 1.5, -1]]], np.float32))
    counts = histogram.compute()
    assert (counts[0], counts[1], counts[2], counts[256]) == (2, 1, 1, 2)


def test_nothing_to_split() -> None:
    histogram = ActivationHistogram()
    histogram.update(np.zeros((0, 4, 4), np.float32))
    with pytest.raises(ValueError, match="empty histogram"):
        histogram.otsu()
    histogram.update(np.zeros((2, 4, 4), np.float32))
    assert histogram.otsu() == 0  # no activation is above 0: all background
    with pytest.raises(ValueError, match="nan"):
        histogram.update(np.full((1, 2, 2), np.nan))
    with pytest.raises(ValueError, match=r"\[3\], thresholds \[2\]"):
        otsu_threshold(np.ones(3), np.ones(2))


def test_two_processes_give_what_one_gives() -> None:
    one, first, second = ActivationHistogram(), ActivationHistogram(), ActivationHistogram()
    for seed in range(4):
        one.update(two_humps(seed))
        (first if seed % 2 else second).update(torch.from_numpy(two_humps(seed)))
    first.merge_state(second)
    np.testing.assert_array_equal(first.compute(), one.compute())
    assert first.otsu() == one.otsu()
