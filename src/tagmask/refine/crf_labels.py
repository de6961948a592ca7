"""The most probable labels in the dense CRF of many labels, computed with those that can win."""

from __future__ import annotations

import math
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
SLACK = np.float32(1.5)
"""Factor of the messages that are tried as a bound of all messages."""

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
    selected labels and the rest. By induction no label of the reserve has a larger marginal. If rows are shorter
    without it, a bound that holds after any number of steps is tried first (`_fixed_bound`). Where the bound comes
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
        lattices = build_lattices(image, **settings.kernel_arguments(), threads=pool)
        while True:
            labels, missing = _infer(selected, lattices, settings.steps, pool)
            if not len(missing):
                return labels
            selected = _return_labels(selected, missing)


def _infer(
    selected: SelectedLabels, lattices: list[Lattice], steps: int, pool: Threads
) -> tuple[NDArray[np.int64], list[int]]:
    """Return the most probable labels [H, W], and the positions in the reserve of those that may win somewhere."""
    labels, bound = selected.labels, _initial_bound(selected)
    saves_time = row_length(len(labels) + 1) < row_length(len(labels) + 2)
    if bound is not None and saves_time and steps and lattices:
        marginals, least_log_sum = _mean_field_of_selected(selected, None, lattices, steps, pool)
        winners = marginals[:, : len(labels)].argmax(1)
        largest = np.take_along_axis(marginals, winners[:, None], 1)[:, 0]
        final = _fixed_bound(bound, least_log_sum, lattices, pool)
        if final is not None and not _may_win(selected, marginals, largest, bound, final):
            return labels[winners].reshape(selected.rest.shape), []
    marginals, _ = _mean_field_of_selected(selected, bound, lattices, steps, pool)
    winners = marginals[:, : len(labels)].argmax(1)
    missing: list[int] = []
    if bound is not None:
        largest = np.take_along_axis(marginals, winners[:, None], 1)[:, 0]
        missing = _may_win(selected, marginals, largest, bound, marginals[:, len(labels) + 1])
    return labels[winners].reshape(selected.rest.shape), missing


def _initial_bound(selected: SelectedLabels) -> NDArray[np.float32] | None:
    """The largest probability of a label of the reserve at each pixel, [H W]; None if there is no reserve."""
    if not len(selected.reserve):
        return None
    largest = selected.reserve_probabilities.max(0).reshape(-1).astype(np.float32)
    bound: NDArray[np.float32] = np.maximum(largest, np.float32(MIN_PROBABILITY))
    return bound


def _mean_field_of_selected(
    selected: SelectedLabels, bound: NDArray[np.float32] | None, lattices: list[Lattice], steps: int, pool: Threads
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the marginals of the selected labels, of the sum of the others and of the bound, if it is given.

    Returns:
        [N, L], and a lower bound [N] of the logarithm of the sum Z of a pixel in all steps.
    """
    from tagmask.refine.permutohedral_kernels import softmax_of_selected_inplace

    num_labels, rest = len(selected.labels), selected.rest.reshape(-1)
    logits = np.full((rest.size, row_length(num_labels + 1 + (bound is not None))), PADDING_LOGIT, np.float32)
    np.log(selected.probabilities.reshape(num_labels, rest.size).T, out=logits[:, :num_labels])
    np.log(rest, out=logits[:, num_labels], where=rest > 0)
    if bound is not None:
        np.log(bound, out=logits[:, num_labels + 1])
    share = np.minimum(selected.rest_squares.reshape(-1) / np.maximum(rest * rest, np.float32(1e-20)), 1)
    least_log_sum = np.full(rest.size, np.nan, np.float32)
    marginals = mean_field(
        logits,
        lattices,
        steps,
        pool,
        lambda part, rows: softmax_of_selected_inplace(
            part, logits[rows], share[rows], num_labels, least_log_sum[rows]
        ),
    )
    return marginals, least_log_sum


def _fixed_bound(
    bound: NDArray[np.float32], least_log_sum: NDArray[np.float32], lattices: list[Lattice], pool: Threads
) -> NDArray[np.float32] | None:
    """Return a bound [N] of the marginal of each label of the reserve after any number of steps; None if none is found.

    The bound B of a label with the probabilities b is updated as B ← b exp(K B) / Z, where K is the filter. If messages
    κ ≥ K b are at least K B' for B' = b exp(κ) / min Z, no step leads beyond B' by induction: b exp(K B) / Z is then at
    most b exp(κ) / min Z. Tried are κ = `SLACK` K b, and then larger ones where these are too small.
    """
    messages = SLACK * _filter(bound, lattices, pool)
    for _ in range(2):
        exponent = np.minimum(messages - least_log_sum, -math.log(MIN_PROBABILITY))  # more would be above 1
        final: NDArray[np.float32] = np.minimum(bound * np.exp(exponent), 1)
        needed = _filter(final, lattices, pool)
        if (needed <= messages).all():
            return final
        messages = np.maximum(messages, SLACK * needed)
    return None


def _filter(values: NDArray[np.float32], lattices: list[Lattice], pool: Threads) -> NDArray[np.float32]:
    """Return the messages [N] of a label with the marginals [N]."""
    from tagmask.refine.permutohedral import slice_onto, splat_and_blur
    from tagmask.refine.permutohedral_kernels import LANES

    rows = np.zeros((len(values), LANES), np.float32)
    rows[:, 0] = values
    messages = np.zeros_like(rows)
    for lattice in lattices:
        filtered = splat_and_blur(lattice, rows, lattice.buffers(LANES), pool)

        def add(begin: int, end: int, lattice: Lattice = lattice, filtered: NDArray[np.float32] = filtered) -> None:
            slice_onto(lattice, slice(begin, end), filtered, messages[begin:end], messages[begin:end])

        pool.run(pool.even_bounds(len(values)), add)
    return messages[:, 0]


def _may_win(
    selected: SelectedLabels,
    marginals: NDArray[np.float32],
    largest: NDArray[np.float32],
    bound: NDArray[np.float32],
    final: NDArray[np.float32],
) -> list[int]:
    """Return the positions in the reserve of the labels that may win somewhere, or of which the sum is too rough.

    Args:
        selected: the labels.
        marginals: [N, L] of the selected labels and of the sum of the others.
        largest: [N] the largest marginal of a selected label.
        bound: [N] the largest probability of a label of the reserve.
        final: [N] the bound of their marginals.
    """
    gain = MARGIN * final
    candidates = selected.reserve_probabilities.reshape(len(selected.reserve), -1)
    doubtful = np.flatnonzero(gain >= largest)
    may_win = candidates[:, doubtful] * (gain / bound)[doubtful] >= largest[doubtful] * (1 - 1e-5)
    rough = np.flatnonzero(marginals[:, len(selected.labels)] > MAX_REST)
    if len(rough) <= REST_PIXELS * len(largest):
        rough = rough[:0]
    positions: list[int] = np.flatnonzero(may_win.any(1) | (candidates[:, rough] > MIN_RETURNED).any(1)).tolist()
    return positions


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
