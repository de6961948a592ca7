"""Test the spreading of maps along affinities against CLIP-ES's steps in plain NumPy, and against simple cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tagmask.refine.affinity import box_mask, cosine_affinity, spread, transition_matrix


def random_affinity(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, n)).astype(np.float32))


def test_the_steps_are_those_of_clip_es() -> None:
    """Section 3.3 and the order of operations of the public code, in float64: columns, rows, average, square, boxes."""
    rng = np.random.default_rng(1)
    h, w = 4, 5
    attention, response = rng.random((h * w, h * w)), np.zeros((h, w))
    response[1:3, 1:3] = [[0.2, 1.0], [0.9, 0.3]]
    a = attention.copy()
    for _ in range(3):
        a /= a.sum(0, keepdims=True)
        a /= a.sum(1, keepdims=True)
    a = (a + a.T) / 2
    box = np.zeros((h, w))
    box[1:3, 1:3] = 1  # around the two cells above 0.4, which touch at a corner
    expected = (a @ a * box.reshape(1, -1)) @ response.reshape(-1, 1)
    maps = torch.from_numpy(response.astype(np.float32))[None]
    got = spread(maps, transition_matrix(torch.from_numpy(attention)), steps=2, box_threshold=0.4)
    np.testing.assert_allclose(got[0], expected.reshape(h, w), rtol=1e-5)


def test_identity_returns_the_map() -> None:
    maps = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    got = spread(maps, transition_matrix(torch.eye(12)), steps=3, box_threshold=None)
    torch.testing.assert_close(got, maps)


def test_uniform_attention_returns_the_mean() -> None:
    maps = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    got = spread(maps, transition_matrix(torch.ones(12, 12)), box_threshold=None)
    torch.testing.assert_close(got, maps.mean((1, 2), keepdim=True).expand_as(maps))


@given(st.integers(2, 12), st.integers(0, 100))
def test_a_balanced_matrix_is_symmetric_and_nearly_doubly_stochastic(n: int, seed: int) -> None:
    matrix = transition_matrix(random_affinity(n, seed), normalizations=30)
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.sum(0), torch.ones(n), atol=2e-2, rtol=0)


def test_cells_without_affinity_give_no_nan() -> None:
    affinity = random_affinity(4)
    affinity[2], affinity[:, 2] = 0, 0
    assert torch.isfinite(transition_matrix(affinity)).all()


def test_boxes_surround_each_part() -> None:
    response = np.zeros((5, 7))
    response[0, 0], response[1, 1], response[4, 6], response[3, 3] = 0.9, 0.5, 1.0, 0.4
    expected = np.zeros((5, 7), bool)
    expected[:2, :2] = expected[4, 6] = True  # 0.4 is not above 0.4
    np.testing.assert_array_equal(box_mask(response, 0.4), expected)
    assert not box_mask(np.zeros((3, 3)), 0.4).any()


def test_cosine_affinity() -> None:
    features = torch.tensor([[[3.0, 0.0, -1.0, 1.0]], [[0.0, 2.0, 0.0, 1.0]]])  # four cells with two channels
    half = 0.5**0.5
    expected = torch.tensor([[1, 0, 0, half], [0, 1, 0, half], [0, 0, 1, 0], [half, half, 0, 1]])
    torch.testing.assert_close(cosine_affinity(features, 1), expected)
    torch.testing.assert_close(cosine_affinity(features, 4), expected**4)


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_are_powers_of_the_matrix(steps: int) -> None:
    matrix, maps = transition_matrix(random_affinity(6)), torch.rand(1, 2, 3)
    expected = torch.linalg.matrix_power(matrix, steps) @ maps.reshape(6)
    torch.testing.assert_close(spread(maps, matrix, steps, None).reshape(6), expected)
