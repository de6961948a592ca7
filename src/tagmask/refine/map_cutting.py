"""Label maps and confident seeds from response maps: thresholds, refined by the dense CRF."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from tagmask.label_map import IGNORE_INDEX
from tagmask.maps import ResponseMaps
from tagmask.refine.colors import color_log_ratios
from tagmask.refine.dense_crf import apply_crf, unary_from_labels, unary_from_probabilities
from tagmask.refine.settings import CrfSettings, SeedSettings


def cut_maps(
    image: np.ndarray,
    maps: ResponseMaps,
    threshold: float | Sequence[float],
    crf: CrfSettings | None,
    gt_prob: float = 0.7,
    color_weight: float = 0.0,
) -> np.ndarray:
    """Return the label map at a threshold, or at one threshold per class, refined by the dense CRF.

    Args:
        image: [H, W, 3] uint8, RGB.
        maps: response maps of the image.
        threshold: activation, 0..1, above which a pixel is of its most active class; or one threshold per class of
            `maps` (see `ResponseMaps.label_map`).
        crf: settings of the CRF; None: the threshold alone.
        gt_prob: probability, in (0, 1), with which the CRF takes its input labels to be right.
        color_weight: as in `refine_labels`.

    Returns:
        [H, W] uint8, 0 background and class ids.
    """
    labels = maps.label_map(threshold)
    return labels if crf is None else refine_labels(image, labels, maps.classes, crf, gt_prob, color_weight)


def refine_labels(
    image: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    crf: CrfSettings,
    gt_prob: float = 0.7,
    color_weight: float = 0.0,
) -> np.ndarray:
    """Return one or several label maps of an image, refined by the dense CRF.

    The CRFs of several label maps are computed together, which takes less time (`dense_crf`).

    With a `color_weight`, the CRF is computed twice. The pixels that it leaves as they are show what colors each label
    has in this image, and the second time the unary energies contain these colors (`color_log_ratios`).

    Args:
        image: [H, W, 3] uint8, RGB.
        labels: [H, W] or [S, H, W] uint8, 0 background and class ids.
        classes: [K] the class ids that can appear, ascending; without any, nothing changes.
        crf: settings of the CRF.
        gt_prob: as in `cut_maps`.
        color_weight: 0 or more, the weight of the colors; 0: compute the CRF once.

    Returns:
        [H, W] or [S, H, W] uint8.
    """
    ids = np.concatenate([[0], classes]).astype(np.uint8)
    if len(ids) == 1:
        return labels
    given = np.searchsorted(ids, labels).astype(np.uint8).reshape(-1, *labels.shape[-2:])
    unary = np.stack([unary_from_labels(one, len(ids), gt_prob) for one in given])
    refined = apply_crf(image, unary, crf).argmax(1)
    if color_weight:
        for energies, kept in zip(unary, np.where(refined == given, refined, -1), strict=True):
            energies -= np.float32(color_weight) * color_log_ratios(image, kept, len(ids))
        refined = apply_crf(image, unary, crf).argmax(1)
    return ids[refined].reshape(labels.shape)


def cut_maps_by_power(
    image: np.ndarray, maps: ResponseMaps, alpha: float, crf: CrfSettings | None
) -> NDArray[np.uint8]:
    """Return the label map with the background activation (1 − strongest activation)^alpha, refined by the dense CRF.

    The CRF takes the activations as probabilities, as in the public code of psa (Ahn and Kwak, "Learning Pixel-level
    Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic Segmentation", CVPR 2018, equation 2).

    Args:
        image: [H, W, 3] uint8, RGB.
        maps: response maps of the image.
        alpha: above 0; the larger, the less background.
        crf: settings of the CRF; None: none. The result is then that of the threshold `threshold_of_power(alpha)`.

    Returns:
        [H, W] uint8, 0 background and class ids.
    """
    if crf is None or not len(maps.classes):
        return maps.label_map(alpha=alpha)
    activations = maps.full_size()
    background = (1 - activations.max(0, keepdims=True)) ** alpha
    scores = np.concatenate([background, activations]).astype(np.float32)
    ids = np.concatenate([[0], maps.classes]).astype(np.uint8)
    return ids[apply_crf(image, unary_from_probabilities(scores), crf).argmax(0)]


def threshold_of_power(alpha: float) -> float:
    """Return the threshold t = (1 − t)^alpha, at which maps are cut as with the background (1 − maximum)^alpha.

    Both rules compare the strongest activation a of a pixel with a number: a > (1 − a)^alpha where a > t.

    Example:
        >>> [round(threshold_of_power(alpha), 3) for alpha in (4, 16, 32)]
        [0.276, 0.123, 0.077]
    """
    return float(brentq(lambda t: t - (1 - t) ** alpha, 0, 1))


def confident_seeds(image: np.ndarray, maps: ResponseMaps, settings: SeedSettings) -> np.ndarray:
    """Return the seeds that IRN and AMN learn from: confident labels, and ignored pixels elsewhere.

    A pixel that is foreground at the threshold `fg` is of that class. A pixel that is background at both thresholds is
    background. All others are ignored. (Ahn, Cho and Kwak, CVPR 2019, section 4.1.) With `alphas`, powers of the
    background take the place of thresholds.

    Args:
        image: [H, W, 3] uint8, RGB.
        maps: response maps of the image.
        settings: the two thresholds and the CRF.

    Returns:
        [H, W] uint8, 0 background, class ids, 255 ignored.
    """
    if settings.alphas:
        foreground, low = (cut_maps_by_power(image, maps, alpha, settings.crf) for alpha in settings.alphas)
    else:
        cuts = np.stack([maps.label_map(threshold) for threshold in (settings.fg, settings.bg)])
        if settings.crf is not None:
            cuts = refine_labels(image, cuts, maps.classes, settings.crf, settings.gt_prob)
        foreground, low = cuts
    background = low == 0
    return np.where(foreground > 0, foreground, np.where(background, 0, IGNORE_INDEX)).astype(np.uint8)
