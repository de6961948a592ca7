import numpy as np
import pytest
import torch

from tagmask.measure import activation_stats
from tagmask.measure.metrics import ActivationStatsMetric

TARGET = np.array([[1] * 11, [0] * 11, [255] * 11], np.uint8)
MAP = np.stack([np.arange(11) / 10, np.full(11, 0.1), np.full(11, 9.0)])  # ignored pixels must not count
UNIFORM = np.where(TARGET == 1, 0.5, 0.25)


def test_stats_match_hand_computed_values() -> None:
    # The activations inside are 0.0, 0.1, ... 1.0: percentiles 0.1 and 0.9, mean 0.5, variance 0.1.
    [stats] = activation_stats(MAP[None], np.array([1]), TARGET)
    assert stats.imbalance == pytest.approx(9)
    assert stats.variation == pytest.approx(np.sqrt(0.1) / 0.5)
    assert stats.gap == pytest.approx(0.4)


def test_uniform_imbalanced_and_missing_activation() -> None:
    assert activation_stats(UNIFORM[None], np.array([1]), TARGET) == [(1, 0, 0.25)]

    one_pixel = np.zeros(TARGET.shape)
    one_pixel[0, 0] = 1
    [stats] = activation_stats(one_pixel[None], np.array([1]), TARGET)
    assert stats.imbalance == np.inf

    not_in_target, zero = activation_stats(np.stack([UNIFORM, 0 * UNIFORM]), np.array([2, 1]), TARGET)
    assert np.isnan(not_in_target).all()
    assert np.isnan([zero.imbalance, zero.variation]).all()
    assert zero.gap == 0
    assert activation_stats(np.zeros((0, *TARGET.shape)), np.zeros(0), TARGET) == []


def test_means_over_images_and_processes() -> None:
    single, first, second = (ActivationStatsMetric() for _ in range(3))
    for metric in (single, first):
        metric.update(MAP[None], [1], TARGET)
    for metric in (single, second):
        metric.update(torch.from_numpy(np.stack([UNIFORM, UNIFORM])), torch.tensor([2, 1]), torch.from_numpy(TARGET))
        metric.update(np.zeros((0, 3, 11)), [], TARGET)
    first.merge_state(second)
    assert first.compute() == single.compute()
    # The harmonic mean of 9 and 1. The class that does not occur in the target does not count.
    assert single.compute() == pytest.approx((2 / (1 / 9 + 1), np.sqrt(0.1), (0.4 + 0.25) / 2))


def test_mean_imbalance_is_infinite_if_all_are() -> None:
    one_pixel = np.zeros(TARGET.shape)
    one_pixel[0, 0] = 1
    metric = ActivationStatsMetric()
    metric.update(one_pixel[None], [1], TARGET)
    assert metric.compute().imbalance == np.inf


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_stats_are_nan_without_images() -> None:
    assert np.isnan(ActivationStatsMetric().compute()).all()


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"maps is \[1, 3, 11\], classes is \[2\]"):
        activation_stats(MAP[None], np.array([1, 2]), TARGET)
