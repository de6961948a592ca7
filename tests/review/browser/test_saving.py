"""Nothing that a person has changed is lost: autosave, reload, a server that ends, two tabs."""

from __future__ import annotations

from typing import Any

import numpy as np

from tagmask.label_map import IGNORE_INDEX
from tagmask.review.images import image_key
from tests.review.browser.conftest import Server
from tests.review.browser.review_page import ReviewPage


def paint(page: ReviewPage, x: float, y: float) -> np.ndarray:
    """Paint some pixels as not sure; return the mask."""
    page.press("b", "u")
    page.drag((x, y), (x + 8, y + 3))
    mask = page.mask()
    assert (mask == IGNORE_INDEX).any()
    return mask


def test_changes_are_saved_as_a_draft_and_are_there_after_a_reload(new_page: ReviewPage) -> None:
    page = new_page
    page.open("solo/01")
    mask = paint(page, 20, 20)
    assert page.status == "Saving…"
    page.wait_until_saved()
    assert page.saved("solo/01").state == "draft"
    np.testing.assert_array_equal(page.saved_mask("solo/01"), mask)
    page.tab.reload()
    page.wait_for_image("solo/01")
    np.testing.assert_array_equal(page.mask(), mask)


def test_a_reload_before_the_autosave_loses_nothing(new_page: ReviewPage) -> None:
    page = new_page
    page.open("solo/02")
    page.tab.route("**/mask?state=*", lambda route: route.abort())  # as if the page closed before the request left
    mask = paint(page, 30, 30)
    page.tab.on("dialog", lambda dialog: dialog.accept())  # "Leave site?"
    page.tab.reload()
    page.wait_for_image("solo/02")
    np.testing.assert_array_equal(page.mask(), mask)
    page.tab.unroute("**/mask?state=*")  # not while the page loads: requests that Playwright holds would never end
    page.wait_until_saved()
    page.wait_for("store.document.value.save.value.phase === 'saved'")
    np.testing.assert_array_equal(page.saved_mask("solo/02"), mask)


def test_what_was_not_saved_is_saved_when_the_gallery_opens(new_page: ReviewPage, server: Server) -> None:
    page = new_page
    page.open("solo/03")
    page.tab.route("**/mask?state=*", lambda route: route.abort())
    mask = paint(page, 30, 30)
    page.press("Enter")  # accept
    page.wait_for_image("solo/04")
    page.tab.wait_for_selector(".save.is-failed")
    page.press("Escape")
    page.tab.on("dialog", lambda dialog: dialog.accept())
    page.tab.reload()
    page.tab.wait_for_selector(".save.is-failed")
    page.tab.unroute("**/mask?state=*")
    page.tab.wait_for_selector(".tile.is-corrected[aria-label^='solo/03']")
    assert page.saved("solo/03").state == "corrected"
    np.testing.assert_array_equal(page.saved_mask("solo/03"), mask)


def test_a_server_that_ends_and_starts_again(new_page: ReviewPage, server: Server, context: Any) -> None:
    page = new_page
    page.open("solo/04")
    server.stop()
    mask = paint(page, 40, 40)
    page.tab.wait_for_selector(".save.is-failed")
    bar = page.tab.locator(".bar").inner_text()
    assert "solo/04 is not saved: the server does not answer" in bar
    assert f"--port {server.port}" in bar
    paint(page, 60, 60)
    mask = page.mask()
    server.start()  # with another token, so the cookie is too old
    page.tab.wait_for_selector(".bar:has-text('Open the address')")
    other = context.new_page()
    other.goto(server.url)
    page.wait_until_saved()
    np.testing.assert_array_equal(page.saved_mask("solo/04"), mask)
    assert page.tab.locator(".bar").count() == 0


def test_an_answer_that_got_lost_is_no_conflict(new_page: ReviewPage) -> None:
    page = new_page
    page.open("solo/05")
    is_first = True

    def lose_answer(route: Any) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            route.fetch()
            route.abort()
        else:
            route.continue_()

    page.tab.route("**/mask?state=draft*", lose_answer)
    paint(page, 40, 40)
    page.tab.wait_for_selector(".save.is-failed")
    page.wait_until_saved()
    assert len(page.server.review.history("solo/05")) == 1


def test_two_tabs(new_page: ReviewPage, chromium: Any, server: Server) -> None:
    page = new_page
    page.open("pair/07")
    other = ReviewPage(chromium.new_page(), server)  # in a window of its own, since tabs in the background are slow
    other.goto(server.url)
    other.open("pair/07")
    theirs = paint(other, 20, 20)
    other.wait_until_saved()
    page.wait_for("store.document.value.version === 1")  # a tab without changes shows those of the other one
    np.testing.assert_array_equal(page.mask(), theirs)

    page.tab.route("**/changes*", lambda route: route.abort())
    theirs = paint(other, 40, 60)
    other.wait_until_saved()
    mine = paint(page, 90, 20)
    page.tab.wait_for_selector(".bar:has-text('pair/07 was changed in another tab')")
    assert page.status == "Not saved"
    np.testing.assert_array_equal(page.saved_mask("pair/07"), theirs)
    page.click("Keep mine")
    page.wait_until_saved()
    np.testing.assert_array_equal(page.saved_mask("pair/07"), mine)

    other.wait_for("store.document.value.version === 3")
    theirs = paint(other, 60, 70)
    other.wait_until_saved()
    paint(page, 100, 70)
    page.tab.wait_for_selector(".save.is-conflict")
    page.click("Take theirs")
    page.wait_for("store.document.value.version === 4")
    assert page.evaluate("store.rowsByKey.value.get(store.document.value.key).version") == 4
    np.testing.assert_array_equal(page.mask(), theirs)
    assert page.status == "Saved"
    assert not other.errors
    other.tab.context.close()


def test_versions_can_be_restored(new_page: ReviewPage) -> None:
    page = new_page
    page.open("pair/08")
    page.press("Enter")
    page.wait_for_image("pair/09")
    page.wait_until_saved()
    assert page.saved("pair/08").state == "accepted"
    page.press("p")
    page.wait_for_image("pair/08")
    paint(page, 20, 20)
    page.wait_until_saved()
    page.tab.get_by_text("Saved versions").click()
    page.tab.get_by_role("button", name="Restore").first.click()
    page.wait_for("store.document.value?.version === 3")
    assert page.saved("pair/08").state == "accepted"
    np.testing.assert_array_equal(page.mask(), page.run_mask("pair/08"))
    page.press("Shift+R")
    page.wait_for("store.document.value?.version === 4")
    assert page.saved("pair/08").state == "open"


def test_a_damaged_mask_can_be_given_up(new_page: ReviewPage) -> None:
    page = new_page
    page.open("extra/02")
    paint(page, 40, 40)
    page.wait_until_saved()
    page.press("Escape")
    page.server.review.mask_path("extra/02").write_bytes(b"damaged")
    page.evaluate("(await import('/static/js/router.js')).openImage(argument)", image_key("extra/02"))
    page.tab.wait_for_selector(".loading:has-text('This image cannot be opened')")
    page.tab.get_by_role("button", name="Reopen").click()
    page.wait_for_image("extra/02")
    np.testing.assert_array_equal(page.mask(), page.run_mask("extra/02"))
