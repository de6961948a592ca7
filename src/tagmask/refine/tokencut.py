"""Foreground of an image by a normalized cut of its tokens, without any training on saliency.

Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized Cut", CVPR 2022
(TokenCut), section 3.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

TAU = 0.2  # the public code, for DINO
WEAK_EDGE = 1e-5  # the affinity of tokens that are not alike
SMALLEST = 1e-12


def token_affinity(tokens: np.ndarray, tau: float = TAU) -> NDArray[np.float64]:
    """Return the affinity [N, N] of tokens [N, D]: 1 where their cosine similarity is above `tau`, else 1e-5."""
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=1, keepdims=True), SMALLEST)
    return np.where(unit @ unit.T > tau, 1.0, WEAK_EDGE)


def second_eigenvector(affinity: np.ndarray) -> NDArray[np.float64]:
    """Return the y [N] of the second smallest λ with (D − A) y = λ D y, the relaxed normalized cut.

    Args:
        affinity: A [N, N], symmetric and above 0, N ≥ 2. D is the diagonal matrix of its row sums.
    """
    degrees = np.diag(affinity.sum(1))
    _, vectors = scipy.linalg.eigh(degrees - affinity, degrees, subset_by_index=(1, 1))
    return vectors[:, 0]


def cut_tokens(tokens: np.ndarray, tau: float = TAU) -> NDArray[np.bool_]:
    """Return which tokens [N, D] are foreground, [N].

    The second eigenvector is cut at its mean. The side that has its entry of the largest absolute value is foreground.
    There is none if all tokens are alike.
    """
    affinity = token_affinity(tokens, tau)
    if affinity.min() == 1:
        return np.zeros(len(tokens), bool)
    vector = second_eigenvector(affinity)
    above = vector > vector.mean()
    return above if above[np.abs(vector).argmax()] else ~above
