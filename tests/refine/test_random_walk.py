"""Tests of the random walk against the code of IRN and an exact dense transition matrix in float64."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.memory import peak_memory

from tagmask.large_images import MAX_PIXELS
from tagmask.maps import ResponseMaps, grid_size
from tagmask.refine import random_walk
from tagmask.refine.instances import find_instances
from tagmask.refine.random_walk import half_disc, propagate, walk_maps
from tagmask.refine.settings import RandomWalkSettings

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "irn.npz")


def example(num_maps: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    maps = random.random((num_maps, height, width)).astype(np.float32)
    return maps, (random.random((height, width)) ** 2).astype(np.float32)


def exact(maps: np.ndarray, boundary: np.ndarray, radius: int, beta: float, steps: int) -> np.ndarray:
    """The definition in float64, x T^steps with a dense T; a path is all cells less than 1 from the straight line."""
    height, width = boundary.shape
    cells = np.stack(np.indices((height, width)), -1).reshape(-1, 2)
    affinity = np.eye(len(cells))
    for i, (y, x) in enumerate(cells):
        for j, (v, u) in enumerate(cells):
            dy, dx = v - y, u - x
            if i == j or dy * dy + dx * dx >= radius * radius:
                continue
            within = (cells >= np.minimum([y, x], [v, u])) & (cells <= np.maximum([y, x], [v, u]))
            off = np.abs(dy * (cells[:, 1] - x) - dx * (cells[:, 0] - y)) / np.hypot(dy, dx)
            affinity[i, j] = 1 - boundary.ravel()[within.all(1) & (off < 1)].max().astype(float)
    transition = affinity**beta
    transition /= transition.sum(0)
    start = (maps.astype(float) * (1 - boundary.astype(float))).reshape(len(maps), -1)
    return (start @ np.linalg.matrix_power(transition, steps)).reshape(maps.shape)


@pytest.mark.parametrize(("beta", "steps"), [(10, 256), (8, 16)])
def test_agrees_with_the_reference_code(beta: int, steps: int) -> None:
    ours = propagate(GOLDENS["maps"], GOLDENS["boundary"], beta=beta, steps=steps)
    theirs = GOLDENS[f"propagated_beta{beta}_steps{steps}"]
    # The reference code squares in float32; its own error is 1.45e-5 after 256 steps.
    np.testing.assert_allclose(ours, theirs, rtol=2e-5 if steps == 256 else 1e-5)
    np.testing.assert_allclose(ours, exact(GOLDENS["maps"], GOLDENS["boundary"], 5, beta, steps), rtol=2e-6)


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (6, 8)])
def test_any_radius_and_shape(radius: int, shape: tuple[int, int]) -> None:
    maps, boundary = example(2, *shape)
    ours = propagate(maps, boundary, radius=radius, beta=3, steps=20)
    np.testing.assert_allclose(ours, exact(maps, boundary, radius, 3, 20), rtol=2e-6)


def test_the_walk_stops_at_closed_boundaries_and_levels_out_within_them() -> None:
    boundary = np.zeros((12, 21), np.float32)
    boundary[:, 10] = 1
    maps = np.zeros((1, 12, 21), np.float32)
    maps[0, :, :10] = 1
    walked = propagate(maps, boundary)[0]
    np.testing.assert_allclose(walked[:, :10], 1, atol=1e-5)
    assert walked[:, 10:].max() == 0
    maps[0, :, :10] = 0
    maps[0, 6, 3] = 1
    walked = propagate(maps, boundary, steps=2000)[0]
    assert walked[:, :10].min() > 0
    assert walked[:, :10].std() < 1e-3


def test_maps_are_independent_of_each_other_and_of_the_threads() -> None:
    maps, boundary = example(5, 20, 30)
    together = propagate(maps, boundary, threads=1)
    for threads in (2, 3, 8):
        np.testing.assert_array_equal(propagate(maps, boundary, threads=threads), together)
    np.testing.assert_array_equal(propagate(maps[3:4], boundary), together[3:4])
    assert propagate(maps[:0], boundary).shape == (0, 20, 30)
    np.testing.assert_array_equal(propagate(maps, boundary, steps=0), maps * (1 - boundary))


def test_large_grids_are_coarsened(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, columns = np.mgrid[:61, :83]
    maps = np.exp(-((rows - 20) ** 2 + (columns - 30) ** 2) / 300)[None].astype(np.float32)
    boundary = np.zeros((61, 83), np.float32)
    boundary[:, 50:52] = 1
    maps[0, :, 50:] = 0
    fine = propagate(maps, boundary, steps=64)
    monkeypatch.setattr(random_walk, "MAX_CELLS", 61 * 83 // 3)
    coarse = propagate(maps, boundary, steps=64)
    assert coarse.shape == fine.shape
    assert coarse.dtype == np.float32
    assert np.abs(fine - coarse).mean() < 0.02
    assert coarse[0, :, 54:].max() < 1e-3


def test_a_coarsened_grid_takes_at_least_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, boundary = example(1, 20, 30)
    monkeypatch.setattr(random_walk, "MAX_CELLS", 60)
    for steps in (0, 1):
        assert np.array_equal(propagate(maps, boundary, steps=1), propagate(maps, boundary, steps=steps)) == bool(steps)


def test_the_memory_for_the_largest_image_is_bounded() -> None:
    """Larger images are reduced before the walk. This one has 25 objects of each of two classes."""
    side = math.isqrt(MAX_PIXELS)
    height, width = grid_size((side, side))
    boundary = np.zeros((height, width), np.float32)
    maps = np.random.default_rng(0).random((2, height, width)).astype(np.float32)
    propagate(maps[:, :9, :9], boundary[:9, :9], steps=1)  # imports numba
    for radius in (5, 30):
        used = peak_memory(partial(propagate, maps, boundary, radius=radius, steps=2))
        num_affinities = height * width * len(half_disc(radius))
        # 4 bytes per affinity, 8 MB for all else (threads, too); at radius 30, the grid is coarsened
        assert used < min(4 * num_affinities + 8e6, 240e6)
    rows, columns = np.mgrid[:height, :width]
    steps = height // 5, width // 5
    field = np.stack([steps[0] // 2 - rows % steps[0], steps[1] // 2 - columns % steps[1]]).astype(np.float32)
    response_maps = ResponseMaps(np.array([1, 2]), maps, (side, side))
    walk = RandomWalkSettings(steps=2)
    assert find_instances(response_maps, boundary, field, walk, threshold=0.25)
    used = peak_memory(partial(find_instances, response_maps, boundary, field, walk, threshold=0.25))
    assert used < 150 * side**2  # all fifty parts at full size would take 200 bytes per pixel


@pytest.mark.parametrize(
    ("maps", "boundary", "options", "message"),
    [
        (np.zeros((2, 4, 5)), np.zeros((5, 4)), {}, r"\[5, 4\].*\[2, 4, 5\]"),
        (np.zeros((4, 5)), np.zeros((4, 5)), {}, r"\[4, 5\]"),
        (np.zeros((2, 0, 5)), np.zeros((0, 5)), {}, r"\[0, 5\]"),
        (np.zeros((2, 4, 5)), np.full((4, 5), 1.5), {}, "probabilities"),
        (np.zeros((2, 4, 5)), np.full((4, 5), np.nan), {}, "probabilities"),
        (np.full((2, 4, 5), np.nan), np.zeros((4, 5)), {}, "NaN"),
        (np.zeros((2, 4, 5)), np.zeros((4, 5)), {"radius": 0}, "radius"),
    ],
)
def test_wrong_arguments_are_refused(
    maps: np.ndarray, boundary: np.ndarray, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        propagate(maps, boundary, **options)


def striped_maps(*heights: float) -> ResponseMaps:
    """Maps of classes 1, 2, ... of 8×8 cells, each with one activation in its own stripe of columns."""
    maps = np.zeros((len(heights), 8, 8), np.float16)
    for k, height in enumerate(heights):
        maps[k, :, 8 * k // len(heights) : 8 * (k + 1) // len(heights)] = height
    return ResponseMaps(np.arange(1, len(heights) + 1), maps, (32, 30))


def test_walk_maps_divides_by_the_highest_activation_of_all_classes() -> None:
    no_steps, no_boundary = RandomWalkSettings(steps=0), np.zeros((8, 8), np.float32)
    labels = walk_maps(striped_maps(0.5, 0.1), no_boundary, no_steps).label_map(0.25)
    assert labels.shape == (32, 30)
    assert labels[16, 4] == 1
    assert labels[16, 28] == 0  # 0.1 / 0.5 is below 0.25
    assert walk_maps(striped_maps(0.5, 0.2), no_boundary, no_steps).label_map(0.25)[16, 28] == 2
    assert walk_maps(striped_maps(0.5, 0.15), no_boundary, no_steps).label_map(0.25)[16, 28] == 2


def test_map_power_weakens_low_activations() -> None:
    # AMN uses the power 1.3: 0.4 ** 1.3 = 0.304 is above 0.25, 0.3 ** 1.3 = 0.209 is not.
    settings, no_boundary = RandomWalkSettings(steps=0, map_power=1.3), np.zeros((8, 8), np.float32)
    assert walk_maps(striped_maps(0.5, 0.2), no_boundary, settings).label_map(0.25)[16, 28] == 2
    assert walk_maps(striped_maps(0.5, 0.15), no_boundary, settings).label_map(0.25)[16, 28] == 0


def test_walk_maps_of_images_without_tags_or_activation_are_background() -> None:
    for maps in (striped_maps(), striped_maps(0.0, 0.0)):
        assert walk_maps(maps, np.zeros((8, 8), np.float32), RandomWalkSettings()).label_map(0.25).max() == 0
    pixel = ResponseMaps(np.array([3]), np.ones((1, 1, 1), np.float16), (1, 1))
    assert walk_maps(pixel, np.zeros((1, 1), np.float32), RandomWalkSettings()).label_map(0.25).tolist() == [[3]]
