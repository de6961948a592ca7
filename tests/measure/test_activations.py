import numpy as np
import pytest
import torch

from tagmask.measure import MeanActivationFigures, activation_figures

TRUTH = np.array([[1] * 11, [0] * 11, [255] * 11], np.uint8)
MAP = np.stack([np.arange(11) / 10, np.full(11, 0.1), np.full(11, 9.0)])  # unsure pixels must not count


def test_one_image_by_hand() -> None:
    # 0.0, 0.1, ... 1.0 inside: percentiles 0.1 and 0.9, mean 0.5, variance 0.1.
    figures = activation_figures(MAP[None], np.array([1]), TRUTH)
    assert figures.imbalance == pytest.approx([9])
    assert figures.variation == pytest.approx([np.sqrt(0.1) / 0.5])
    assert figures.gap == pytest.approx([0.4])


def test_even_uneven_and_absent() -> None:
    even = np.where(TRUTH == 1, 0.5, 0.25)
    spike = np.zeros(TRUTH.shape)
    spike[0, 0] = 1
    figures = activation_figures(np.stack([even]), np.array([1]), TRUTH)
    assert (figures.imbalance[0], figures.variation[0], figures.gap[0]) == (1, 0, 0.25)
    figures = activation_figures(np.stack([spike]), np.array([1]), TRUTH)
    assert figures.imbalance[0] == np.inf
    figures = activation_figures(np.stack([even, 0 * even]), np.array([2, 1]), TRUTH)
    assert np.isnan(figures.imbalance).all()
    assert np.isnan(figures.gap[0])
    assert figures.gap[1] == 0
    assert activation_figures(np.zeros((0, *TRUTH.shape)), np.zeros(0), TRUTH).gap.shape == (0,)


def test_means_over_images_and_processes() -> None:
    even = np.where(TRUTH == 1, 0.5, 0.25)
    one, first, second = (MeanActivationFigures() for _ in range(3))
    for metric in (one, first):
        metric.update(MAP[None], [1], TRUTH)
    for metric in (one, second):
        metric.update(torch.from_numpy(np.stack([even, even])), torch.tensor([2, 1]), torch.from_numpy(TRUTH))
        metric.update(np.zeros((0, 3, 11)), [], TRUTH)
    first.merge_state(second)
    assert first.compute() == one.compute()
    # Harmonic mean of 9 and 1; the class that is not in the truth counts in none.
    assert one.compute() == pytest.approx((2 / (1 / 9 + 1), np.sqrt(0.1), (0.4 + 0.25) / 2))


@pytest.mark.filterwarnings("ignore:.*before the ``update``")
def test_nothing_measured() -> None:
    assert np.isnan(MeanActivationFigures().compute()).all()


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\[1, 3, 11\], \[2\]"):
        activation_figures(MAP[None], np.array([1, 2]), TRUTH)
