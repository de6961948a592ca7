"""Tests of the colors of an image: bins and likelihoods by hand, and the CRF that uses them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from tagmask.refine.colors import FINE_BINS, color_bins, color_log_ratios
from tagmask.refine.map_cutting import refine_labels
from tagmask.refine.settings import CrfSettings


def test_bins_per_channel() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255], [31, 32, 64]]], np.uint8)
    assert color_bins(image).tolist() == [[0, 511, 0 * 64 + 1 * 8 + 2]]
    assert color_bins(image, 16).tolist() == [[0, 4095, 1 * 256 + 2 * 16 + 4]]


def test_log_ratios_of_smoothed_histograms_by_hand() -> None:
    image = np.zeros((1, 5, 3), np.uint8)
    image[0, :, 0] = [128, 128, 144, 128, 224]  # bins 8, 8, 9, 8 and 14 of red
    labels = np.array([[0, 0, 0, 1, -1]])

    def share(reds: list[int], at: int) -> float:
        counts = np.zeros([FINE_BINS] * 3)
        for red in reds:
            counts[red, 0, 0] += 1 / len(reds)
        return 0.99 * float(ndimage.gaussian_filter(counts, 1.2)[at, 0, 0]) + 0.01 / FINE_BINS**3

    expected = [math.log(share([8], red) / share([8, 8, 9], red)) for red in (8, 8, 9, 8, 14)]
    ratios = color_log_ratios(image, labels, 3)
    np.testing.assert_allclose(ratios[1, 0], np.clip(expected, -3, 3), rtol=1e-4)
    assert not ratios[[0, 2]].any()  # the background, and a label without pixels
    assert not color_log_ratios(image, np.ones((1, 5)), 3).any()


def test_the_crf_takes_parts_of_the_color_of_the_object() -> None:
    """A red bar on green noise, of which the cut has found only the left half and the CRF cannot reach the far end."""
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 120), bool)
    truth[16:24, 10:50] = truth[16:24, 60:110] = True
    image = np.where(truth[..., None], (200, 60, 60), (60, 120, 60)) + rng.integers(0, 12, (40, 120, 3))
    cut = np.zeros((40, 120), np.uint8)
    cut[16:24, 10:50] = 7
    crf = CrfSettings(bilateral_sxy=5)
    plain = refine_labels(image.astype(np.uint8), cut, np.array([7]), crf)
    colored = refine_labels(image.astype(np.uint8), cut, np.array([7]), crf, color_weight=0.8)
    assert np.mean((plain == 7)[truth]) < 0.6
    assert np.mean((colored == 7)[truth]) > 0.95
    assert np.mean((colored == 7)[~truth]) < 0.01
    assert set(np.unique(colored)) == {0, 7}


@pytest.mark.parametrize("labels", [np.zeros((8, 8), np.uint8), np.full((8, 8), 2, np.uint8)])
def test_colors_of_one_label_change_nothing(labels: np.ndarray) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    expected = refine_labels(image, labels, np.array([2]), CrfSettings())
    np.testing.assert_array_equal(
        refine_labels(image, labels, np.array([2]), CrfSettings(), color_weight=1.0), expected
    )
