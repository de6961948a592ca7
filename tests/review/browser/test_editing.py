"""Changing a mask: thresholds, tools, tags, undo."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tagmask.label_map import IGNORE_INDEX
from tests.review.browser.review_page import ReviewPage
from tests.review.browser.small_run import SIZE, response_maps

ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5


def stroke(start: tuple[float, float], end: tuple[float, float], diameter: float) -> np.ndarray:
    """Return the pixels whose center is at most diameter / 2 away from a line, [H, W] bool, by sampling the line."""
    steps = np.linspace(0, 1, 2000)
    points = np.outer(1 - steps, start) + np.outer(steps, end)
    near = [(COLUMNS - x) ** 2 + (ROWS - y) ** 2 <= (diameter / 2) ** 2 for x, y in points]
    return np.any(near, axis=0)


def test_a_threshold_acts_at_once_and_the_crf_when_the_slider_is_released(page: ReviewPage) -> None:
    page.open("pair/00")
    maps = response_maps("pair/00")
    np.testing.assert_array_equal(page.mask(), page.run_mask("pair/00"))
    page.set_slider("Threshold of bird", 0.7, release=False)
    page.set_slider("Threshold of dog", 0.7, release=False)
    cut = maps.label_map(0.7)
    assert np.mean(page.mask() == cut) >= 0.9999
    with page.tab.expect_response("**/cut") as answer:
        page.set_slider("Threshold of dog", 0.7)
    refined = np.frombuffer(answer.value.body(), np.uint8).reshape(SIZE)
    assert (refined != cut).any()
    page.wait_for("!store.document.value.isRefining.value")
    np.testing.assert_array_equal(page.mask(), refined)
    page.press("Control+z")  # the cut and its refinement are one step
    np.testing.assert_array_equal(page.mask(), page.run_mask("pair/00"))
    assert page.evaluate("store.document.value.history.canUndo") is False
    page.press("Control+Shift+Z")
    np.testing.assert_array_equal(page.mask(), refined)


def test_painted_pixels_stay_when_a_threshold_changes(page: ReviewPage) -> None:
    page.open("pair/01")
    page.check("Refine with the CRF")
    page.press("u")
    page.drag((5, 5), (40, 5))
    painted = page.mask() == IGNORE_INDEX
    assert painted.any()
    page.set_slider("Threshold of bird", 0.1)
    assert (page.mask()[painted] == IGNORE_INDEX).all()
    assert (page.mask() != page.run_mask("pair/01"))[~painted].any()


def test_painted_pixels_and_thresholds_stay_when_the_image_is_opened_again(page: ReviewPage) -> None:
    page.open("extra/03")
    page.check("Refine with the CRF")
    page.set_slider("Threshold of bird", 0.35)
    page.press("u")
    page.drag((5, 5), (40, 5))
    page.wait_until_saved()
    mask = page.mask()
    painted = mask == IGNORE_INDEX
    page.open("extra/01")
    page.open("extra/03")
    np.testing.assert_array_equal(page.mask(), mask)
    assert page.evaluate("store.document.value.thresholds.value[1]") == 0.35
    page.set_slider("Threshold of bird", 0.1)
    assert (page.mask()[painted] == IGNORE_INDEX).all()
    assert (page.mask() != mask)[~painted].any()


def test_a_threshold_keeps_other_classes(page: ReviewPage) -> None:
    page.open("pair/11")
    page.check("Refine with the CRF")
    page.press("k")
    before = page.mask()
    assert (before == 3).any()
    page.set_slider("Threshold of bird", 0.0)
    after = page.mask()
    np.testing.assert_array_equal(after == 3, before == 3)
    assert ((after == 1) & (before == 0)).any()
    page.set_slider("Threshold of bird", 1.0)
    np.testing.assert_array_equal(page.mask() == 3, before == 3)
    assert not (page.mask() == 1).any()


def test_brush_and_eraser(page: ReviewPage) -> None:
    page.open("pair/02")
    expected = page.run_mask("pair/02")
    page.set_slider("Brush size", 45)  # about 11 pixels
    diameter = page.evaluate("store.settings.value.diameter")
    page.press("b", "2")  # the second class of the list: dog, class 3
    page.drag((20.5, 10.5), (70.5, 40.5))
    brushed = stroke((20.5, 10.5), (70.5, 40.5), diameter)
    np.testing.assert_array_equal(page.mask()[brushed], 3)
    expected[brushed] = 3
    assert np.mean(page.mask() != expected) < 0.002  # the mouse moves by whole pixels of the screen
    page.press("e")
    page.drag((20.5, 10.5), (70.5, 40.5))
    assert (page.mask()[brushed] == 0).all()
    page.press("Control+z")
    assert (page.mask()[brushed] == 3).all()


def test_right_button_erases(page: ReviewPage) -> None:
    page.open("pair/02")
    y, x = np.argwhere(page.mask() == 1)[0]
    page.press("b")
    page.drag((x + 0.5, y + 0.5), button="right")
    assert page.mask()[y, x] == 0


def test_fill_changes_the_connected_region(page: ReviewPage) -> None:
    page.open("pair/03")
    before = page.mask()
    regions, _ = ndimage.label(before == 1)
    y, x = ndimage.center_of_mass(before == 1)
    page.press("u", "f")
    page.drag((x, y))
    expected = np.where(regions == regions[int(y), int(x)], IGNORE_INDEX, before)
    np.testing.assert_array_equal(page.mask(), expected)


def test_a_click_paints_a_superpixel(page: ReviewPage) -> None:
    page.open("solo/00")
    before = page.mask()
    page.press("s")
    page.wait_for("store.canvas.value.superpixels.value")
    page.press("u")
    page.drag((61, 45))
    session = page.server.session
    [image] = [image for image in session.images.values() if image.id == "solo/00"]
    segments = session.superpixels(image, "medium")
    np.testing.assert_array_equal(page.mask(), np.where(segments == segments[45, 61], IGNORE_INDEX, before))


def test_keep_other_classes(page: ReviewPage) -> None:
    page.open("pair/04")
    before = page.mask()
    y, x = ndimage.center_of_mass(before == 1)
    page.press("k", "b", "2")
    page.evaluate("store.changeSettings({ diameter: 40 })")
    page.drag((x, y), (x, 2))
    after = page.mask()
    changed = before != after
    assert changed.any()
    assert (before[changed] == 0).all()
    assert (after[changed] == 3).all()
    page.press("e")  # erases the chosen class only
    page.drag((x, y), (x, 2))
    assert set(after[after != page.mask()]) == {3}


def test_undo_and_redo(page: ReviewPage) -> None:
    page.open("pair/05")
    masks = [page.mask()]
    page.press("u")
    for column in (20, 50, 80):
        page.drag((column, 20))
        masks.append(page.mask())
    assert len({mask.tobytes() for mask in masks}) == 4
    for mask in masks[-2::-1]:
        page.press("Control+z")
        np.testing.assert_array_equal(page.mask(), mask)
    page.press("Control+z")
    np.testing.assert_array_equal(page.mask(), masks[0])
    for mask in masks[1:]:
        page.press("Control+Shift+Z")
        np.testing.assert_array_equal(page.mask(), mask)
    page.press("Control+z")
    page.drag((50, 70))  # what was undone is gone
    assert page.evaluate("store.document.value.history.canRedo") is False


def test_tags(page: ReviewPage) -> None:
    page.open("pair/06")
    page.check("dog: the image shows it")
    assert set(np.unique(page.mask())) <= {0, 1}
    page.wait_until_saved()
    assert page.saved("pair/06").tags == ("bird",)
    page.press("Control+z")
    np.testing.assert_array_equal(page.mask(), page.run_mask("pair/06"))
    page.wait_until_saved()
    page.press("b", "3")  # the third class of the list is no tag yet: cat
    page.drag((60, 8))
    assert page.evaluate("store.document.value.tags.value") == [1, 2, 3]
    page.press("Enter")
    page.wait_until_saved()
    assert page.saved("pair/06").tags == ("bird", "cat", "dog")
    assert page.saved("pair/06").state == "corrected"
