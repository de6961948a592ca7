"""Checks of the arrays that the functions of `tagmask.measure` take."""

from __future__ import annotations

import numpy as np

from tagmask.label_map import IGNORE_INDEX


def as_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Return a label map as uint8.

    Args:
        labels: [H, W] of any integer type, values 0..255.
        name: the name of the argument, for error messages.

    Returns:
        [H, W] uint8; a view if `labels` is uint8 already.

    Raises:
        ValueError: `labels` is not [H, W], is not of an integer type, or has a value outside of 0..255.

    Example:
        >>> as_labels(np.array([[0, 255]]), "target")
        array([[  0, 255]], dtype=uint8)
    """
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be a label map [H, W] of integers, not {list(labels.shape)} {labels.dtype}")
    if labels.dtype != np.uint8 and labels.size and not 0 <= labels.min() <= labels.max() <= IGNORE_INDEX:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{name} has the value {wrong}; a label map contains values from 0 to {IGNORE_INDEX}")
    return labels.astype(np.uint8, copy=False)


def as_label_pair(preds: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two label maps of one shape as uint8.

    Args:
        preds: [H, W] of any integer type, values 0..255.
        target: [H, W] of any integer type, values 0..255.

    Returns:
        `preds` and `target`, both [H, W] uint8.

    Raises:
        ValueError: one of them is not a label map (see `as_labels`), or their shapes differ.

    Example:
        >>> preds, target = as_label_pair(np.array([[0, 1]]), np.array([[1, 1]]))
        >>> preds.dtype, target.dtype
        (dtype('uint8'), dtype('uint8'))
    """
    preds, target = as_labels(preds, "preds"), as_labels(target, "target")
    if preds.shape != target.shape:
        raise ValueError(f"preds is {list(preds.shape)} and target is {list(target.shape)}; their shapes must be equal")
    return preds, target


def check_maps(maps: np.ndarray, classes: np.ndarray, target: np.ndarray) -> None:
    """Check that the shapes of response maps, class ids and a label map fit together.

    Args:
        maps: [K, H, W].
        classes: [K].
        target: [H, W].

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> check_maps(np.zeros((1, 2, 2)), np.array([1, 2]), np.zeros((2, 2)))
        Traceback (most recent call last):
        ...
        ValueError: maps is [1, 2, 2], classes is [2] and target is [2, 2]; they must be [K, H, W], [K] and [H, W]
    """
    if maps.ndim != 3 or target.shape != maps.shape[1:] or classes.shape != maps.shape[:1]:
        raise ValueError(
            f"maps is {list(maps.shape)}, classes is {list(classes.shape)} and target is {list(target.shape)}; "
            "they must be [K, H, W], [K] and [H, W]"
        )
