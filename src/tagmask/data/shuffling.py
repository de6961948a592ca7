"""The order of the images in an epoch of training."""

from __future__ import annotations

import numpy as np

WINDOW = 1000  # images that are mixed with each other
BLOCK = 50  # neighbors that are read together: the largest row group of a shard


def shuffle_images(num_images: int, rng: np.random.Generator) -> np.ndarray:
    """Return all indices below `num_images` in random order, [num_images] int64."""
    return rng.permutation(num_images)


def shuffle_windows(num_images: int, rng: np.random.Generator) -> np.ndarray:
    """Return all indices below `num_images` in an order in which shards can be read piece by piece.

    Blocks of 50 neighbors come in random order, and the images of 20 blocks are mixed with each other. So a process
    that holds 20 row groups in memory reads each of them once.

    Returns:
        [num_images] int64.
    """
    blocks = rng.permutation(-(-num_images // BLOCK))
    order = (blocks[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    order = order[order < num_images]
    for start in range(0, num_images, WINDOW):
        rng.shuffle(order[start : start + WINDOW])
    return order
