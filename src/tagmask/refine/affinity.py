"""Response maps that spread along the affinity of cells: the attention of a transformer, or the likeness of features.

Lin, Chen, Wang, Wu, Li, Lin, Liu and He, "CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly
Supervised Semantic Segmentation", CVPR 2023 (CLIP-ES), section 3.3, "class-aware attention-based affinity".
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

SMALLEST = 1e-12  # of a sum that is divided by
EIGHT_NEIGHBORS = np.ones((3, 3), bool)


def transition_matrix(affinity: Tensor, normalizations: int = 3) -> Tensor:
    """Return the symmetric matrix that the affinity of cells becomes when it is balanced (Sinkhorn and Knopp, 1967).

    The columns and then the rows are divided by their sums, several times; then the matrix and its transpose are
    averaged (CLIP-ES, equation 5, and its public code).

    Args:
        affinity: [..., N, N] of at least 0; row i is what cell i takes from the others.
        normalizations: how often the columns and the rows are divided by their sums.

    Returns:
        [..., N, N] float32.
    """
    matrix = affinity.float()
    for _ in range(normalizations):
        for axis in (-2, -1):
            matrix = matrix / matrix.sum(axis, keepdim=True).clamp_min(SMALLEST)
    return (matrix + matrix.mT) / 2


def cosine_affinity(features: Tensor, power: float) -> Tensor:
    """Return the cosine similarity of the features of all pairs of cells, 0 where it is negative, to a power.

    Args:
        features: [..., D, h, w].
        power: the larger, the less the cells that are only a little alike count.

    Returns:
        [..., h · w, h · w] float32.
    """
    units = torch.nn.functional.normalize(features.float().flatten(-2), dim=-2)
    return (units.mT @ units).clamp(0, 1) ** power


def box_mask(response_map: np.ndarray, threshold: float) -> np.ndarray:
    """Return the cells in the bounding boxes of the parts of a map that are more active than a share of its maximum.

    Args:
        response_map: [h, w], at least 0.
        threshold: the share, 0..1.

    Returns:
        [h, w] bool; parts that touch at a corner are one part.
    """
    parts, _ = ndimage.label(response_map > threshold * response_map.max(), EIGHT_NEIGHBORS)
    mask = np.zeros(response_map.shape, bool)
    for rows_and_columns in ndimage.find_objects(parts):
        mask[rows_and_columns] = True
    return mask


def spread(maps: Tensor, matrix: Tensor, steps: int = 2, box_threshold: float | None = 0.4) -> Tensor:
    """Multiply maps, each within the boxes around its most active parts, by a transition matrix several times.

    CLIP-ES, equation 6: A² · (box ∘ map). A matrix of ones divided by their number gives the mean of each map, the
    identity the map itself.

    Args:
        maps: [K, h, w] float32, at least 0.
        matrix: [h · w, h · w], of `transition_matrix`.
        steps: how often the maps are multiplied by the matrix.
        box_threshold: see `box_mask`; None: no boxes.

    Returns:
        [K, h, w] float32, not normalized.
    """
    if box_threshold is not None:
        masks = [box_mask(each, box_threshold) for each in maps.cpu().numpy()]
        maps = maps * torch.from_numpy(np.stack(masks)).to(maps.device) if masks else maps
    columns = maps.flatten(1).mT
    for _ in range(steps):
        columns = matrix @ columns
    return columns.mT.unflatten(1, maps.shape[1:])
