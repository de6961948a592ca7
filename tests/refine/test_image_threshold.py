"""Tests of the threshold for each image: its terms by hand or against another library, the choice on simple images."""

from __future__ import annotations

import numpy as np
import pytest

from tagmask.maps import ResponseMaps, grid_size
from tagmask.refine.colors import color_bins
from tagmask.refine.image_threshold import (
    MAX_THRESHOLD,
    MIN_THRESHOLD,
    choose_threshold,
    color_information,
    edge_strength,
    expected_threshold,
    log_gradient,
    mean_root_num_tags,
    soft_iou,
)
from tagmask.refine.map_cutting import cut_maps
from tagmask.refine.settings import CrfSettings

SIZE = (48, 64)


def disc(radius: float) -> np.ndarray:
    y, x = np.indices(SIZE)
    return (y - 24) ** 2 + (x - 32) ** 2 < radius**2


def cone_maps(steepness: float, classes: tuple[int, ...] = (3,)) -> ResponseMaps:
    """Maps that fall linearly from 1 at the center of the image."""
    y, x = np.indices(grid_size(SIZE))
    distance = np.hypot(4 * y + 1.5 - 24, 4 * x + 1.5 - 32)
    cone = np.clip(1 - steepness * distance, 0, 1).astype(np.float32)
    return ResponseMaps(np.array(classes), np.repeat(cone[None], len(classes), 0), SIZE)


def disc_image(radius: float) -> np.ndarray:
    """A reddish disc on green with a little noise."""
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


def test_color_information_of_two_colors_is_the_entropy_of_the_region() -> None:
    """Where the color determines the region, the mutual information is the entropy −Σ p log p of the region."""
    region = disc(15)
    image = np.where(region[..., None], 250, 10).astype(np.uint8).repeat(3, -1)
    area = region.mean()
    entropy = -area * np.log(area) - (1 - area) * np.log(1 - area)
    assert color_information(color_bins(image), region) == pytest.approx(entropy)
    assert color_information(color_bins(image), np.zeros(SIZE, bool)) == 0
    assert color_information(color_bins(np.zeros_like(image)), region) == pytest.approx(0, abs=1e-12)


def test_color_information_agrees_with_scikit_image() -> None:
    """Mutual information from the variation of information of scikit-image: I = H(region) − H(region | color)."""
    rng = np.random.default_rng(0)
    image, region = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8), rng.random(SIZE) < 0.3
    bins = color_bins(image)
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    conditional_entropies = metrics.variation_of_information(bins, region.astype(int))
    area = region.mean()
    entropy = -area * np.log2(area) - (1 - area) * np.log2(1 - area)
    information = color_information(bins, region)
    assert min(abs(information - (entropy - h) * np.log(2)) for h in conditional_entropies) < 1e-9


def test_edge_strength_is_highest_at_the_outline_of_the_object() -> None:
    gradient = log_gradient(disc_image(14))
    strengths = {radius: edge_strength(gradient, disc(radius).astype(np.uint8)) for radius in (8, 11, 14, 17, 20)}
    assert max(strengths, key=lambda radius: strengths[radius]) == 14
    assert strengths[14] > 1


def test_edge_strength_by_hand() -> None:
    """The labels change between columns 1 and 2, so these two columns are the outline."""
    gradient = np.array([[0, 1, 3, 0], [0, 1, 3, 0]], np.float32)
    labels = np.array([[0, 0, 255, 255]] * 2, np.uint8)
    assert edge_strength(gradient, labels) == pytest.approx(2 - 1)
    assert edge_strength(gradient, np.full((2, 4), 7, np.uint8)) == 0


def test_an_image_of_one_color_has_no_gradient() -> None:
    np.testing.assert_allclose(log_gradient(np.full((*SIZE, 3), 90, np.uint8)), 0, atol=1e-5)


@pytest.mark.parametrize(("radius", "threshold"), [(9, 0.55), (18, 0.1)])
def test_the_threshold_follows_the_size_of_the_object(radius: float, threshold: float) -> None:
    """The same map on a small and a large object crosses the outline at 1 − 0.05 · radius."""
    choice = choose_threshold(disc_image(radius), cone_maps(0.05), 0.3, None)
    assert choice.threshold == pytest.approx(threshold, abs=0.051)
    assert (choice.labels == disc(radius) * 3).mean() > 0.96


