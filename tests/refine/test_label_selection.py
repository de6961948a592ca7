"""Tests of leaving out labels that cannot win in the dense CRF."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tagmask.refine import crf_labels
from tagmask.refine.crf_labels import most_probable_crf_labels
from tagmask.refine.dense_crf import apply_crf, build_lattices, unary_from_labels, unary_from_probabilities
from tagmask.refine.label_selection import MAX_ROW_SUM, SelectedLabels, bound_exponent, select_labels
from tagmask.refine.permutohedral import slice_onto, splat_and_blur
from tagmask.refine.settings import NETWORK_CRF, CrfSettings
from tagmask.refine.threads import Threads

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "dense_crf.npz")


def photograph(name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image [H, W, 3] uint8, and a label map [H, W] of labels 0 .. 2."""
    image = Image.fromarray(GOLDENS[f"{name}_image"]).resize((width, height), Image.Resampling.BICUBIC)
    labels = Image.fromarray(GOLDENS[f"{name}_labels"].clip(0, 2)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image), np.asarray(labels)


def network_probabilities(labels: np.ndarray, num_labels: int, seed: int, spread: float = 1.5) -> np.ndarray:
    """Probabilities [L, H, W] as of a network: logits on a grid of 8 pixels, high ones for the labels of a label map.

    The logits of all other labels are noise around a level of their own, so that some come near those of the image.
    """
    rng = np.random.default_rng(seed)
    height, width = labels.shape
    logits = rng.normal(size=(num_labels, height // 8, width // 8)) * spread - rng.gamma(4, 2, (num_labels, 1, 1))
    for label, index in enumerate(rng.permutation(num_labels)[: labels.max() + 1]):
        inside = Image.fromarray((labels == label).astype(np.float32)).resize((width // 8, height // 8))
        logits[index] += 8 * np.asarray(inside)
    planes = [Image.fromarray(plane.astype(np.float32)).resize((width, height), 2) for plane in logits]
    exponentials = np.exp(np.stack([np.asarray(plane) for plane in planes]))
    return (exponentials / exponentials.sum(0)).astype(np.float32)


def full_labels(image: np.ndarray, probabilities: np.ndarray, crf: CrfSettings) -> np.ndarray:
    return apply_crf(image, unary_from_probabilities(probabilities), crf).argmax(0)


@pytest.mark.parametrize("name", ["cat", "cup"])
@pytest.mark.parametrize("crf", [NETWORK_CRF, CrfSettings()], ids=["network", "seeds"])
def test_labels_of_81_are_those_of_the_full_crf(name: str, crf: CrfSettings) -> None:
    image, labels = photograph(name, 120, 160)
    differing = 0
    for seed in range(2):
        probabilities = network_probabilities(labels, 81, seed)
        selected = select_labels(probabilities, crf)
        assert len(selected.labels) < 30
        assert len(selected.labels) + len(selected.reserve) < 60
        full = full_labels(image, probabilities, crf)
        assert (full != probabilities.argmax(0)).mean() > 0.02  # the CRF does something
        differing += np.sum(most_probable_crf_labels(image, selected, crf) != full)
    assert differing <= 1e-4 * 2 * labels.size


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    num_labels=st.integers(5, 40),
    concentration=st.floats(0.02, 2),
    blocks=st.sampled_from([1, 2, 8]),
    weight=st.floats(0, 12),
    srgb=st.floats(2, 60),
)
def test_no_label_that_wins_is_lost(
    seed: int, num_labels: int, concentration: float, blocks: int, weight: float, srgb: float
) -> None:
    """For any probabilities, also diffuse ones as of no network: a chosen label is the best one, or nearly so.

    Pixels where several labels are in balance may tip over, because the labels left out are only known by their sum.
    """
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    cells = rng.dirichlet(np.full(num_labels, concentration), (24 // blocks, 32 // blocks)).transpose(2, 0, 1)
    probabilities = np.kron(cells, np.ones((1, blocks, blocks))).astype(np.float32)
    crf = CrfSettings(gaussian_weight=weight, bilateral_weight=weight / 2, bilateral_srgb=srgb, gaussian_sxy=2)
    selected = select_labels(probabilities, crf)
    labels = most_probable_crf_labels(image, selected, crf, threads=1)
    marginals = apply_crf(image, unary_from_probabilities(probabilities), crf, threads=1)
    chosen = np.take_along_axis(marginals, labels[None], 0)[0]
    assert (chosen > 0.8 * marginals.max(0)).mean() > 0.99
    assert set(np.unique(marginals.argmax(0))) <= {*selected.labels, *selected.reserve}
    again = most_probable_crf_labels(image, selected, crf, threads=3)
    np.testing.assert_array_equal(again, labels)


def test_a_label_that_is_nowhere_the_most_probable_one_can_win() -> None:
    """Each pixel prefers one of two labels by a little, but all agree on the second best: the CRF chooses that."""
    image = np.full((48, 64, 3), 120, np.uint8)
    probabilities = np.full((12, 48, 64), 0.002, np.float32)
    first = np.random.default_rng(0).integers(0, 2, (48, 64))
    np.put_along_axis(probabilities, first[None], 0.53, 0)
    probabilities[:11] *= 0.55 / probabilities[:11].sum(0)
    probabilities[11] = 0.45
    selected = select_labels(probabilities, NETWORK_CRF)
    assert {0, 1, 11} <= {*selected.labels}
    full = full_labels(image, probabilities, NETWORK_CRF)
    assert (full == 11).mean() > 0.99
    np.testing.assert_array_equal(most_probable_crf_labels(image, selected, NETWORK_CRF), full)


def test_many_weak_labels_one_of_which_wins_everywhere() -> None:
    """The winner has a probability of 0.05 at each pixel, and one of four others always has a larger one."""
    image = np.full((48, 64, 3), 120, np.uint8)
    probabilities = np.full((80, 48, 64), 0.01, np.float32)
    first = np.random.default_rng(1).integers(0, 4, (48, 64))
    np.put_along_axis(probabilities, first[None], 0.055, 0)
    probabilities[:79] *= 0.95 / probabilities[:79].sum(0)
    probabilities[79] = 0.05
    full = full_labels(image, probabilities, NETWORK_CRF)
    assert (full == 79).mean() > 0.99
    selected = select_labels(probabilities, NETWORK_CRF)
    assert {0, 1, 2, 3, 79} <= {*selected.labels, *selected.reserve}
    assert len(selected.labels) < 10
    np.testing.assert_array_equal(most_probable_crf_labels(image, selected, NETWORK_CRF), full)


def test_a_label_of_the_reserve_returns_where_it_wins() -> None:
    """In a small part of the image, one of three labels is always a little more probable than the winner."""
    image = np.full((96, 128, 3), 120, np.uint8)
    image[40:56, 40:56] = 20
    probabilities = np.full((40, 96, 128), 1e-4, np.float32)
    probabilities[0] = 0.99
    first = np.random.default_rng(0).integers(1, 4, (16, 16))
    corner = np.full((40, 16, 16), 1e-4, np.float32)
    np.put_along_axis(corner, first[None], 0.52, 0)
    corner[39] = 0.46
    probabilities[:, 40:56, 40:56] = corner
    probabilities /= probabilities.sum(0)
    selected = select_labels(probabilities, NETWORK_CRF)
    assert 39 in selected.reserve
    full = full_labels(image, probabilities, NETWORK_CRF)
    assert (full == 39).sum() > 200
    np.testing.assert_array_equal(most_probable_crf_labels(image, selected, NETWORK_CRF), full)


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("name", ["cat", "cup"])
def test_the_fixed_bound_is_above_the_bound_of_each_step(name: str, steps: int) -> None:
    image, labels = photograph(name, 120, 160)
    is_found = []
    for seed in range(3):
        selected = select_labels(network_probabilities(labels, 30, seed), NETWORK_CRF)
        bound = crf_labels._initial_bound(selected)
        assert bound is not None
        with Threads(1) as pool:
            lattices = build_lattices(image, **NETWORK_CRF.kernel_arguments(), threads=pool)
            marginals, least = crf_labels._mean_field_of_selected(selected, bound, lattices, steps, pool)
            fixed = crf_labels._fixed_bound(bound, least, lattices, pool)
        is_found.append(fixed is not None)
        if fixed is not None:
            assert (fixed >= marginals[:, len(selected.labels) + 1] * (1 - 1e-4)).all()
    assert any(is_found)


def test_the_fixed_bound_changes_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three labels and the sum of the others fill a row of four; with the exact bound, rows have eight values."""
    image, labels = photograph("cat", 120, 160)
    probabilities = np.full((40, *labels.shape), 1e-4, np.float32)
    np.put_along_axis(probabilities, labels[None], 0.9, 0)
    probabilities[7, 20:60, 30:80] = 0.15  # of the reserve
    probabilities /= probabilities.sum(0)
    selected = select_labels(probabilities, NETWORK_CRF)
    assert (len(selected.labels), len(selected.reserve)) == (3, 1)
    sizes = []
    mean_field = crf_labels.mean_field
    monkeypatch.setattr(
        crf_labels, "mean_field", lambda logits, *rest: sizes.append(logits.shape[1]) or mean_field(logits, *rest)
    )
    fast = most_probable_crf_labels(image, selected, NETWORK_CRF)
    assert sizes == [4]
    monkeypatch.setattr(crf_labels, "_fixed_bound", lambda *arguments: None)
    np.testing.assert_array_equal(most_probable_crf_labels(image, selected, NETWORK_CRF), fast)
    assert sizes == [4, 4, 8]


def test_equal_probabilities_of_the_labels_left_out_change_nothing() -> None:
    """The label map of a photograph as unary energies: the absent labels are exactly alike, and their sum is exact."""
    image, labels = photograph("cat", 100, 150)
    crf = CrfSettings()
    probabilities = np.exp(-unary_from_labels(labels, 21))
    selected = select_labels(probabilities, crf)
    assert selected.labels.tolist() == [0, 1, 2]
    full = full_labels(image, probabilities, crf)
    np.testing.assert_array_equal(most_probable_crf_labels(image, selected, crf), full)


def test_few_labels_are_all_selected() -> None:
    image, labels = photograph("cat", 40, 48)
    probabilities = network_probabilities(labels, 4, 0)
    selected = select_labels(probabilities, NETWORK_CRF)
    assert selected.is_all
    np.testing.assert_array_equal(selected.labels, [0, 1, 2, 3])
    full = full_labels(image, probabilities, NETWORK_CRF)
    np.testing.assert_array_equal(most_probable_crf_labels(image, selected, NETWORK_CRF), full)


def test_negative_weights_leave_no_label_out() -> None:
    labels = photograph("cat", 40, 48)[1]
    crf = CrfSettings(gaussian_weight=-1)
    assert select_labels(network_probabilities(labels, 30, 0), crf).is_all


def test_what_is_sent_to_a_worker_is_small() -> None:
    labels = photograph("cat", 120, 160)[1]
    probabilities = network_probabilities(labels, 81, 0, spread=0.5)
    assert len(pickle.dumps(select_labels(probabilities, NETWORK_CRF))) < 0.25 * probabilities.nbytes


def test_bound_exponent_solves_its_equation() -> None:
    for largest in (1e-5, 0.001, 0.01):
        x = bound_exponent(largest, 14)
        assert x == pytest.approx(largest * 14 * math.exp(x), rel=1e-9)
    assert bound_exponent(0.03, 14) == math.inf
    assert bound_exponent(0.5, 0) == 0


def worst_images() -> dict[str, np.ndarray]:
    """Photographs, noise, and dense clusters of colors among scattered ones, which give the largest row sums."""
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(100, 120, 3))
    sphere /= np.linalg.norm(sphere, axis=2, keepdims=True)
    return {
        "photograph": photograph("cup", 100, 120)[0],
        "noise": rng.integers(0, 256, (100, 120, 3)).astype(np.uint8),
        "cluster": (100 + rng.normal(0, 6, (100, 120, 3))).astype(np.uint8),
        "sphere": np.round(128 + 5 * sphere * (rng.random((100, 120, 1)) < 0.3)).astype(np.uint8),
        "flat": np.full((100, 120, 3), 9, np.uint8),
    }


@pytest.mark.parametrize("name", worst_images())
@pytest.mark.parametrize("sxy_and_srgb", [(67, 3), (50, 5), (20, 40), (200, 1)])
def test_row_sums_of_the_kernels_stay_below_their_bound(name: str, sxy_and_srgb: tuple[int, int]) -> None:
    image = worst_images()[name]
    num_pixels = image.shape[0] * image.shape[1]
    ones, zeros = np.ones((num_pixels, 4), np.float32), np.zeros((num_pixels, 4), np.float32)
    with Threads(1) as threads:
        for lattice in build_lattices(image, 1 if name == "noise" else 3, 1, *sxy_and_srgb, 1, threads):
            message = np.empty_like(ones)
            values = splat_and_blur(lattice, ones, lattice.buffers(4), threads)
            slice_onto(lattice, slice(None), values, zeros, message)
            assert 0.9 < message.max() < 0.8 * MAX_ROW_SUM


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        select_labels(np.zeros((3, 4), np.float32), NETWORK_CRF)
    with pytest.raises(ValueError, match="NaN"):
        select_labels(np.full((9, 3, 4), np.nan, np.float32), NETWORK_CRF)
    selected = select_labels(np.full((12, 3, 4), 1 / 12, np.float32), NETWORK_CRF)
    assert isinstance(selected, SelectedLabels)
    with pytest.raises(ValueError, match=r"\[5, 4, 3\]"):
        most_probable_crf_labels(np.zeros((5, 4, 3), np.uint8), selected, NETWORK_CRF)
