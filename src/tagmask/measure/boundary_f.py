"""Boundary F-score of a label map (Csurka et al., BMVC 2013): are the outlines in place?"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tagmask.label_map import IGNORE_INDEX

TOLERANCE = 0.0075  # of the image's diagonal (Csurka et al.)


def boundary_counts(ground_truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the outline pixels of each class, and those within the tolerance of the other side's outline.

    A pixel is on the outline of its class if one of its four neighbours is of another; the image's frame is
    no outline. Within the tolerance is nearer than 0.75 % of the image's diagonal (Euclidean).

    VOC draws the truth's outlines as a band of unsure pixels (255). So an unsure pixel of the truth within the
    tolerance of a known one counts as that one, which puts the outline in the middle of the band; those
    further off are left out. An unsure pixel of the prediction is of no class.

    Args:
        truth: [H, W] uint8, 0 background, 1..n classes, 255 unsure.
        prediction: [H, W] uint8, the same values.
        n_classes: n, without the background.

    Returns:
        [n + 1, 4] int64: predicted outline pixels near the truth's, all predicted ones,
        the truth's outline pixels near a predicted one, all of the truth's.
    """
    tolerance = TOLERANCE * float(np.hypot(*ground_truth.shape))
    known = ground_truth != IGNORE_INDEX
    if not known.any():
        return np.zeros((num_classes + 1, 4), np.int64)
    if not known.all():
        distance, nearest = ndimage.distance_transform_edt(~known, return_indices=True)
        ground_truth = ground_truth[tuple(nearest)]
        known = distance < tolerance
    outlines = [_outline(labels, known) for labels in (prediction, ground_truth)]

    counts = np.zeros((num_classes + 1, 4), np.int64)
    for c in np.union1d(prediction[outlines[0]], ground_truth[outlines[1]]):
        if c == IGNORE_INDEX:
            continue
        either = outlines[0] & (prediction == c) | outlines[1] & (ground_truth == c)
        box = _bounding_box(either)  # distances need only this part: all of both outlines is in it
        predicted = outlines[0][box] & (prediction[box] == c)
        true = outlines[1][box] & (ground_truth[box] == c)
        counts[c] = (
            _near(predicted, true, tolerance),
            predicted.sum(),
            _near(true, predicted, tolerance),
            true.sum(),
        )
    return counts


def boundary_f(counts: np.ndarray) -> np.ndarray:
    """Boundary F-score of each class of one image: the harmonic mean of precision and recall.

    The paper's figure of an image is the mean over its classes, that of a set the mean over its images;
    an image's score is not swamped so by others with longer outlines.

    Args:
        counts: [..., n + 1, 4] of `boundary_counts`.

    Returns:
        [..., n + 1] float64 in 0..1; nan for a class with no outline on either side, 0 with none on one.
    """
    near_predicted, predicted, near_true, true = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = near_predicted / predicted, near_true / true
        score = np.nan_to_num(2 * precision * recall / (precision + recall))
    return np.where(predicted + true > 0, score, np.nan)


def _outline(labels: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels of `labels` with a different one beside, above or below; both known."""
    outline = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[first] != labels[second]) & known[first] & known[second]
        outline[first] |= differ
        outline[second] |= differ
    return outline


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest rows and columns that hold all of `mask`."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _near(these: np.ndarray, those: np.ndarray, tolerance: float) -> int:
    """How many pixels of `these` are nearer than `tolerance` to one of `those`."""
    if not those.any():
        return 0
    return int(np.count_nonzero(ndimage.distance_transform_edt(~those)[these] < tolerance))
