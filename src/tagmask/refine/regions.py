"""Class-agnostic regions of an image, and label maps that follow them by a vote.

Chen, Mai, Li, Chao: "Segment Anything Model (SAM) Enhanced Pseudo Labels for Weakly Supervised Semantic Segmentation",
arXiv 2305.05803 (SEPL), section 3. There, the regions are those of SAM; here, they can come from anywhere.

Regions are arrays [L, H, W] int32 of L layers. In a layer, each pixel has the number of its region, from 1, or 0 where
there is none; regions overlap only if they are in different layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tagmask.maps import STRIDE
from tagmask.refine.random_walk import enlarge

RegionLayers = NDArray[np.int32]

MIN_SHARE_OF_REGION = 0.5  # SEPL: a region is taken if more of it than this is of the class
MIN_SHARE_OF_CLASS = 0.85  # SEPL: or if it has at least this share of all pixels of the class


def vote(labels: np.ndarray, regions: RegionLayers) -> np.ndarray:
    """Let each class take whole regions.

    The classes are visited in ascending order. A class takes the regions that no earlier class has taken and that lie
    in it by more than a half, or that contain 85 % of it. Its new pixels are those of the regions it has taken, and its
    old ones outside of all regions that were free. Where several classes claim a pixel, the last one has it (as in the
    public code of SEPL, `max_iou_imp2`).

    Args:
        labels: [H, W] uint8, 0 background, class ids, 255 ignored.
        regions: [L, H, W], see above.

    Returns:
        [H, W] uint8. A pixel of a region that no class has taken is background. Ignored pixels that no class takes stay
        ignored.

    Raises:
        ValueError: the shapes differ.
    """
    if regions.shape[1:] != labels.shape:
        raise ValueError(f"regions {list(regions.shape)} do not fit labels {list(labels.shape)}")
    sizes = [np.bincount(layer.ravel()) for layer in regions]
    is_free = [np.arange(len(size)) > 0 for size in sizes]
    result = np.where(labels == 255, labels, 0).astype(np.uint8)
    for class_id in np.unique(labels[(labels > 0) & (labels < 255)]).tolist():
        of_class = labels == class_id
        total = np.count_nonzero(of_class)
        taken, covered = np.zeros_like(of_class), np.zeros_like(of_class)
        for layer, size, free in zip(regions, sizes, is_free, strict=True):
            covered |= free[layer]
            inside = np.bincount(layer[of_class], minlength=len(size))
            chosen = free & ((inside > MIN_SHARE_OF_REGION * size) | (inside >= MIN_SHARE_OF_CLASS * total))
            taken |= chosen[layer]
            free &= ~chosen
        result[taken | (of_class & ~covered)] = class_id
    return result


def layers_of_masks(masks: Iterable[np.ndarray], size: tuple[int, int]) -> RegionLayers:
    """Return regions from single masks that may overlap; each goes to the first layer in which it overlaps no other.

    Args:
        masks: [H, W] bool each.
        size: (H, W).

    Returns:
        [L, H, W] int32; L is 0 if all masks are empty.
    """
    layers: list[NDArray[np.int32]] = []
    for mask in masks:
        if not mask.any():
            continue
        for layer in layers:
            if not layer[mask].any():
                layer[mask] = layer.max() + 1
                break
        else:
            layers.append(mask.astype(np.int32))
    return np.stack(layers) if layers else np.zeros((0, *size), np.int32)


def felzenszwalb_regions(image: np.ndarray, scales: Sequence[float], sigma: float = 0.8) -> RegionLayers:
    """Return the regions of Felzenszwalb and Huttenlocher (IJCV 2004), one layer for each scale.

    Args:
        image: [H, W, 3] uint8.
        scales: the larger, the larger the regions.
        sigma: standard deviation in pixels with which the image is smoothed before.
    """
    from skimage.segmentation import felzenszwalb

    layers = [felzenszwalb(image, scale=scale, sigma=sigma, min_size=max(1, round(scale / 2))) + 1 for scale in scales]
    return np.stack(layers).astype(np.int32)


def slic_regions(image: np.ndarray, region_sizes: Sequence[float], compactness: float = 10) -> RegionLayers:
    """Return SLIC superpixels (Achanta et al., TPAMI 2012), one layer for each size.

    Args:
        image: [H, W, 3] uint8.
        region_sizes: the mean area of a superpixel in pixels.
        compactness: the larger, the more the superpixels are squares.
    """
    from skimage.segmentation import slic

    pixels = image.shape[0] * image.shape[1]
    layers = [
        slic(image, n_segments=max(1, round(pixels / area)), compactness=compactness, start_label=1)
        for area in region_sizes
    ]
    return np.stack(layers).astype(np.int32)


def boundary_regions(boundary: NDArray[np.float32], size: tuple[int, int], depth: float) -> RegionLayers:
    """Return the basins between boundaries, one layer: a watershed, in which shallow basins are joined first.

    Args:
        boundary: [h, w] with h = ceil(H / 4), w = ceil(W / 4): probabilities in 0..1 that a cell lies on a boundary.
        size: (H, W) of the image.
        depth: basins are regions of their own if one has to climb by more than this to leave them for a deeper one.

    Returns:
        [1, H, W] int32.
    """
    from skimage.morphology import h_minima
    from skimage.segmentation import watershed

    heights = enlarge(boundary[None], STRIDE, *size)[0]
    floors, count = ndimage.label(h_minima(heights, depth))
    if count < 2:
        return np.ones((1, *size), np.int32)
    return watershed(heights, floors)[None].astype(np.int32)
