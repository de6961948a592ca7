"""A threshold for each image: each cue against numbers worked by hand or another library, the choice on made images."""

from __future__ import annotations

import numpy as np
import pytest

from tagmask.maps import ResponseMaps, grid_size
from tagmask.refine.image_threshold import (
    FIRST,
    LAST,
    choose_threshold,
    color_bins,
    color_information,
    edge_strength,
    expected_threshold,
    log_gradient,
    soft_iou,
    typical_root,
)
from tagmask.refine.label_maps import crf_label_map
from tagmask.refine.settings import CrfSettings

SIZE = (48, 64)


def disc(radius: float) -> np.ndarray:
    y, x = np.indices(SIZE)
    return (y - 24) ** 2 + (x - 32) ** 2 < radius**2


def hill(steepness: float, classes: tuple[int, ...] = (3,)) -> ResponseMaps:
    """Maps that fall evenly from 1 in the middle."""
    y, x = np.indices(grid_size(SIZE))
    distance = np.hypot(4 * y + 1.5 - 24, 4 * x + 1.5 - 32)
    one = np.clip(1 - steepness * distance, 0, 1).astype(np.float32)
    return ResponseMaps(np.array(classes), np.repeat(one[None], len(classes), 0), SIZE)


def picture(radius: float) -> np.ndarray:
    """A reddish disc on green, with a little noise."""
    image = np.where(disc(radius)[..., None], (200, 60, 60), (60, 120, 60))
    return (image + np.random.default_rng(0).integers(0, 12, image.shape)).astype(np.uint8)


def test_soft_iou_by_hand() -> None:
    region = np.array([[True, True], [False, False]])
    # Σ region · p = 0.9 + 0.5; Σ max(region, p) = 1 + 1 + 0.2 + 0
    assert soft_iou(region, np.array([[0.9, 0.5], [0.2, 0.0]])) == pytest.approx(1.4 / 2.2)
    assert soft_iou(region, region.astype(float)) == 1
    assert soft_iou(np.zeros((2, 2), bool), np.zeros((2, 2))) == 0
    with pytest.raises(ValueError, match="differ in shape"):
        soft_iou(region, np.zeros((2, 3)))


def test_colour_information_of_two_colours_is_the_region_s_entropy() -> None:
    """Where colour tells the region, knowing it takes away all doubt: −Σ p log p of its area."""
    region = disc(15)
    image = np.where(region[..., None], 250, 10).astype(np.uint8).repeat(3, -1)
    area = region.mean()
    entropy = -area * np.log(area) - (1 - area) * np.log(1 - area)
    assert color_information(color_bins(image), region) == pytest.approx(entropy)
    assert color_information(color_bins(image), np.zeros(SIZE, bool)) == 0
    assert color_information(color_bins(np.zeros_like(image)), region) == pytest.approx(0, abs=1e-12)


def test_colour_information_agrees_with_another_library() -> None:
    """Mutual information from scikit-image's variation of information: I = H(region) − H(region | colour)."""
    rng = np.random.default_rng(0)
    image, region = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8), rng.random(SIZE) < 0.3
    bins = color_bins(image)
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    given_colour = metrics.variation_of_information(bins, region.astype(int))
    area = region.mean()
    entropy = -area * np.log2(area) - (1 - area) * np.log2(1 - area)
    found = color_information(bins, region)
    assert min(abs(found - (entropy - h) * np.log(2)) for h in given_colour) < 1e-9


def test_colour_bins_are_eight_a_channel() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255], [31, 32, 64]]], np.uint8)
    assert color_bins(image).tolist() == [[0, 511, 0 * 64 + 1 * 8 + 2]]


def test_edges_are_strongest_along_the_object_s_outline() -> None:
    gradient = log_gradient(picture(14))
    strengths = {radius: edge_strength(gradient, disc(radius).astype(np.uint8)) for radius in (8, 11, 14, 17, 20)}
    assert max(strengths, key=lambda radius: strengths[radius]) == 14
    assert strengths[14] > 1


