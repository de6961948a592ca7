"""Boundary F-score of label maps.

Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from tagmask.label_map import IGNORE_INDEX, label_boundaries
from tagmask.measure.validation import as_label_pair

TOLERANCE = 0.0075  # fraction of the image's diagonal, as in the paper
MAX_TREE_SHARE = 0.1  # of boundary pixels in an array; with more of them, a distance transform is faster than a tree
TILE_SIDE = 2048  # pixels; larger label maps are measured in tiles, because distances take about 50 bytes per pixel


def boundary_counts(preds: np.ndarray, target: np.ndarray, num_labels: int) -> np.ndarray:
    """Count the boundary pixels of each label, and those that are close to the boundary of the other label map.

    A pixel is on the boundary of its label if one of its four neighbors has another label. The border of the image
    is not a boundary. Two pixels are close if their Euclidean distance is below 0.75 % of the image's diagonal.

    VOC marks the boundaries of its ground truth with a band of ignored pixels (255). An ignored target pixel
    therefore takes the label of the nearest labeled pixel if that pixel is close, which puts the boundary in the
    middle of the band. Ignored target pixels farther away are left out. An ignored prediction belongs to no label.

    Args:
        preds: [H, W] integers, 0 background, 1..num_labels - 1 classes, 255 ignored.
        target: [H, W] integers, the same values.
        num_labels: number of labels, background included.

    Returns:
        [num_labels, 4] int64: predicted boundary pixels close to the target's boundary, all predicted boundary
        pixels, target boundary pixels close to the predicted boundary, all target boundary pixels.

    Raises:
        ValueError: the shapes differ, or one of them is not a label map.

    Example:
        >>> target = np.zeros((8, 8), np.uint8)
        >>> target[2:6, 2:6] = 1
        >>> boundary_counts(target, target, num_labels=2).tolist()
        [[16, 16, 16, 16], [12, 12, 12, 12]]
    """
    preds, target = as_label_pair(preds, target)
    tolerance = TOLERANCE * float(np.hypot(*target.shape))
    halo = 2 * (math.ceil(tolerance) + 1)  # of a pixel's boundary, and of the ignored pixels beside that
    counts = np.zeros((num_labels, 4), np.int64)
    for top, left in itertools.product(range(0, target.shape[0], TILE_SIDE), range(0, target.shape[1], TILE_SIDE)):
        window = np.s_[max(0, top - halo) : top + TILE_SIDE + halo, max(0, left - halo) : left + TILE_SIDE + halo]
        core = np.s_[top - window[0].start :, left - window[1].start :]
        _add_counts_of_core(counts, preds[window], target[window], core, tolerance)
    return counts


def _add_counts_of_core(
    counts: np.ndarray, preds: np.ndarray, target: np.ndarray, core: tuple[slice, slice], tolerance: float
) -> None:
    """Add the counts of `boundary_counts` for the first `TILE_SIDE` rows and columns of `core` in the arrays."""
    from scipy import ndimage  # here, so that the package can be imported without SciPy

    labeled = target != IGNORE_INDEX
    if not labeled.any():
        return
    if not labeled.all():
        distance, nearest = ndimage.distance_transform_edt(~labeled, return_indices=True)
        target = target[tuple(nearest)]
        labeled = distance < tolerance
    preds_boundary, target_boundary = label_boundaries(preds, labeled), label_boundaries(target, labeled)
    in_core = np.zeros(target.shape, bool)
    in_core[core][:TILE_SIDE, :TILE_SIDE] = True
    for label in np.union1d(preds[preds_boundary & in_core], target[target_boundary & in_core]):
        if label == IGNORE_INDEX:
            continue
        predicted, true = preds_boundary & (preds == label), target_boundary & (target == label)
        box = _bounding_box(predicted | true)  # it contains both boundaries, so distances outside do not matter
        predicted, true, inside = predicted[box], true[box], in_core[box]
        counts[label] += (
            _count_close(predicted & inside, true, tolerance),
            np.count_nonzero(predicted & inside),
            _count_close(true & inside, predicted, tolerance),
            np.count_nonzero(true & inside),
        )


def boundary_f(counts: np.ndarray) -> np.ndarray:
    """Compute the boundary F-score of each label of an image, the harmonic mean of precision and recall.

    In the paper, the score of an image is the mean over its labels, and the score of a data set is the mean over its
    images. Images with long boundaries therefore weigh no more than others.

    Args:
        counts: [..., num_labels, 4] int, see `boundary_counts`.

    Returns:
        [..., num_labels] float64 in 0..1; nan for a label without a boundary in both label maps, 0 for a label that
        has a boundary in one of them only.

    Example:
        >>> boundary_f(np.array([[18, 36, 18, 36], [0, 0, 0, 0], [0, 12, 0, 0]])).tolist()
        [0.5, nan, 0.0]
    """
    close_predicted, predicted, close_true, true = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = close_predicted / predicted, close_true / true
        score = np.nan_to_num(2 * precision * recall / (precision + recall))
    return np.where(predicted + true > 0, score, np.nan)


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the slices of the smallest box around the True pixels of `mask`."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _count_close(mask: np.ndarray, other: np.ndarray, tolerance: float) -> int:
    """Count the True pixels of `mask` whose distance to the nearest True pixel of `other` is below `tolerance`."""
    num_pixels, num_others = np.count_nonzero(mask), np.count_nonzero(other)
    if not num_pixels or not num_others:
        return 0
    if num_pixels + num_others < MAX_TREE_SHARE * mask.size:
        from scipy.spatial import KDTree

        tree = KDTree(np.argwhere(other))
        # Whether the tree's bound includes itself is not documented, so it is larger than the tolerance.
        distances = tree.query(np.argwhere(mask), distance_upper_bound=tolerance + 1)[0]
    else:
        from scipy import ndimage

        distances = ndimage.distance_transform_edt(~other)[mask]
    return int(np.count_nonzero(distances < tolerance))
