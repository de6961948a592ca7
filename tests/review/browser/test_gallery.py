"""The gallery: filters, order, keys, and ten thousand images."""

from __future__ import annotations

from typing import Any

import pytest

from tagmask.review.images import image_key
from tests.review.browser.conftest import IMAGES, Server
from tests.review.browser.review_page import ReviewPage

NUM_MANY = 10_000


def shown(page: ReviewPage) -> list[str]:
    """The ids of the images in the gallery, in order."""
    return list(page.evaluate("store.list.value.map((row) => row.id)"))


def test_filters_and_order(page: ReviewPage) -> None:
    page.tab.get_by_label("Order").select_option("name")
    assert shown(page) == sorted(IMAGES)
    page.tab.get_by_label("Class").select_option(label="cat")
    assert {image_id for image_id in IMAGES if image_id.startswith("solo")} <= set(shown(page))
    assert "pair/00" not in shown(page)
    page.tab.get_by_label("Search names").fill("SOLO 3")
    assert shown(page) == ["solo/03"]
    page.tab.get_by_label("Class").select_option(label="No tags")
    page.tab.wait_for_selector("text=No image fits the filter.")
    page.click("Show all images")
    assert len(shown(page)) == len(IMAGES)


def test_states_follow_changes_by_others(page: ReviewPage, server: Server) -> None:
    server.review.record("pair/09", "rejected", None, source="another program", tags=("cat",))
    tile = page.tab.locator("[aria-label='pair/09, cat, Rejected']")
    tile.wait_for()
    page.tab.get_by_role("button", name="Rejected").click()
    assert "pair/09" in shown(page)
    page.evaluate("store.selected.value = argument", image_key("pair/09"))
    page.press("a")
    page.wait_for("!store.list.value.some((row) => row.id === 'pair/09')")
    assert page.saved("pair/09").state == "accepted"
    assert page.saved("pair/09").tags is not None  # those that its mask shows are added
    assert set(page.saved("pair/09").tags or ()) == {"bird", "cat", "dog"}


def test_enter_opens_the_first_image_if_none_is_marked(page: ReviewPage) -> None:
    page.evaluate("store.selected.value = null")
    page.evaluate("document.activeElement.blur()")  # a field that an earlier test has used takes Enter for itself
    page.wait_for("store.list.value.length > 0")
    first = shown(page)[0]
    page.press("Enter")
    page.wait_for_image(first)
    page.press("Escape")


def test_the_editor_steps_through_the_filtered_list(page: ReviewPage) -> None:
    page.tab.get_by_label("Order").select_option("name")
    page.tab.get_by_label("Search names").fill("pair/0")
    page.tab.locator("[aria-label^='pair/00']").click()
    page.wait_for_image("pair/00")
    assert page.tab.locator(".position").inner_text() == "1 of 10"
    page.press("n")
    page.wait_for_image("pair/01")
    page.press("ArrowLeft", "Escape")
    page.tab.wait_for_selector(".tile[aria-selected=true][aria-label^='pair/00']")
    assert len(shown(page)) == 10


@pytest.fixture
def many(context: Any, server: Server) -> ReviewPage:
    """The gallery of ten thousand images, which the server has no files of."""
    page = ReviewPage(context.new_page(), server)
    columns = [
        "key",
        "id",
        "width",
        "height",
        "tags",
        "state",
        "doubt",
        "version",
        "corrected_tags",
        "has_ground_truth",
    ]
    rows = [
        [f"{n:016x}", f"photos/{n:05}", 500, 375, [n % 3 + 1], "open", n / NUM_MANY, 0, None, False]
        for n in range(NUM_MANY)
    ]
    page.tab.route(
        "**/api/images", lambda route: route.fulfill(json={"columns": columns, "images": rows, "scoring": None})
    )

    def count(route: Any) -> None:
        page.thumbnails += 1
        route.fulfill(content_type="image/svg+xml", body='<svg xmlns="http://www.w3.org/2000/svg"/>')

    page.tab.route("**/thumbnail*", count)
    page.goto(server.url)
    return page


def test_only_the_visible_ones_of_many_images_are_drawn(many: ReviewPage) -> None:
    many.tab.wait_for_selector(".tile[aria-label^='photos/09999']")  # the most doubtful one comes first
    assert many.tab.locator(".tile").count() < 60
    many.tab.evaluate("document.querySelector('.grid').scrollTop = 1e9")
    many.tab.wait_for_selector(".tile[aria-label^='photos/00000']")
    assert many.tab.locator(".tile").count() < 60
    many.press("Home")
    many.tab.wait_for_selector(".tile[aria-selected=true][aria-label^='photos/09999']")
    before = many.thumbnails
    many.tab.evaluate(
        """async () => {
            const grid = document.querySelector(".grid");
            for (let n = 0; n < 40; n++) {
                grid.scrollTop += 3000;
                await new Promise(requestAnimationFrame);
            }
        }"""
    )
    many.tab.wait_for_function("() => document.querySelectorAll('.tile img.is-loaded').length >= 10")
    assert many.thumbnails - before < 400  # of 1,500 that have passed
    assert not many.errors
