"""Scores of one image's mask without ground truth, and the doubt, which says what masks to look at first.

Four things make a mask doubtful: the network and the pseudo-masks that it learned from disagree; the foreground has
the same colors as the rest of the image; the response maps of two classes are strong at the same place; the mask
reaches the border of the image.
docs/results/image-scores.md reports how well the doubt finds the worst masks, and what else was tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from tagmask.label_map import IGNORE_INDEX, is_foreground
from tagmask.maps import STRIDE, ResponseMaps
from tagmask.measure.confusion import confusion_matrix, iou, mean_iou
from tagmask.refine.colors import color_bins
from tagmask.refine.image_threshold import color_information

AMBIGUITY_MARGIN = 0.1  # activations that are at most this far from the threshold are ambiguous
CRUMB_SIZE = 0.05  # a connected part is a crumb if it is smaller than this fraction of the largest part of its class
MAX_COLOR_PIXELS = 1 << 18  # of which the colors are compared; of a larger image, every n-th row and column


class ImageScore(NamedTuple):
    """What is known about the mask of one image without ground truth.

    Attributes:
        image: the id of the image.
        doubt: how likely the mask is wrong, 0..1: the mean of `disagreement`, 1 − `color_contrast`,
            `class_overlap` and `border`, of which those that are NaN count as 0. It is 0 for an image without tags.
        disagreement: 1 − mIoU, over the labels that occur, of the masks of the last two stages that made masks from
            each other, 0..1: of the network and the pseudo-masks; without a network, of the pseudo-masks and the maps
            cut at the threshold. NaN if there is only one of them.
        color_contrast: how much the colors of the foreground differ from those of the background, 0..1: the mutual
            information, in bits, between the color of a pixel and whether it is foreground.
        class_overlap: where the response maps are above the threshold, the mean of the second strongest activation
            divided by the strongest, 0..1; 0 for an image with one tag. NaN if no stage has cut response maps.
        border: fraction of the pixels at the border of the image that the mask gives to a class, 0..1.
        ambiguous: of the cells of the response maps that are above the threshold − 0.1, the fraction that is not above
            the threshold + 0.1, 0..1. NaN if no stage has cut response maps.
        foreground: fraction of the pixels that the mask gives to a class, 0..1.
        missing_tags: the class ids of the tags that have no pixel in the mask.
        parts: number of connected parts of the mask, over all classes.
        crumbs: number of those parts that are smaller than 5 % of the largest part of their class.
        miou: mIoU of the mask with the ground truth of this image, 0..1; NaN if there is none.
    """

    image: str
    doubt: float
    disagreement: float
    color_contrast: float
    class_overlap: float
    border: float
    ambiguous: float
    foreground: float
    missing_tags: tuple[int, ...]
    parts: int
    crumbs: int
    miou: float

    def without_nan(self) -> dict[str, Any]:
        """Return the scores by name, None instead of NaN."""
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in self._asdict().items()}

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """Return the scores as JSON values, with the names of the missing tags."""
        return {**self.without_nan(), "missing_tags": [classes[class_id - 1] for class_id in self.missing_tags]}


def score_image(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    tags: Sequence[int],
    num_labels: int,
    *,
    judged: int = -1,
    maps: ResponseMaps | None = None,
    threshold: float = math.nan,
    target: np.ndarray | None = None,
    image_id: str = "",
) -> ImageScore:
    """Score the mask of one image.

    Args:
        image: [H, W, 3] uint8, RGB.
        masks: label maps [H, W] uint8 of successive stages, in the order in which they were made.
        tags: the class ids of the image.
        num_labels: number of classes and background.
        judged: the index in `masks` of the mask to score.
        maps: the response maps that the first of the masks was cut from, if they are known.
        threshold: activation, 0..1, at which they were cut; NaN if they were not.
        target: [H, W] uint8, the ground truth, if there is any.
        image_id: the id of the image.

    Raises:
        ValueError: the sizes do not fit, or a mask has another label.
    """
    mask = masks[judged]
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"the mask has {mask.shape[1]}×{mask.shape[0]} pixels, its image {image.shape[1]}×{image.shape[0]}"
        )
    if maps is not None and math.isnan(threshold):
        maps = None
    disagreement = math.nan
    if len(masks) > 1:
        disagreement = mask_disagreement(masks[-2], masks[-1], num_labels)
    elif maps is not None:
        disagreement = mask_disagreement(_cut_grid(maps, threshold), _sample_grid(masks[0]), num_labels)
    contrast = color_contrast(image, mask)
    overlap = math.nan if maps is None else class_overlap(maps.maps, threshold)
    border = border_fraction(mask)
    parts, crumbs = count_parts(mask, tags)
    return ImageScore(
        image=image_id,
        doubt=float(np.nansum([disagreement, 1 - contrast, overlap, border])) / 4 if tags else 0.0,
        disagreement=disagreement,
        color_contrast=contrast,
        class_overlap=overlap,
        border=border,
        ambiguous=math.nan if maps is None else ambiguous_fraction(maps.maps, threshold),
        foreground=float(is_foreground(mask).mean()),
        missing_tags=tuple(class_id for class_id in tags if not (mask == class_id).any()),
        parts=parts,
        crumbs=crumbs,
        miou=math.nan if target is None else float(mean_iou(iou(confusion_matrix(mask, target, num_labels)))),
    )


def mask_disagreement(earlier: np.ndarray, later: np.ndarray, num_labels: int) -> float:
    """Return 1 − mIoU of two label maps over the labels that occur; pixels that `earlier` ignores do not count."""
    return 1 - float(mean_iou(iou(confusion_matrix(later, earlier, num_labels))))


def color_contrast(image: np.ndarray, mask: np.ndarray) -> float:
    """Return how much the colors of the foreground of a mask differ from those of the background.

    Args:
        image: [H, W, 3] uint8, RGB.
        mask: [H, W] uint8, 0 background, class ids, 255 ignored.

    Returns:
        The mutual information, in bits, between the color of a pixel and whether it is foreground: 0 (the same colors,
        or no foreground) to 1 (different colors, and half of the image is foreground).
    """
    step = max(1, math.ceil((mask.size / MAX_COLOR_PIXELS) ** 0.5))
    mask, image = mask[::step, ::step], image[::step, ::step]
    known = mask != IGNORE_INDEX
    if not known.any():
        return 0.0
    return color_information(color_bins(image)[known], is_foreground(mask)[known]) / math.log(2)


def class_overlap(maps: np.ndarray, threshold: float) -> float:
    """Return how strong the second strongest class is where the maps are above a threshold.

    Args:
        maps: [K, h, w] float in 0..1, activations of the tagged classes.
        threshold: where the maps are cut, 0..1.

    Returns:
        The mean of the second strongest activation divided by the strongest over the cells that are above the
        threshold, 0..1; 0 with fewer than two classes or without such cells.
    """
    if len(maps) < 2:
        return 0.0
    second, strongest = np.sort(maps.astype(np.float32), axis=0)[-2:]
    above = strongest > max(threshold, 0)
    return float((second[above] / strongest[above]).mean()) if above.any() else 0.0


def border_fraction(mask: np.ndarray) -> float:
    """Return the fraction of the pixels at the border of a label map [H, W] that are foreground, 0..1.

    Example:
        >>> border_fraction(np.array([[0, 0, 0], [0, 3, 3], [0, 0, 0]], np.uint8))
        0.125
    """
    edge = np.ones(mask.shape, bool)
    edge[1:-1, 1:-1] = False
    return float(is_foreground(mask)[edge].mean())


def ambiguous_fraction(maps: np.ndarray, threshold: float, margin: float = AMBIGUITY_MARGIN) -> float:
    """Return the fraction of the foreground that a threshold higher by the margin would lose.

    Args:
        maps: [K, h, w] float in 0..1, activations of the tagged classes.
        threshold: where the maps are cut, 0..1.
        margin: activation, 0..1.

    Returns:
        Of the cells whose strongest activation is above threshold − margin, the fraction that is not above
        threshold + margin; 1 if no cell is above, and 0 if there are no maps.

    Example:
        >>> ambiguous_fraction(np.array([[[0.9, 0.8, 0.45, 0.1]]]), threshold=0.4)
        0.33333333333333337
    """
    if not len(maps):
        return 0.0
    strongest = maps.astype(np.float32).max(axis=0)
    possible = np.count_nonzero(strongest > threshold - margin)
    return float(1 - np.count_nonzero(strongest > threshold + margin) / possible) if possible else 1.0


def count_parts(mask: np.ndarray, tags: Sequence[int]) -> tuple[int, int]:
    """Return the number of connected parts of the classes of a label map [H, W], and how many of them are crumbs."""
    parts = crumbs = 0
    for class_id in tags:
        labeled, number = ndimage.label(mask == class_id)
        if number:
            sizes = np.bincount(labeled.ravel())[1:]
            parts += number
            crumbs += int(np.count_nonzero(sizes < CRUMB_SIZE * sizes.max()))
    return parts, crumbs


def _cut_grid(maps: ResponseMaps, threshold: float) -> np.ndarray:
    """Return the label map of the maps at their own resolution [h, w], which is faster than at that of the image."""
    if not len(maps.classes):
        return np.zeros(maps.maps.shape[1:], np.uint8)
    labels = maps.classes.astype(np.uint8)[maps.maps.argmax(axis=0)]
    return np.where(maps.maps.max(axis=0) > threshold, labels, 0).astype(np.uint8)


def _sample_grid(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a label map [H, W] near the centers of the cells of response maps, [h, w]."""
    rows, columns = (np.minimum(np.arange(0, side, STRIDE) + STRIDE // 2, side - 1) for side in mask.shape)
    return mask[np.ix_(rows, columns)]
