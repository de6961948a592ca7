"""Which of many labels can win in the dense CRF; its time and memory grow with their number.

A segmentation network gives every pixel a probability of all labels, but in one image few labels matter.
`select_labels` sorts them into three groups: those that are the most probable label of some pixel or have much of the
image's probability, those that win nowhere by the proof below, and a reserve of all others. The CRF
(`tagmask.refine.crf_labels`) is computed with the first group. It checks afterwards whether a label of the reserve
could have won.

The proof. The mean field updates q_l ← p_l exp(m_l) / Σ_j p_j exp(m_j), where p are the probabilities of the input and
the message m_l is q_l, filtered with the kernels. The kernels are not negative, so m_l lies between 0 and M · max(q_l),
where M is the largest message that a label of probability 1 everywhere would get. As Σ_j p_j exp(m_j) is at least
Σ_j p_j = 1, q_l is at most P exp(M · max(q_l)) at the next step, where P = max(p_l). Starting from q_l = p_l, it can
never exceed the smallest solution of e = P exp(M e), which exists if P ≤ 1 / (2.718 M). So at each pixel, and after any
number of steps, q_l / q_j ≤ p_l exp(M e) / p_j for every other label j. A label wins nowhere if p_l exp(M e) is below
the largest probability of the pixel, at all pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tagmask.refine.settings import CrfSettings

MIN_PROBABILITY = 1e-5
"""Smaller probabilities count as this one in the CRF."""

MAX_ROW_SUM = 2.0
"""Upper bound of the message of a label of probability 1 everywhere, through a kernel of weight 1.

It is the largest row sum of the symmetrically normalized kernel. The rows sum to 1 on average; the largest sum was 1.4,
on photographs, noise, and images made for a large sum (tests/refine/test_label_selection.py).
"""

MAX_EXPONENT = 0.25
"""The largest M e of a label that wins nowhere by the proof; with a larger one it goes to the reserve."""


MAX_MEAN = 0.02
"""A label whose mean probability over the image is larger is selected, because a sum with it would be too rough."""


class SelectedLabels(NamedTuple):
    """The labels of an image that the dense CRF needs.

    Attributes:
        labels: [C] int64, ascending: the labels that are the most probable one of some pixel, or of a mean probability
            above `MAX_MEAN`.
        probabilities: [C, H, W] float32, at least `MIN_PROBABILITY`.
        reserve: [D] int64, ascending: labels that are not, but might win through the CRF.
        reserve_probabilities: [D, H, W] float16.
        rest: [H, W] float32, the sum of the probabilities of all labels but `labels`; 0 if there are none.
        rest_squares: [H, W] float32, the sum of their squares.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    reserve: NDArray[np.int64]
    reserve_probabilities: NDArray[np.float16]
    rest: NDArray[np.float32]
    rest_squares: NDArray[np.float32]

    @property
    def is_all(self) -> bool:
        """Whether no label was left out."""
        return not self.rest.any()


def row_length(num_labels: int) -> int:
    """Return the length of the rows in which the CRF keeps the values of a pixel: a multiple of 4, above 8 of 8.

    Four labels move in one SIMD register. Rows of 12 or 20 values take longer than rows of 16 or 24, because the loops
    over the labels take eight at a time.
    """
    lanes = 4 if num_labels <= 8 else 8
    return -(-num_labels // lanes) * lanes


def select_labels(probabilities: NDArray[np.float32], settings: CrfSettings) -> SelectedLabels:
    """Select the labels that the dense CRF of an image needs.

    Args:
        probabilities: [L, H, W] float32; they sum to 1 at each pixel.
        settings: of the CRF. With a negative weight all labels are selected.

    Returns:
        The selected labels, which are all labels if leaving out some would save nothing.

    Raises:
        ValueError: `probabilities` is not [L, H, W], or is not finite.
    """
    if probabilities.ndim != 3 or not probabilities.size:
        raise ValueError(f"probabilities must be [L, H, W], not {list(probabilities.shape)}")
    num_labels, size = len(probabilities), probabilities.shape[1:]
    total, most = np.zeros(size, np.float32), np.zeros(size, np.float32)
    largest, mean = np.empty((2, num_labels), np.float32)
    for label, plane in enumerate(probabilities):  # one label at a time stays in the cache
        total += plane
        np.maximum(most, plane, out=most)
        largest[label] = max(plane.max(), MIN_PROBABILITY)
        mean[label] = plane.mean()
    if not np.isfinite(total).all():
        raise ValueError(f"probabilities {list(probabilities.shape)} hold NaN or infinity")
    lowest = float(most.min())
    selected = [
        i
        for i, plane in enumerate(probabilities)
        if mean[i] > MAX_MEAN or (largest[i] >= lowest and (plane == most).any())
    ]
    weights = (settings.gaussian_weight, settings.bilateral_weight)
    saves_time = row_length(len(selected) + 2) < row_length(num_labels)
    if min(weights) < 0 or not saves_time:
        selected = list(range(num_labels))
    # If the probabilities do not sum to 1, the proof needs them divided by their sum.
    largest /= min(1.0, max(float(total.min()), MIN_PROBABILITY))
    rest, squares = np.zeros(size, np.float32), np.zeros(size, np.float32)
    reserve = []
    for label in sorted(set(range(num_labels)) - set(selected)):
        plane = np.maximum(probabilities[label], np.float32(MIN_PROBABILITY))
        rest += plane
        squares += plane * plane
        exponent = bound_exponent(float(largest[label]), MAX_ROW_SUM * sum(weights))
        factor = math.exp(min(exponent, MAX_EXPONENT))
        wins_nowhere = largest[label] * factor < lowest or bool((plane * np.float32(factor) < most).all())
        if exponent > MAX_EXPONENT or not wins_nowhere:
            reserve.append(label)
    return SelectedLabels(
        np.array(selected),
        np.maximum(probabilities[selected], np.float32(MIN_PROBABILITY)),
        np.array(reserve, np.int64),
        _to_float16(probabilities[reserve]),
        rest,
        squares,
    )


def _to_float16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """The values as float16; PyTorch takes a hundredth of NumPy's time for values near 0."""
    import torch

    halves: NDArray[np.float16] = torch.from_numpy(values).half().numpy()
    return halves


def bound_exponent(largest: float, message: float) -> float:
    """Bound the message of a label at every pixel and after any number of mean-field steps.

    Args:
        largest: P, the largest probability of the label in the image.
        message: M, the largest message of a label of probability 1 everywhere.

    Returns:
        x = M e, the smallest solution of x = P M exp(x); infinity if there is none.
    """
    product = largest * message
    if product * math.e >= 1:
        return math.inf
    x = 0.0
    for _ in range(100):  # rises to the solution
        x = product * math.exp(x)
    return x
