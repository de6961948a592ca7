"""The most probable labels in the dense CRF of many labels, computed with those that can win."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tagmask.refine.dense_crf import (
    PADDING_LOGIT,
    apply_crf,
    build_lattices,
    check_arguments,
    mean_field,
    unary_from_probabilities,
)
from tagmask.refine.label_selection import MIN_PROBABILITY, SelectedLabels, row_length
from tagmask.refine.settings import CrfSettings
from tagmask.refine.threads import Threads, thread_count

if TYPE_CHECKING:
    from tagmask.refine.permutohedral import Lattice

MARGIN = 2.0
"""A label of the reserve returns if its bound, times this factor, reaches the largest marginal of a pixel."""

MAX_REST = 0.1
"""Largest marginal of the sum of the labels left out, but for a share `REST_PIXELS` of the pixels."""

REST_PIXELS = 5e-5
MIN_RETURNED = 0.02
"""If the sum has a larger marginal, the labels of the reserve return that have this probability at such a pixel."""


def most_probable_crf_labels(
    image: NDArray[np.uint8], selected: SelectedLabels, settings: CrfSettings, threads: int | None = None
) -> NDArray[np.int64]:
    """Return the most probable label of each pixel in the dense CRF of all labels, computed with the selected ones.

    One more label stands for the sum of all labels that were left out. Their messages are filtered together: at each
    pixel, the message of the sum is scaled by Σ p² / (Σ p)², the mean share of one label in the sum. This is exact if
    the labels left out have equal probabilities, or negligible ones.

    A second one is an upper bound of the marginal of each label of the reserve. It starts with the largest of their
    probabilities at each pixel, b, and is updated like a label, B ← b exp(filtered B) / Z with the sum Z of the
    selected labels and the rest. By induction no label of the reserve has a larger marginal. Where the bound comes
    within a factor of `MARGIN` of the largest marginal, which allows for the error of the sum, the labels that may have
    caused it are selected too, and the mean field is computed again. The same happens where the sum of the labels left
    out keeps a marginal above `MAX_REST`, because the sum only approximates them.

    Args:
        image: [H, W, 3] uint8, RGB.
        selected: the labels that can win, the reserve and the sum of the others (`select_labels`).
        settings: of the CRF.
        threads: as in `dense_crf`.

    Returns:
        [H, W] int64, values of `selected.labels` and `selected.reserve`.

    Raises:
        ValueError: as `dense_crf`.
    """
    if selected.is_all:
        marginals = apply_crf(image, unary_from_probabilities(selected.probabilities), settings, threads)
        return selected.labels[marginals.argmax(0)]
    check_arguments(
        image,
        selected.probabilities,
        settings.steps,
        settings.gaussian_sxy,
        settings.bilateral_sxy,
        settings.bilateral_srgb,
    )
    with Threads(thread_count(threads)) as pool:
        lattices = build_lattices(image, **settings.model_dump(exclude={"steps"}), threads=pool)
        while True:
            labels, missing = _infer(selected, lattices, settings.steps, pool)
            if not len(missing):
                return labels
            selected = _return_labels(selected, missing)


def _infer(
    selected: SelectedLabels, lattices: list[Lattice], steps: int, pool: Threads
) -> tuple[NDArray[np.int64], list[int]]:
    """Return the most probable labels [H, W], and the positions in the reserve of those that may win somewhere."""
    from tagmask.refine.permutohedral_kernels import softmax_of_selected_inplace

    labels, probabilities, _, reserve, rest, squares = selected
    num_labels, num_pixels = len(labels), rest.size
    logits = np.full((num_pixels, row_length(num_labels + 1 + bool(len(reserve)))), PADDING_LOGIT, np.float32)
    np.log(probabilities.reshape(num_labels, num_pixels).T, out=logits[:, :num_labels])
    share = np.minimum(squares / np.maximum(rest * rest, np.float32(1e-20)), 1).reshape(-1)
    np.log(rest.reshape(-1), out=logits[:, num_labels], where=rest.reshape(-1) > 0)
    if len(reserve):
        bound = np.maximum(reserve.max(0).reshape(-1).astype(np.float32), np.float32(MIN_PROBABILITY))
        np.log(bound, out=logits[:, num_labels + 1])
    marginals = mean_field(
        logits,
        lattices,
        steps,
        pool,
        lambda part, rows: softmax_of_selected_inplace(part, logits[rows], share[rows], num_labels),
    )
    winners = marginals[:, :num_labels].argmax(1)
    missing: list[int] = []
    if len(reserve):
        largest = np.take_along_axis(marginals, winners[:, None], 1)[:, 0]
        gain = MARGIN * marginals[:, num_labels + 1]
        candidates = reserve.reshape(len(reserve), num_pixels)
        doubtful = np.flatnonzero(gain >= largest)
        may_win = candidates[:, doubtful] * (gain / bound)[doubtful] >= largest[doubtful] * (1 - 1e-5)
        rough = np.flatnonzero(marginals[:, num_labels] > MAX_REST)
        if len(rough) <= REST_PIXELS * num_pixels:
            rough = rough[:0]
        missing = np.flatnonzero(may_win.any(1) | (candidates[:, rough] > MIN_RETURNED).any(1)).tolist()
    return labels[winners].reshape(selected.rest.shape), missing


def _return_labels(selected: SelectedLabels, positions: list[int]) -> SelectedLabels:
    """Move labels from the reserve, by their positions in it, to the selected labels."""
    labels = np.concatenate([selected.labels, selected.reserve[positions]])
    planes = np.maximum(selected.reserve_probabilities[positions].astype(np.float32), np.float32(MIN_PROBABILITY))
    order = labels.argsort()
    return SelectedLabels(
        labels[order],
        np.concatenate([selected.probabilities, planes])[order],
        np.delete(selected.reserve, positions),
        np.delete(selected.reserve_probabilities, positions, 0),
        np.maximum(selected.rest - planes.sum(0), 0),
        np.maximum(selected.rest_squares - (planes * planes).sum(0), 0),
    )
