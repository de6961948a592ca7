"""Instance masks from a displacement field: the cells of one object point to its centroid.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
(IRN), section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from tagmask.maps import ResponseMaps, strongest_activation
from tagmask.refine.random_walk import propagate
from tagmask.refine.settings import RandomWalkSettings

FOLLOW_STEPS = 600  # enough for every cell to come to rest
CENTROID_DISPLACEMENT = 2.5  # cells; a centroid is where displacements are shorter
PARTS_PER_WALK = 16  # parts that walk at the same time, to limit the memory
MIN_AREA = 0.01  # of the image; smaller regions are no instances (the reference code keeps them with a score of 0)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Instance:
    """One object in an image.

    Attributes:
        class_id: its class.
        score: the highest activation after the walk in its mask, 0..1.
        mask: [H, W] bool.
    """

    class_id: int
    score: float
    mask: NDArray[np.bool_]


def follow_displacement(displacement: Floats, steps: int = FOLLOW_STEPS) -> NDArray[np.int64]:
    """Return the cell in which each cell ends when it follows the displacement field (section 5.1).

    Args:
        displacement: [2, h, w] (rows, columns) in cells; interpolated bilinearly between the cells.
        steps: number of moves.

    Returns:
        [2, h, w] the nearest cell (row, column), inside the grid.
    """
    height, width = displacement.shape[1:]
    field = torch.from_numpy(np.ascontiguousarray(displacement[::-1], np.float32))[None]  # grid_sample takes x, y
    start = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).float()
    largest = torch.tensor([width - 1, height - 1])[:, None, None]
    position = start
    for _ in range(steps):
        normalized = 2 * position / largest.clamp(min=1) - 1
        moved = F.grid_sample(field, normalized.permute(1, 2, 0)[None], align_corners=True, padding_mode="border")[0]
        position = (position + moved).clamp(min=0).minimum(largest)
    return position.flip(0).round().long().numpy()


def cluster_cells(
    displacement: Floats, centroids: NDArray[np.int64], centroid_displacement: float = CENTROID_DISPLACEMENT
) -> NDArray[np.int64]:
    """Assign the cells to clusters: those that end in the same connected region of short displacements.

    Cells that end outside all such regions form one cluster, as in the reference code.

    Args:
        displacement: [2, h, w] (rows, columns) in cells.
        centroids: [2, h, w] the cell (row, column) in which each cell ends, see `follow_displacement`.
        centroid_displacement: displacements below this length, in cells, are short.

    Returns:
        [h, w] cluster numbers, 0 .. n − 1.
    """
    regions, _ = ndimage.label(np.hypot(*displacement) < centroid_displacement)
    ends = regions[centroids[0], centroids[1]]
    return np.unique(ends, return_inverse=True)[1].reshape(ends.shape)


def find_instances(
    maps: ResponseMaps,
    boundary: Floats,
    displacement: Floats,
    settings: RandomWalkSettings,
    *,
    threshold: float,
    threads: int | None = None,
) -> list[Instance]:
    """Find the instances of the classes of the maps (section 5.2).

    The part of each map in each cluster walks separately. A pixel belongs to the part with the highest activation.

    Args:
        maps: response maps of the image.
        boundary: [h, w] float, probability in 0..1 that a cell lies on a boundary.
        displacement: [2, h, w] (rows, columns) in cells.
        settings: the random walk.
        threshold: share of the image's highest activation after the walk, 0..1, up to which a pixel is background.
        threads: number of threads, see `propagate`.

    Returns:
        The connected regions of 1 % of the image or more, by class and cluster.
    """
    clusters = cluster_cells(displacement, follow_displacement(displacement))
    powered = maps.maps.astype(np.float32) ** settings.map_power
    parts = [
        (int(class_id), scores * (clusters == n))
        for class_id, scores in zip(maps.classes, powered, strict=True)
        for n in range(clusters.max() + 1)
    ]
    parts = [(class_id, part) for class_id, part in parts if part.any()]
    if not parts:
        return []

    def walked_parts() -> Iterator[Floats]:
        for begin in range(0, len(parts), PARTS_PER_WALK):
            stack = np.stack([part for _, part in parts[begin : begin + PARTS_PER_WALK]])
            yield from propagate(
                stack, boundary, radius=settings.radius, beta=settings.beta, steps=settings.steps, threads=threads
            )

    activation, part_index = strongest_activation(walked_parts(), maps.size)
    activation /= activation.max() or 1
    winner = np.where(activation > threshold, part_index, -1)
    instances = []
    pixel_counts = np.bincount(winner.ravel() + 1, minlength=len(parts) + 1)[1:]
    for n in np.flatnonzero(pixel_counts >= MIN_AREA * winner.size).tolist():
        regions, count = ndimage.label(winner == n)
        for k in range(1, count + 1):
            mask = regions == k
            if mask.mean() >= MIN_AREA:
                instances.append(Instance(parts[n][0], float(activation[mask].max()), mask))
    return instances
