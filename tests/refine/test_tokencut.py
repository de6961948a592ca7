"""TokenCut's normalized cut of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from tagmask.refine.tokencut import cut_tokens, second_eigenvector, token_affinity


def two_clusters(num_first: int, num_second: int) -> np.ndarray:
    """Tokens of two orthogonal directions, of any length."""
    return np.concatenate([[[2.0, 0.0]] * num_first, [[0.0, 5.0]] * num_second])


def test_the_affinity_of_hand_made_tokens() -> None:
    """The cosines of (1, 0), (3, 4) and (0, 1) are 0.6, 0.8 and 0."""
    tokens = np.array([[1.0, 0], [3, 4], [0, 1]])
    weak = 1e-5
    np.testing.assert_array_equal(token_affinity(tokens, 0.7), [[1, weak, weak], [weak, 1, 1], [weak, 1, 1]])
    assert token_affinity(np.zeros((2, 3)))[0, 0] == weak  # the direction of a zero is not known


def test_the_eigenvector_of_two_clusters_worked_by_hand() -> None:
    """With clusters of 3 and 6 tokens, y is constant on each, and orthogonal to the vector of ones in the metric D.

    The degrees are 3 + 6e and 6 + 3e with e = 1e-5, so that y is 6 (6 + 3e) on the smaller cluster, and −3 (3 + 6e) on
    the larger one, except for a factor.
    """
    vector = second_eigenvector(token_affinity(two_clusters(3, 6)))
    ratio = -6 * (6 + 3e-5) / (3 * (3 + 6e-5))
    np.testing.assert_allclose(vector[:3] / vector[3], [ratio] * 3, rtol=1e-6)
    np.testing.assert_allclose(vector[3:] / vector[3], 1, rtol=1e-6)


@pytest.mark.parametrize(("first", "second"), [(3, 6), (6, 3)])
def test_the_smaller_cluster_is_foreground(first: int, second: int) -> None:
    expected = np.repeat([first < second, first > second], [first, second])
    np.testing.assert_array_equal(cut_tokens(two_clusters(first, second)), expected)


def test_tokens_that_are_all_alike_have_no_foreground() -> None:
    assert not cut_tokens(np.ones((5, 2))).any()
    assert not cut_tokens(np.ones((1, 2))).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_eigenvector_equals_that_of_numpys_full_decomposition(seed: int) -> None:
    """y = D^-½ z, where z is the second smallest eigenvector of D^-½ (D − A) D^-½."""
    affinity = token_affinity(np.random.default_rng(seed).normal(0.3, 1, (40, 6)), 0.2)
    degrees = affinity.sum(1)
    root = np.diag(degrees**-0.5)
    values, vectors = np.linalg.eigh(root @ (np.diag(degrees) - affinity) @ root)
    expected = root @ vectors[:, 1]
    assert values[2] - values[1] > 1e-4
    got = second_eigenvector(affinity)
    np.testing.assert_allclose(got * np.sign(got[0] * expected[0]), expected, atol=1e-8)
    assert scipy.linalg.norm((np.diag(degrees) - affinity) @ got - values[1] * degrees * got) < 1e-8
