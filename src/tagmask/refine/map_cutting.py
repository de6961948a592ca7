"""Label maps and confident seeds from response maps: thresholds, refined by the dense CRF."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps
from tagmask.refine.dense_crf import apply_crf, unary_from_labels
from tagmask.refine.settings import CrfSettings, SeedSettings


def cut_maps(
    image: np.ndarray,
    maps: ResponseMaps,
    threshold: float | Sequence[float],
    crf: CrfSettings | None,
    gt_prob: float = 0.7,
) -> np.ndarray:
    """Return the label map at a threshold, or at one threshold per class, refined by the dense CRF.

    Args:
        image: [H, W, 3] uint8, RGB.
        maps: response maps of the image.
        threshold: activation, 0..1, above which a pixel is of its most active class; or one threshold per class of
            `maps` (see `ResponseMaps.label_map`).
        crf: settings of the CRF; None: the threshold alone.
        gt_prob: probability, in (0, 1), with which the CRF takes its input labels to be right.

    Returns:
        [H, W] uint8, 0 background and class ids.
    """
    labels = maps.label_map(threshold)
    ids = np.concatenate([[0], maps.classes]).astype(np.uint8)
    if crf is None or len(ids) == 1:
        return labels
    unary = unary_from_labels(np.searchsorted(ids, labels).astype(np.uint8), len(ids), gt_prob)
    return ids[apply_crf(image, unary, crf).argmax(0)]


def confident_seeds(image: np.ndarray, maps: ResponseMaps, settings: SeedSettings) -> np.ndarray:
    """Return the seeds that IRN and AMN learn from: confident labels, and ignored pixels elsewhere.

    A pixel that is foreground at the threshold `fg` is of that class. A pixel that is background at both thresholds is
    background. All others are ignored. (Ahn, Cho and Kwak, CVPR 2019, section 4.1.)

    Args:
        image: [H, W, 3] uint8, RGB.
        maps: response maps of the image.
        settings: the two thresholds and the CRF.

    Returns:
        [H, W] uint8, 0 background, class ids, 255 ignored.
    """
    foreground = cut_maps(image, maps, settings.fg, settings.crf, settings.gt_prob)
    background = cut_maps(image, maps, settings.bg, settings.crf, settings.gt_prob) == 0
    return np.where(foreground > 0, foreground, np.where(background, 0, IGNORE_INDEX)).astype(np.uint8)
