"""The biases that make a network's probabilities agree with the masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import softmax

from tagmask.methods import _calibration
from tagmask.methods._calibration import LARGEST_BIAS, PIXELS_PER_IMAGE, fit_label_biases, sample_pixels

RNG = np.random.default_rng(0)
LABELS = RNG.choice(4, 3000, p=[0.7, 0.2, 0.08, 0.02])
LOG_PROBABILITIES = np.log(softmax(RNG.normal(size=(3000, 4)) + 2 * np.eye(4)[LABELS], axis=1))


def test_the_mean_probabilities_are_the_shares_of_the_labels() -> None:
    """Where the gradient of the cross-entropy is 0."""
    biases = fit_label_biases(LOG_PROBABILITIES, LABELS)
    shares = np.bincount(LABELS) / len(LABELS)
    np.testing.assert_allclose(softmax(LOG_PROBABILITIES + biases, axis=1).mean(0), shares, atol=1e-4)
    assert biases[0] == 0


def test_the_cross_entropy_is_that_of_torch_at_its_minimum() -> None:
    biases = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([biases], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.from_numpy(LOG_PROBABILITIES) + biases, torch.from_numpy(LABELS))
        value.backward()
        return value

    optimizer.step(loss)
    expected = (biases - biases[0]).detach().numpy()
    np.testing.assert_allclose(fit_label_biases(LOG_PROBABILITIES, LABELS), expected, atol=2e-3)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_label_biases(LOG_PROBABILITIES, LABELS)
    monkeypatch.setattr(_calibration, "CHUNK", 700)
    np.testing.assert_allclose(fit_label_biases(LOG_PROBABILITIES, LABELS), whole, atol=1e-6)


def test_labels_that_do_not_occur_are_left_out() -> None:
    rare = np.minimum(LABELS, 2)
    biases = fit_label_biases(LOG_PROBABILITIES, rare)
    np.testing.assert_allclose(biases[:3], fit_label_biases(LOG_PROBABILITIES[:, :3], rare))
    assert biases[3] == 0
    assert not fit_label_biases(LOG_PROBABILITIES, np.full(3000, 2)).any()
    assert not fit_label_biases(LOG_PROBABILITIES[:0], LABELS[:0]).any()


def test_the_biases_are_limited() -> None:
    """The best bias is infinite if no label is ever less probable than another one."""
    log_probabilities = np.log(np.array([[1 - 1e-30, 1e-30], [1 - 1e-30, 1e-30]]))
    np.testing.assert_allclose(fit_label_biases(log_probabilities, np.array([0, 1])), [0, LARGEST_BIAS])


def test_pixels_are_evenly_spaced_and_not_ignored() -> None:
    probabilities = RNG.random((3, 50, 60)).astype(np.float32)
    labels = RNG.integers(0, 3, (50, 60)).astype(np.uint8)
    labels[:25] = 255
    log_probabilities, chosen = sample_pixels(probabilities, labels, 255)
    assert log_probabilities.shape == (PIXELS_PER_IMAGE, 3)
    assert chosen.max() < 3
    np.testing.assert_allclose(np.exp(log_probabilities[0]), probabilities[:, 25, 0], rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_probabilities[-1]), probabilities[:, -1, -1], rtol=1e-6)
    few, _ = sample_pixels(np.zeros((3, 2, 2), np.float32), np.array([[255, 1], [0, 255]], np.uint8), 255)
    assert few.shape == (2, 3)
    assert np.isfinite(few).all()  # the logarithm of 0 would not be
    assert sample_pixels(probabilities, np.full((50, 60), 255, np.uint8), 255)[0].shape == (0, 3)
