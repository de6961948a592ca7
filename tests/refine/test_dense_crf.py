"""Tests of the dense CRF against the reference implementation and an exact mean field over all pairs of pixels."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tagmask.refine
from tagmask.refine.dense_crf import (
    apply_crf,
    compile_crf_kernels,
    dense_crf,
    mean_field,
    needs_compiling,
    unary_from_labels,
    unary_from_probabilities,
)
from tagmask.refine.settings import NETWORK_CRF, CrfSettings

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "dense_crf.npz")


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def noise_unary(num_labels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(num_labels, height, width)) * 2
    return unary_from_probabilities(np.exp(scores) / np.exp(scores).sum(0))


@pytest.mark.parametrize("photograph", ["cat", "cup"])
@pytest.mark.parametrize("mode", ["label", "probability"])
def test_agrees_with_the_reference_implementation(photograph: str, mode: str) -> None:
    if mode == "label":
        unary = unary_from_labels(GOLDENS[f"{photograph}_labels"], 4)
        marginals = apply_crf(GOLDENS[f"{photograph}_image"], unary, CrfSettings())
    else:
        unary = unary_from_probabilities(GOLDENS[f"{photograph}_probabilities"])
        marginals = apply_crf(GOLDENS[f"{photograph}_image"], unary, NETWORK_CRF)
    np.testing.assert_array_equal(marginals.argmax(0), GOLDENS[f"{photograph}_{mode}_mode_map"])
    difference = np.abs(marginals - GOLDENS[f"{photograph}_{mode}_mode_marginals"])
    assert difference.mean() < 1e-6
    assert difference.max() < 1e-3


def exact_mean_field(image: np.ndarray, unary: np.ndarray, steps: int, sxy: float, srgb: float) -> np.ndarray:
    """Krähenbühl and Koltun (2011), equations 3 and 4 and Algorithm 1, over all pairs of pixels."""
    num_labels, height, width = unary.shape
    position = np.stack(np.indices((height, width)), -1).reshape(-1, 2).astype(float)
    color = image.reshape(-1, 3).astype(float)

    def kernel(features: np.ndarray) -> np.ndarray:
        k = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
        return k / np.sqrt(np.outer(k.sum(0), k.sum(1)))

    pairwise = 3 * kernel(position / 3) + 10 * kernel(np.concatenate([position / sxy, color / srgb], 1))
    energy = unary.reshape(num_labels, -1).astype(float)
    q = np.exp(-energy) / np.exp(-energy).sum(0)
    for _ in range(steps):
        logits = q @ pairwise - energy
        q = np.exp(logits - logits.max(0))
        q /= q.sum(0)
    return q.reshape(unary.shape)


def test_approximates_the_exact_mean_field() -> None:
    labels = np.zeros((24, 32), np.uint8)
    labels[6:18, 8:24] = 1
    image = np.where(labels[..., None] == 1, [180, 90, 60], [60, 120, 90])
    image = (image + np.random.default_rng(0).normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    wrong = np.random.default_rng(1).random(labels.shape) < 0.25
    unary = unary_from_labels(np.where(wrong, 1 - labels, labels).astype(np.uint8), 2)
    ours = dense_crf(image, unary, bilateral_sxy=20, bilateral_srgb=20)
    exact = exact_mean_field(image, unary, 10, 20, 20)
    assert np.abs(ours - exact).mean() < 0.01
    np.testing.assert_array_equal(ours.argmax(0), labels)
    one_step = dense_crf(image, unary, bilateral_sxy=20, bilateral_srgb=20, steps=1)
    assert np.corrcoef(one_step[1].ravel(), exact_mean_field(image, unary, 1, 20, 20)[1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("num_labels", [2, 4, 5, 21])
def test_marginals_are_a_distribution_that_permutes_with_the_labels(num_labels: int) -> None:
    image, unary = noise_image(23, 31), noise_unary(num_labels, 23, 31)
    marginals = dense_crf(image, unary, bilateral_srgb=40)
    assert marginals.dtype == np.float32
    assert marginals.min() >= 0
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-5)
    order = np.random.default_rng(2).permutation(num_labels)
    np.testing.assert_allclose(dense_crf(image, unary[order], bilateral_srgb=40), marginals[order], atol=1e-4)


@pytest.mark.parametrize("num_labels", [3, 21])
def test_the_number_of_threads_does_not_change_the_result(num_labels: int) -> None:
    image, unary = noise_image(37, 53), noise_unary(num_labels, 37, 53)
    alone = dense_crf(image, unary, threads=1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(dense_crf(image, unary, threads=threads), alone)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: dense_crf(image, unary, threads=2), range(8)):
            np.testing.assert_array_equal(together, alone)


def test_many_labels_are_filtered_like_four() -> None:
    """More than four labels use another loop. Labels that no pixel has do not change the result."""
    image, unary = noise_image(20, 30), noise_unary(4, 20, 30)
    absent = np.full((7, 20, 30), 200, np.float32)
    marginals = dense_crf(image, np.concatenate([unary, absent]))
    np.testing.assert_allclose(marginals[:4], dense_crf(image, unary), atol=1e-4)
    assert marginals[4:].max() == 0


def test_weight_0_leaves_a_kernel_out() -> None:
    image, unary = noise_image(9, 11), noise_unary(3, 9, 11)
    softmax = np.exp(-unary) / np.exp(-unary).sum(0)
    np.testing.assert_allclose(dense_crf(image, unary, gaussian_weight=0, bilateral_weight=0), softmax, atol=1e-6)
    np.testing.assert_allclose(dense_crf(image, unary, steps=0), softmax, atol=1e-6)
    smooth = dense_crf(image, unary, bilateral_weight=0)
    np.testing.assert_array_equal(dense_crf(255 - image, unary, bilateral_weight=0), smooth)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (30, 40)])
@pytest.mark.parametrize("num_labels", [1, 2, 6])
def test_any_image_size(shape: tuple[int, int], num_labels: int) -> None:
    flat = np.full((*shape, 3), 255, np.uint8)
    for image in (flat, noise_image(*shape)):
        marginals = dense_crf(image, noise_unary(num_labels, *shape))
        assert marginals.shape == (num_labels, *shape)
        np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-5)
        if num_labels == 1:
            assert (marginals == 1).all()


def test_ignored_pixels_everywhere_stay_undecided() -> None:
    unary = unary_from_labels(np.full((12, 15), 255, np.uint8), 4)
    np.testing.assert_allclose(dense_crf(noise_image(12, 15), unary), 0.25, atol=1e-6)


def test_255_labels_and_a_lattice_of_single_pixels() -> None:
    labels = (np.arange(40 * 50, dtype=np.int64).reshape(40, 50) % 256).astype(np.uint8)
    marginals = dense_crf(noise_image(40, 50), unary_from_labels(labels, 255), bilateral_srgb=0.5, steps=2)
    assert np.isfinite(marginals).all()
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-4)  # rounding errors of 255 float32 values


def test_unaries_by_hand() -> None:
    unary = unary_from_labels(np.array([[0, 2, 255]], np.uint8), 3, gt_prob=0.7)
    probabilities = np.array([[0.7, 0.15, 1 / 3], [0.15, 0.15, 1 / 3], [0.15, 0.7, 1 / 3]])
    np.testing.assert_allclose(unary[:, 0], -np.log(probabilities), rtol=1e-6)
    assert unary.dtype == np.float32
    unary = unary_from_probabilities(np.array([0, 1e-7, 0.5, 1]).reshape(4, 1, 1))
    np.testing.assert_allclose(unary.ravel(), -np.log([1e-5, 1e-5, 0.5, 1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "unary", "options", "message"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((2, 4, 5)), {}, r"\[4, 5\] uint8"),
        (np.zeros((4, 5, 3)), np.zeros((2, 4, 5)), {}, "float64"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((2, 5, 4)), {}, r"\[4, 5, 3\].*\[2, 5, 4\]"),
        (np.zeros((0, 5, 3), np.uint8), np.zeros((2, 0, 5)), {}, r"\[2, 0, 5\]"),
        (np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), np.nan), {}, "NaN"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5)), {"gaussian_sxy": 0}, "above 0"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5)), {"steps": -1}, "steps"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((2, 4, 5)), {"threads": 0}, "threads"),
        (noise_image(4, 5), np.zeros((2, 4, 5)), {"bilateral_srgb": 1e-6}, "larger standard deviations"),
    ],
)
def test_wrong_arguments_are_refused(
    image: np.ndarray, unary: np.ndarray, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dense_crf(image, unary, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "num_labels", "gt_prob"),
    [
        (np.zeros((3, 3)), 2, 0.7),
        (np.zeros(3, np.uint8), 2, 0.7),
        (np.full((3, 3), 2, np.uint8), 2, 0.7),
        (np.zeros((3, 3), np.uint8), 256, 0.7),
        (np.zeros((3, 3), np.uint8), 2, 1.0),
    ],
)
def test_wrong_labels_are_refused(labels: np.ndarray, num_labels: int, gt_prob: float) -> None:
    with pytest.raises(ValueError, match=r"labels|gt_prob"):
        unary_from_labels(labels, num_labels, gt_prob)


def test_wrong_probabilities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\]"):
        unary_from_probabilities(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="NaN"):
        unary_from_probabilities(np.full((1, 3, 4), np.nan))


def test_importing_does_not_import_numba() -> None:
    code = "import sys, tagmask.refine.dense_crf; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": _src()})


def test_needs_compiling_until_the_kernels_are_compiled(tmp_path: Path) -> None:
    compile_crf_kernels(lambda text: None)
    messages: list[str] = []
    compile_crf_kernels(messages.append)
    assert not messages
    assert not needs_compiling()
    code = "from tagmask.refine.dense_crf import needs_compiling; print(needs_compiling())"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": _src()}
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert process.stdout.strip() == "True"


def _src() -> str:
    return str(Path(tagmask.refine.__file__).parents[2])


@pytest.mark.parametrize(("num_sets", "num_labels"), [(11, 2), (5, 3), (2, 21), (25, 2)])
def test_sets_of_energies_are_independent(num_sets: int, num_labels: int) -> None:
    image = noise_image(20, 30)
    unary = np.stack([noise_unary(num_labels, 20, 30) * (1 + 0.1 * s) for s in range(num_sets)])
    together = dense_crf(image, unary)
    assert together.shape == unary.shape
    for marginals, alone in zip(together, unary, strict=True):
        np.testing.assert_allclose(marginals, dense_crf(image, alone), atol=1e-5)
    np.testing.assert_array_equal(dense_crf(image, unary, threads=3), together)


def test_sets_of_a_large_image_are_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image, unary = noise_image(20, 30), np.stack([noise_unary(3, 20, 30)] * 4)
    lengths = []

    def watched(logits: np.ndarray, *arguments: Any) -> np.ndarray:
        lengths.append(logits.shape[1])
        return mean_field(logits, *arguments)

    monkeypatch.setattr("tagmask.refine.dense_crf.mean_field", watched)
    dense_crf(image, unary)
    monkeypatch.setattr("tagmask.refine.dense_crf.MAX_VALUES", 4 * 20 * 30)
    dense_crf(image, unary)
    assert lengths == [16, 4, 4, 4, 4]
