"""The weights of the classes on features that no longer change: the minimum of a convex loss, found by L-BFGS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

CHUNK_VALUES = 2**24  # features that are converted to float64 at a time: 128 MiB
MAX_ITERATIONS = 500
GRADIENT_TOLERANCE = 1e-6  # of the largest entry of the gradient, at which the search ends


def fit_linear_head(
    features: np.ndarray,
    tags: np.ndarray,
    weight_decay: float,
    on_iteration: Callable[[float], None] = lambda loss: None,
) -> np.ndarray:
    """Find the weights W with the smallest loss, mean(BCE(σ(W · f), tags)) + weight_decay / 2 · ‖W‖².

    The mean is over all images, views and classes. This is what the training of a CAM classifier minimizes (the
    multi-label soft margin loss, and the weight decay of the optimizer), without a bias. It is convex, so that the
    result does not depend on an order or on a seed. Each class is one logistic regression.

    Args:
        features: [N, V, D] float, the pooled features of V views of each of N images.
        tags: [N, K], 1 for the classes of an image, else 0.
        weight_decay: at least 0. With 0 and classes that can be separated, the weights have no bound; the search then
            ends after 500 iterations.
        on_iteration: called after each iteration with the loss.

    Returns:
        [K, D] float64.
    """
    num_images, num_views, channels = features.shape
    num_classes = tags.shape[1]
    count = num_images * num_views * num_classes
    step = max(1, CHUNK_VALUES // (num_views * channels))
    latest = [0.0]

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat.reshape(num_classes, channels)
        loss, gradient = 0.5 * weight_decay * float(flat @ flat), weight_decay * weight
        for start in range(0, num_images, step):
            chunk = features[start : start + step].reshape(-1, channels).astype(np.float64)
            targets = np.repeat(tags[start : start + step].astype(np.float64), num_views, axis=0)
            logits = chunk @ weight.T
            loss += float(np.logaddexp(0, logits).sum() - (logits * targets).sum()) / count
            gradient = gradient + (expit(logits) - targets).T @ chunk / count
        latest[0] = loss
        return loss, gradient.ravel()

    result = minimize(
        loss_and_gradient,
        np.zeros(num_classes * channels),
        method="L-BFGS-B",
        jac=True,
        callback=lambda flat: on_iteration(latest[0]),
        options={"maxiter": MAX_ITERATIONS, "gtol": GRADIENT_TOLERANCE, "ftol": 0.0, "maxcor": 20},
    )
    weights: np.ndarray = result.x.reshape(num_classes, channels)
    return weights
