"""Weights of labels in the loss, so that a short training does not lose the rare classes; undone at inference."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from tagmask.data.samples import Sample
from tagmask.label_map import IGNORE_INDEX
from tagmask.stage import StageContext


def label_shares(context: StageContext, num_labels: int) -> np.ndarray:
    """Return the share of each label in the pixels that are learned from: [num_labels] float64, background first."""
    context.require_all_images("counts the labels of the masks")
    counts = np.zeros(num_labels)
    with context.reporter.progress("counting labels", len(context.images)) as advance:
        for sample in context.images.samples:
            labels = learned_labels(context, sample)
            counts += np.bincount(labels.ravel(), minlength=IGNORE_INDEX + 1)[:num_labels]
            advance(1)
    return counts / max(1, counts.sum())


def learned_labels(context: StageContext, sample: Sample) -> np.ndarray:
    """Return the labels of an image from which the network learns, [H, W] uint8: its reviewed mask or pseudo-mask."""
    labels = context.inputs["masks"].read_mask(sample.id)
    reviewed = sample.read_reviewed_labels((labels.shape[0], labels.shape[1]))
    return labels if reviewed is None else reviewed


def balanced_label_weights(shares: np.ndarray, exponent: float) -> np.ndarray:
    """Return weights share^-exponent, scaled so that their mean over all pixels is 1.

    Args:
        shares: [L] the share of each label in all pixels; a label that does not occur gets the weight 0.
        exponent: from 0 (equal weights) to 1 (every label contributes the same).

    Returns:
        [L] float64.

    Example:
        >>> balanced_label_weights(np.array([0.64, 0.36, 0]), 0.5).round(2).tolist()
        [0.89, 1.19, 0.0]
    """
    weights = np.zeros(len(shares))
    weights[shares > 0] = shares[shares > 0] ** -exponent
    return weights / max((weights * shares).sum(), np.finfo(float).tiny)


def undo_label_weights(weights: Tensor) -> Tensor:
    """Return what to add to the logits of a network that was trained with label weights, to get the true probabilities.

    The weighted cross-entropy has its minimum where the probabilities are proportional to weight · p(label), so the
    logarithms of the weights are subtracted (as in Menon et al., "Long-tail learning via logit adjustment", ICLR 2021,
    section 4.1, for another kind of imbalance).

    Args:
        weights: [L], of `balanced_label_weights`; 0 for labels that do not occur.

    Returns:
        [L] float32, 0 for labels that do not occur.
    """
    return -weights.log().where(weights > 0, 0)
