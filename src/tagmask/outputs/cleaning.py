"""Label maps without crumbs and holes, for annotation tools."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tagmask.label_map import is_foreground


def remove_small_regions(labels: np.ndarray, min_area: int) -> np.ndarray:
    """Give every small connected region the label that it shares the longest border with.

    Regions are connected by four neighbors and have one label; background and ignored pixels form regions, too, so
    that small holes vanish. If all regions are small, nothing changes.

    Args:
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.
        min_area: regions with fewer pixels than this are small.

    Returns:
        [H, W] uint8.
    """
    regions, region_labels = _connected_regions(labels)
    is_small = np.bincount(regions.ravel()) < min_area
    if not is_small.any() or is_small.all():
        return labels
    pairs, lengths = _borders(regions)
    # Each round absorbs the small regions that touch a large one; a region inside an absorbed one is in a later round.
    while is_small.any():
        first, second = pairs.T
        absorbs = is_small[first] & ~is_small[second]
        first, second, length = first[absorbs], second[absorbs], lengths[absorbs]
        for region in np.unique(first):
            of_region = first == region
            neighbor_labels = region_labels[second[of_region]]
            votes = np.bincount(neighbor_labels, weights=length[of_region])
            region_labels[region] = votes.argmax()
        is_small[first] = False
    return region_labels[regions]


def fill_holes(labels: np.ndarray) -> np.ndarray:
    """Give background and ignored pixels that a single class surrounds the label of this class.

    Args:
        labels: [H, W] uint8, 0 background, 1..K classes, 255 ignored.

    Returns:
        [H, W] uint8.
    """
    is_class = is_foreground(labels)
    regions, region_labels = _connected_regions(np.where(is_class, labels, 0))
    pairs, _ = _borders(regions)
    at_image_border = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    for region in np.setdiff1d(np.flatnonzero(region_labels == 0), at_image_border):
        around = np.unique(region_labels[pairs[pairs[:, 0] == region, 1]])
        if len(around) == 1:
            region_labels[region] = around[0]
    return np.where(is_class, labels, np.where(region_labels[regions] > 0, region_labels[regions], labels))


def _connected_regions(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the region of each pixel, [H, W] from 0, and the label of each region, [R] uint8."""
    regions = np.zeros(labels.shape, np.int32)
    region_labels: list[int] = []
    for label in np.unique(labels).tolist():
        mask = labels == label
        numbered, count = ndimage.label(mask)
        regions[mask] = numbered[mask] + (len(region_labels) - 1)
        region_labels += [label] * count
    return regions, np.array(region_labels, np.uint8)


def _borders(regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs of neighboring regions in both orders, [N, 2], and the length of their border in pixels, [N]."""
    count = int(regions.max()) + 1
    keys = []
    for first, second in ((regions[1:], regions[:-1]), (regions[:, 1:], regions[:, :-1])):
        differ = first != second
        a, b = first[differ].astype(np.int64), second[differ].astype(np.int64)
        keys += [a * count + b, b * count + a]
    pairs, lengths = np.unique(np.concatenate(keys), return_counts=True)
    return np.stack([pairs // count, pairs % count], 1), lengths
