"""The weights of the classes on fixed features: the minimum of a convex loss."""

from __future__ import annotations

import numpy as np
import pytest

from tagmask.models import linear_head
from tagmask.models.linear_head import fit_linear_head

WEIGHT_DECAY = 0.01


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    """40 images with 3 views of 5 features, and tags of 2 classes that depend on them, but not exactly."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3, 5)).astype(np.float32)
    scores = features.mean(1) @ rng.normal(size=(5, 2)) + 0.3 * rng.normal(size=(40, 2))
    return features, (scores > 0).astype(np.uint8)


def test_weights_are_those_of_logistic_regression(problem: tuple[np.ndarray, np.ndarray]) -> None:
    """scikit-learn minimizes C · Σ loss + ‖w‖² / 2, with the sum over all views: C = 1 / (K · N · V · weight decay)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, tags = problem
    weights = fit_linear_head(features, tags, WEIGHT_DECAY)
    c = 1 / (tags.shape[1] * len(features) * features.shape[1] * WEIGHT_DECAY)
    model = linear_model.LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=10_000)
    for k, weight in enumerate(weights):
        model.fit(features.reshape(-1, 5), np.repeat(tags[:, k], 3))
        np.testing.assert_allclose(weight, model.coef_[0], atol=1e-4)


def test_the_gradient_of_the_loss_is_zero(problem: tuple[np.ndarray, np.ndarray]) -> None:
    """The loss of PyTorch, which the training of a CAM minimizes, has its minimum there."""
    import torch
    import torch.nn.functional as F

    features, tags = problem
    weight = torch.from_numpy(fit_linear_head(features, tags, WEIGHT_DECAY)).requires_grad_()
    logits = torch.from_numpy(features).double() @ weight.T
    targets = torch.from_numpy(tags).double()[:, None].expand_as(logits)
    loss = F.multilabel_soft_margin_loss(logits.flatten(0, 1), targets.flatten(0, 1)) + (
        WEIGHT_DECAY / 2 * (weight**2).sum()
    )
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-5


def test_chunks_do_not_change_the_result(
    problem: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_linear_head(*problem, WEIGHT_DECAY)
    monkeypatch.setattr(linear_head, "CHUNK_VALUES", 7 * 3 * 5)
    np.testing.assert_allclose(fit_linear_head(*problem, WEIGHT_DECAY), whole, atol=1e-8)


def test_the_loss_never_rises(problem: tuple[np.ndarray, np.ndarray]) -> None:
    losses: list[float] = []
    fit_linear_head(*problem, WEIGHT_DECAY, losses.append)
    assert losses[0] < np.log(2)  # that of weights of 0
    assert losses == sorted(losses, reverse=True)
