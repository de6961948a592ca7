"""What the measures accept, and what they say to the rest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tagmask.label_map import IGNORE_INDEX


def as_array(values: np.ndarray | Tensor) -> np.ndarray:
    """A numpy view or copy of an array or of a tensor on any device."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def as_labels(labels: np.ndarray | Tensor, name: str) -> np.ndarray:
    """`labels` [H, W] of any integers in 0..255, as uint8.

    Raises:
        ValueError: not [H, W], not integers, or a value beyond 0..255; it calls them `name`.
    """
    labels = as_array(labels)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} is {list(labels.shape)} {labels.dtype}, not a label map [H, W] uint8")
    if labels.dtype != np.uint8 and labels.size and not 0 <= labels.min() <= labels.max() <= IGNORE_INDEX:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{name} has the value {wrong}; label maps hold 0..n and {IGNORE_INDEX}")
    return labels.astype(np.uint8, copy=False)


def check_maps(maps: np.ndarray, classes: np.ndarray, ground_truth: np.ndarray) -> None:
    """Raise ValueError unless maps, classes and truth are [K, H, W], [K] and [H, W]."""
    if maps.ndim != 3 or ground_truth.shape != maps.shape[1:] or classes.shape != maps.shape[:1]:
        shapes = f"{list(maps.shape)}, {list(classes.shape)}, {list(ground_truth.shape)}"
        raise ValueError(f"maps, classes and truth are {shapes}; they must be [K, H, W], [K], [H, W]")


def number(value: float) -> float | None:
    """A float for JSON, which has neither nan nor infinity."""
    return float(value) if np.isfinite(value) else None
