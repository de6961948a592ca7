"""Biases of the labels, so that a trained network's probabilities agree with the masks from which it learned.

A network learns from random crops, with batch norms that see the statistics of a batch. On whole images, with fixed
statistics, it may find one label too often and another one too seldom; by how much depends on chance. The biases are
those of vector scaling: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

PIXELS_PER_IMAGE = 500
LARGEST_BIAS = 5.0
CHUNK = 65_536
"""Pixels that are computed at once, to save memory."""


def sample_pixels(probabilities: np.ndarray, labels: np.ndarray, ignored: int) -> tuple[np.ndarray, np.ndarray]:
    """Take at most `PIXELS_PER_IMAGE` evenly spaced pixels of an image that have a label.

    Args:
        probabilities: [L, H, W] float32.
        labels: [H, W] uint8.
        ignored: the label of the pixels to leave out.

    Returns:
        The logarithms of their probabilities [N, L] float32, and their labels [N] uint8.
    """
    pixels = np.flatnonzero(labels != ignored)
    pixels = pixels[np.linspace(0, len(pixels) - 1, min(PIXELS_PER_IMAGE, len(pixels))).round().astype(int)]
    chosen = probabilities.reshape(len(probabilities), -1)[:, pixels].T
    return np.log(np.maximum(chosen, np.finfo(np.float32).tiny)), labels.ravel()[pixels]


def fit_label_biases(log_probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find what to add to the log-probabilities so that their mean cross-entropy with the labels is smallest.

    At the minimum, which is unique, the mean probability of each label is its share in the labels. Labels that do not
    occur are left out, as if their probabilities were 0.

    Args:
        log_probabilities: [N, L] of N pixels.
        labels: [N], from 0 to L - 1.

    Returns:
        [L] float64, at most `LARGEST_BIAS` in size; 0 for the first label that occurs, and for those that do not.

    Example:
        >>> half = np.log(np.full((4, 2), 0.5))
        >>> np.exp(fit_label_biases(half, np.array([0, 1, 1, 1]))).round(3).tolist()  # 3 / 4 are 3 times 1 / 4
        [1.0, 3.0]
    """
    biases = np.zeros(log_probabilities.shape[1])
    occurring, counts = np.unique(labels, return_counts=True)
    if len(occurring) < 2:
        return biases
    shares = counts / len(labels)

    def cross_entropy(own: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean cross-entropy, but for a constant, and its gradient."""
        value, gradient = 0.0, np.zeros(len(own))
        for start in range(0, len(labels), CHUNK):
            logits = log_probabilities[start : start + CHUNK, occurring] + own
            normalizers = logsumexp(logits, axis=1)
            value += normalizers.sum()
            gradient += np.exp(logits - normalizers[:, None]).sum(0)
        return value / len(labels) - shares @ own, gradient / len(labels) - shares

    bounds = [(0.0, 0.0)] + (len(occurring) - 1) * [(-LARGEST_BIAS, LARGEST_BIAS)]
    biases[occurring] = minimize(cross_entropy, np.zeros(len(occurring)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return biases
