"""Instance masks from a displacement field: one object is what points to one place.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
(IRN), section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage

from tagmask.maps import ResponseMaps, strongest
from tagmask.refine.random_walk import propagate

STEPS = 600  # in which every cell has come to rest
WEAK = 2.5  # cells; where displacements are shorter, a centroid is
TOGETHER = 16  # parts that walk together
FRAGMENT = 0.01  # of the image; smaller regions are no instances (the reference keeps them with a score of 0)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Instance:
    """One object: its class id, its score (the highest walked activation in it, 0..1) and its mask [H, W] bool."""

    class_id: int
    score: float
    mask: NDArray[np.bool_]


def follow(displacement: Floats, steps: int = STEPS) -> NDArray[np.int64]:
    """Where each cell gets to when it is moved by the displacement at its place, again and again.

    Args:
        displacement: [2, h, w] (rows, columns) in cells; read bilinearly between the cells.
        steps: how often.

    Returns:
        [2, h, w] the nearest cell (row, column), inside the grid.
    """
    height, width = displacement.shape[1:]
    field = torch.from_numpy(np.ascontiguousarray(displacement[::-1], np.float32))[None]  # grid_sample wants x, y
    start = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).float()
    largest = torch.tensor([width - 1, height - 1])[:, None, None]
    place = start
    for _ in range(steps):
        normalized = 2 * place / largest.clamp(min=1) - 1
        moved = F.grid_sample(field, normalized.permute(1, 2, 0)[None], align_corners=True, padding_mode="border")[0]
        place = (place + moved).clamp(min=0).minimum(largest)
    return place.flip(0).round().long().numpy()


def cluster(displacement: Floats, centroids: NDArray[np.int64], weak: float = WEAK) -> NDArray[np.int64]:
    """Number the cells by the connected region of short displacements that they end in: [h, w], 0 .. n − 1.

    Cells that end outside all such regions are one cluster together, as in the reference.
    """
    regions, _ = ndimage.label(np.hypot(*displacement) < weak)
    ends = regions[centroids[0], centroids[1]]
    return np.unique(ends, return_inverse=True)[1].reshape(ends.shape)


def find_instances(
    maps: ResponseMaps,
    boundary: Floats,
    displacement: Floats,
    *,
    threshold: float = 0.25,
    radius: int = 5,
    beta: float = 10,
    steps: int = 256,
    threads: int | None = None,
) -> list[Instance]:
    """Instances of the maps' classes: each cluster's part of each map walks for itself; then the strongest wins.

    Args:
        maps: response maps of the image's classes, at stride 4.
        boundary: [h, w] in 0..1.
        displacement: [2, h, w] (rows, columns) in cells.
        threshold: below this share of the image's highest walked activation is background.
        radius, beta, steps, threads: of the random walk, see `propagate`.

    Returns:
        Connected regions of 1 % of the image or more, by class and cluster.
    """
    clusters = cluster(displacement, follow(displacement))
    parts = [
        (int(class_id), scores * (clusters == n))
        for class_id, scores in zip(maps.classes, maps.maps.astype(np.float32), strict=True)
        for n in range(clusters.max() + 1)
    ]
    parts = [(class_id, part) for class_id, part in parts if part.any()]
    if not parts:
        return []
    walk = partial(propagate, boundary=boundary, radius=radius, beta=beta, steps=steps, threads=threads)
    some = (parts[n : n + TOGETHER] for n in range(0, len(parts), TOGETHER))
    activation, which = strongest((w for few in some for w in walk(np.stack([p for _, p in few]))), maps.size)
    activation /= activation.max() or 1
    winner = np.where(activation > threshold, which, -1)
    found = []
    pixels = np.bincount(winner.ravel() + 1, minlength=len(parts) + 1)[1:]
    for n in np.flatnonzero(pixels >= FRAGMENT * winner.size).tolist():
        regions, count = ndimage.label(winner == n)
        for k in range(1, count + 1):
            mask = regions == k
            if mask.mean() >= FRAGMENT:
                found.append(Instance(parts[n][0], float(activation[mask].max()), mask))
    return found
