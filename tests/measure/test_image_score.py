"""Scores of one mask, computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tagmask.maps import ResponseMaps
from tagmask.measure.image_score import (
    ImageScore,
    ambiguous_fraction,
    class_overlap,
    color_contrast,
    count_parts,
    score_image,
)


def maps_of_rows(*activations: float, class_id: int = 1) -> ResponseMaps:
    """Return maps of one class of an image of 4 × 4n pixels: one cell per activation."""
    grid = np.array([[activations]], np.float32)
    return ResponseMaps(np.array([class_id]), grid, (4, 4 * len(activations)))


def mask_of_cells(*labels: int) -> np.ndarray:
    """Return a label map of 4 × 4n pixels whose cells of 4 × 4 pixels have these labels."""
    return np.repeat(np.repeat(np.array([labels], np.uint8), 4, axis=0), 4, axis=1)


def gray_image(mask: np.ndarray) -> np.ndarray:
    """Return an image of one color."""
    return np.full((*mask.shape, 3), 100, np.uint8)


def score(*masks: np.ndarray, tags: tuple[int, ...] = (1,), num_labels: int = 2, **arguments: Any) -> ImageScore:
    return score_image(gray_image(masks[0]), masks, tags, num_labels, **arguments)


def test_scores_computed_by_hand() -> None:
    maps = ResponseMaps(np.array([1, 2]), np.array([[[0.9, 0.45, 0.35, 0.1]], [[0.3, 0.15, 0.3, 0.1]]]), (4, 16))
    refined, network = mask_of_cells(1, 0, 0, 0), mask_of_cells(1, 1, 1, 2)
    image = gray_image(network)
    image[:, :4] = 0  # a quarter of the image is black, the rest is gray; all is foreground
    target = mask_of_cells(1, 1, 1, 0)
    result = score_image(image, [refined, network], (1, 2, 3), 4, maps=maps, threshold=0.4, target=target, image_id="a")
    assert result.disagreement == pytest.approx(1 - (0 + 1 / 3 + 0) / 3)  # background 0/3, class 1: 1/3, class 2: 0/1
    assert result.color_contrast == 0
    assert result.class_overlap == pytest.approx(1 / 3)  # in the two cells above 0.4
    assert result.border == 1
    assert result.doubt == pytest.approx((result.disagreement + 1 + 1 / 3 + 1) / 4)
    assert result.ambiguous == pytest.approx(2 / 3)  # 0.45 and 0.35 of the cells above 0.3
    assert result.foreground == 1
    assert result.missing_tags == (3,)
    assert (result.parts, result.crumbs) == (2, 0)
    assert result.miou == pytest.approx((0 + 1 + 0) / 3)  # of background, class 1 and class 2
    earlier = score_image(image, [refined, network], (1, 2, 3), 4, judged=0)
    assert earlier.disagreement == result.disagreement
    assert earlier.foreground == 1 / 4
    assert earlier.color_contrast == pytest.approx(2 - 3 / 4 * np.log2(3))  # the entropy of 1/4: colors say it all


def test_pseudo_masks_are_compared_with_the_cut_maps_if_there_is_no_network() -> None:
    result = score(mask_of_cells(1, 0, 0, 0), maps=maps_of_rows(0.9, 0.45, 0.35, 0.1), threshold=0.4)
    assert result.disagreement == pytest.approx(1 - (2 / 3 + 1 / 2) / 2)


def test_color_contrast() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:20] = 1
    image = gray_image(mask)
    assert color_contrast(image, mask) == 0
    image[:20] = 200
    assert color_contrast(image, mask) == pytest.approx(1)
    mask[20:] = 255  # what is left has one color
    assert color_contrast(image, mask) == 0
    assert color_contrast(image, np.full_like(mask, 255)) == 0


def test_color_contrast_of_a_large_image_uses_some_of_its_pixels() -> None:
    mask = np.zeros((1500, 1500), np.uint8)
    mask[:750] = 1
    image = gray_image(mask)
    image[:750] = 200
    assert color_contrast(image, mask) == pytest.approx(1)


def test_class_overlap() -> None:
    assert class_overlap(np.array([[[0.8, 0.2]]]), 0.4) == 0
    assert class_overlap(np.zeros((2, 1, 2)), 0) == 0
    assert class_overlap(np.array([[[0.8, 0.2]], [[0.2, 0.1]], [[0.6, 0.2]]]), 0.4) == pytest.approx(0.75)


def test_ignored_pixels_are_no_disagreement_and_no_foreground() -> None:
    assert score(mask_of_cells(1, 255, 0), mask_of_cells(1, 1, 0)).disagreement == 0
    assert score(mask_of_cells(1, 255, 0, 0)).foreground == 1 / 4


def test_nothing_to_compare() -> None:
    result = score(mask_of_cells(1, 0))
    assert all(math.isnan(v) for v in (result.disagreement, result.class_overlap, result.ambiguous, result.miou))
    assert result.border == 1 / 2  # of the 20 pixels at the border of 4 × 8 pixels
    assert result.doubt == pytest.approx((1 + 1 / 2) / 4)  # there is no color contrast
    json = result.to_json(["cat"])
    assert json["disagreement"] is None
    assert json["missing_tags"] == []


def test_image_without_tags_has_no_doubt() -> None:
    maps = ResponseMaps(np.zeros(0, int), np.zeros((0, 1, 2), np.float32), (4, 8))
    result = score(mask_of_cells(0, 0), mask_of_cells(0, 0), tags=(), maps=maps, threshold=0.4)
    assert (result.doubt, result.disagreement, result.ambiguous, result.foreground) == (0, 0, 0, 0)


def test_empty_mask_of_a_tagged_image_is_doubtful() -> None:
    assert score(mask_of_cells(0, 0), mask_of_cells(0, 0)).doubt > score(mask_of_cells(0, 0), tags=()).doubt


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="the mask has 8×4 pixels, its image 3×2"):
        score_image(np.zeros((2, 3, 3), np.uint8), [mask_of_cells(0, 1)], (1,), 2)


@pytest.mark.parametrize(
    ("activations", "expected"), [((1, 0), 0), ((0.5, 0.5), 1), ((0, 0), 1), ((1, 1, 0.5, 0.45), 0.5)]
)
def test_ambiguous_fraction(activations: tuple[float, ...], expected: float) -> None:
    assert ambiguous_fraction(np.array([[activations]]), 0.5) == expected


def test_parts_and_crumbs() -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[:10, :10] = 1
    mask[12, 0] = 1  # 1 % of the largest part
    mask[12:15, 20:22] = 1  # 6 %
    mask[0, 30] = 2  # a class of its own
    assert count_parts(mask, (1, 2)) == (4, 1)
    assert count_parts(mask, (3,)) == (0, 0)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 8), (37, 50)])
def test_maps_and_masks_of_any_size(size: tuple[int, int]) -> None:
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    maps = ResponseMaps(np.array([1]), np.ones((1, height, width), np.float16), size)
    assert score(np.ones(size, np.uint8), maps=maps, threshold=0.4).disagreement == 0