def test_edge_strength_by_hand() -> None:
    """Labels change between columns 1 and 2: the outline is these two columns."""
    gradient = np.array([[0, 1, 3, 0], [0, 1, 3, 0]], np.float32)
    labels = np.array([[0, 0, 255, 255]] * 2, np.uint8)
    assert edge_strength(gradient, labels) == pytest.approx(2 - 1)
    assert edge_strength(gradient, np.full((2, 4), 7, np.uint8)) == 0


def test_an_even_picture_has_no_gradient() -> None:
    np.testing.assert_allclose(log_gradient(np.full((*SIZE, 3), 90, np.uint8)), 0, atol=1e-5)


@pytest.mark.parametrize(("radius", "threshold"), [(9, 0.55), (18, 0.1)])
def test_the_threshold_follows_the_object_s_size(radius: float, threshold: float) -> None:
    """The same map on a small and a large object: 1 − 0.05 · radius is where it crosses the outline."""
    choice = choose_threshold(picture(radius), hill(0.05), 0.3, None)
    assert choice.threshold == pytest.approx(threshold, abs=0.051)
    assert (choice.labels == disc(radius) * 3).mean() > 0.96


def test_a_foreground_from_elsewhere_leads_the_choice() -> None:
    """An even picture says nothing, so that what the saliency shows decides."""
    even = np.full((*SIZE, 3), 90, np.uint8)
    small, large = (
        choose_threshold(even, hill(0.05), 0.4, None, foreground=disc(radius).astype(np.float32)) for radius in (9, 16)
    )
    assert small.threshold == pytest.approx(0.55, abs=0.06)
    assert large.threshold == pytest.approx(0.2, abs=0.06)
    assert choose_threshold(even, hill(0.05), 0.4, None).threshold == pytest.approx(0.4)


def test_the_labels_are_those_of_the_threshold() -> None:
    crf = CrfSettings(steps=3)
    choice = choose_threshold(picture(12), hill(0.04, (2, 9)), 0.35, crf, 0.6)
    np.testing.assert_array_equal(
        choice.labels, crf_label_map(picture(12), hill(0.04, (2, 9)), choice.threshold, crf, 0.6)
    )
    assert choice.labels.dtype == np.uint8
    assert choice.scores.shape == choice.thresholds.shape
    assert choice.threshold == choice.thresholds[choice.scores.argmax()]


def test_the_candidates_stay_inside() -> None:
    for expected in (0.0, 0.04, 0.97, 1.0):
        choice = choose_threshold(picture(12), hill(0.04), expected, None)
        assert (np.diff(choice.thresholds) > 0).all()
        assert FIRST <= choice.thresholds.min() <= choice.thresholds.max() <= LAST


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
@pytest.mark.parametrize("value", [0.0, 0.9])
def test_tiny_images_and_constant_maps(size: tuple[int, int], value: float) -> None:
    maps = ResponseMaps(np.array([4]), np.full((1, *grid_size(size)), value, np.float32), size)
    choice = choose_threshold(np.zeros((*size, 3), np.uint8), maps, 0.4, CrfSettings())
    assert choice.labels.tolist() == np.full(size, 4 if value else 0).tolist()
    assert np.isfinite(choice.scores).all()


def test_an_image_without_a_tag_is_background() -> None:
    maps = ResponseMaps(np.zeros(0, int), np.zeros((0, *grid_size(SIZE)), np.float32), SIZE)
    assert not choose_threshold(picture(9), maps, 0.4, CrfSettings(), foreground=disc(9) * 1.0).labels.any()


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        choose_threshold(np.zeros((5, 5, 3), np.uint8), hill(0.05), 0.4, None)
    with pytest.raises(ValueError, match="differ in shape"):
        choose_threshold(picture(9), hill(0.05), 0.4, None, foreground=np.zeros((5, 5)))


def test_more_tags_expect_a_higher_threshold() -> None:
    """Among images of 1, 1 and 4 tags √tags is 4 / 3 on average."""
    typical = typical_root([(1,), (2,), (1, 2, 3, 4), (), None])
    assert typical == pytest.approx(4 / 3)
    assert [expected_threshold(0.4, n, typical) for n in (1, 4)] == pytest.approx([0.3, 0.6])
    assert expected_threshold(0.9, 100, typical) == LAST
    assert typical_root([(), None]) == 1