def test_a_given_foreground_decides_on_an_image_of_one_color() -> None:
    uniform = np.full((*SIZE, 3), 90, np.uint8)
    small, large = (
        choose_threshold(uniform, cone_maps(0.05), 0.4, None, foreground=disc(radius).astype(np.float32))
        for radius in (9, 16)
    )
    assert small.threshold == pytest.approx(0.55, abs=0.06)
    assert large.threshold == pytest.approx(0.2, abs=0.06)
    assert choose_threshold(uniform, cone_maps(0.05), 0.4, None).threshold == pytest.approx(0.4)


def test_learned_boundaries_decide_on_an_image_of_one_color() -> None:
    """The outline lies on the ring of boundaries: at 1 − 0.05 · radius."""
    uniform = np.full((*SIZE, 3), 90, np.uint8)
    y, x = np.indices(grid_size(SIZE))
    distance = np.hypot(4 * y + 1.5 - 24, 4 * x + 1.5 - 32)
    for radius, threshold in ((9, 0.55), (16, 0.2)):
        ring = np.exp(-(((distance - radius) / 3) ** 2)).astype(np.float32)
        choice = choose_threshold(uniform, cone_maps(0.05), 0.4, None, boundary=ring)
        assert choice.threshold == pytest.approx(threshold, abs=0.06)


def test_the_labels_belong_to_the_chosen_threshold() -> None:
    crf = CrfSettings(steps=3)
    choice = choose_threshold(disc_image(12), cone_maps(0.04, (2, 9)), 0.35, crf, 0.6)
    np.testing.assert_array_equal(
        choice.labels, cut_maps(disc_image(12), cone_maps(0.04, (2, 9)), choice.threshold, crf, 0.6)
    )
    assert choice.labels.dtype == np.uint8
    assert choice.scores.shape == choice.thresholds.shape
    assert choice.threshold == choice.thresholds[choice.scores.argmax()]


def test_the_candidates_stay_in_range() -> None:
    for expected in (0.0, 0.04, 0.97, 1.0):
        choice = choose_threshold(disc_image(12), cone_maps(0.04), expected, None)
        assert (np.diff(choice.thresholds) > 0).all()
        assert MIN_THRESHOLD <= choice.thresholds.min() <= choice.thresholds.max() <= MAX_THRESHOLD


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
@pytest.mark.parametrize("value", [0.0, 0.9])
def test_tiny_images_and_constant_maps(size: tuple[int, int], value: float) -> None:
    maps = ResponseMaps(np.array([4]), np.full((1, *grid_size(size)), value, np.float32), size)
    choice = choose_threshold(np.zeros((*size, 3), np.uint8), maps, 0.4, CrfSettings())
    assert choice.labels.tolist() == np.full(size, 4 if value else 0).tolist()
    assert np.isfinite(choice.scores).all()


def test_an_image_without_tags_is_background() -> None:
    maps = ResponseMaps(np.zeros(0, int), np.zeros((0, *grid_size(SIZE)), np.float32), SIZE)
    assert not choose_threshold(disc_image(9), maps, 0.4, CrfSettings(), foreground=disc(9) * 1.0).labels.any()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        choose_threshold(np.zeros((5, 5, 3), np.uint8), cone_maps(0.05), 0.4, None)
    with pytest.raises(ValueError, match="differ in shape"):
        choose_threshold(disc_image(9), cone_maps(0.05), 0.4, None, foreground=np.zeros((5, 5)))


def test_more_tags_raise_the_expected_threshold() -> None:
    """The mean of √tags over images with 1, 1 and 4 tags is 4 / 3."""
    mean_root_tags = mean_root_num_tags([(1,), (2,), (1, 2, 3, 4), (), None])
    assert mean_root_tags == pytest.approx(4 / 3)
    assert [expected_threshold(0.4, n, mean_root_tags) for n in (1, 4)] == pytest.approx([0.3, 0.6])
    assert expected_threshold(0.9, 100, mean_root_tags) == MAX_THRESHOLD
    assert mean_root_num_tags([(), None]) == 1
