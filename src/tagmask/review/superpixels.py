"""Superpixels: small regions of similar color, which a person can give to a class with one click.

Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods", TPAMI 2012; the implementation is
that of scikit-image.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

SuperpixelSize = Literal["small", "medium", "large"]
NUM_SUPERPIXELS: dict[SuperpixelSize, int] = {"small": 1600, "medium": 400, "large": 100}  # about, for any image

_COMPACTNESS = 10.0  # weight of the distance in space against that in color; scikit-image's default


def compute_superpixels(image: np.ndarray, size: SuperpixelSize) -> np.ndarray:
    """Divide an image into superpixels.

    Args:
        image: [H, W, 3] uint8, RGB.
        size: how large the superpixels are.

    Returns:
        [H, W] uint16, numbers of the superpixels from 0.
    """
    from skimage.segmentation import slic

    num_segments = min(NUM_SUPERPIXELS[size], image.shape[0] * image.shape[1])
    labels = slic(image, n_segments=num_segments, compactness=_COMPACTNESS, start_label=0, channel_axis=-1)
    return labels.astype(np.uint16)


def enlarge(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return labels [h, w] at another size [H, W]: each pixel gets the label at its center."""
    if labels.shape == size:
        return labels
    rows, columns = ((np.arange(new) + 0.5) * (old / new) for old, new in zip(labels.shape, size, strict=True))
    return labels[np.ix_(rows.astype(np.int64), columns.astype(np.int64))]
