"""Everything can be done without a mouse."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.review.browser.review_page import ReviewPage

ROOT = Path(__file__).resolve().parents[3]


def test_gallery_open_paint_accept_next(page: ReviewPage) -> None:
    page.tab.get_by_label("Order").select_option("name")
    page.press("/")
    page.tab.keyboard.type("pair")
    page.press("Enter", "End")
    page.press("ArrowLeft", "Enter")  # the last image but one
    page.wait_for_image("pair/10")
    before = page.mask()
    page.press("b", "2", "c", "Shift+ArrowUp", "Shift+ArrowUp")
    page.tab.keyboard.down(" ")
    page.press("ArrowRight", "ArrowRight")
    page.tab.keyboard.up(" ")
    painted = page.mask()
    assert set(painted[painted != before]) == {3}
    page.press("ArrowRight", "Escape")  # without Space, the cursor only moves
    np.testing.assert_array_equal(page.mask(), painted)
    page.press("Enter")
    page.wait_for_image("pair/11")
    page.wait_until_saved()
    assert page.saved("pair/10").state == "corrected"
    np.testing.assert_array_equal(page.saved_mask("pair/10"), painted)
    page.press("r")  # rejects the last image of the list, so the gallery comes
    page.tab.wait_for_selector(".gallery .tile.is-rejected[aria-label^='pair/11']")
    assert page.saved("pair/11").state == "rejected"


def test_a_threshold_with_arrow_keys_does_not_leave_the_image(page: ReviewPage) -> None:
    page.open("pair/03")
    page.tab.get_by_label("Threshold of bird").focus()
    before = page.evaluate("store.document.value.thresholds.value[1]")
    page.press("ArrowRight")
    assert page.evaluate("store.document.value.thresholds.value[1]") == pytest.approx(before + 0.01)
    assert page.evaluate("store.document.value.id") == "pair/03"
    page.press("Control+z")


def test_a_key_that_is_held_down_accepts_one_image_only(page: ReviewPage) -> None:
    page.tab.get_by_label("Order").select_option("name")
    page.open("extra/00")
    for _ in range(4):
        page.tab.keyboard.down("Enter")  # all but the first are repetitions
    page.tab.keyboard.up("Enter")
    page.wait_for_image("extra/01")
    page.wait_until_saved()
    assert page.saved("extra/00").state == "accepted"
    assert page.server.review.history("extra/01") == []


def test_keys_of_the_view(page: ReviewPage) -> None:
    page.open("pair/00")
    fitted = page.evaluate("store.canvas.value.scale")
    page.press("+", "m", "o", "h")
    assert page.evaluate("store.canvas.value.scale") == fitted * 1.5
    assert page.evaluate("store.view.value") == {"isMaskShown": False, "isSolo": True, "isHeatShown": True}
    page.press("0", "m", "o", "h")
    assert page.evaluate("store.canvas.value.scale") == fitted
    size = page.evaluate("store.settings.value.diameter")
    page.press("]", "]", "[")
    assert page.evaluate("store.settings.value.diameter") > size


def test_help_lists_every_key(page: ReviewPage) -> None:
    page.open("pair/00")
    page.press("?")
    shown = page.tab.locator("dialog.help").inner_text()
    groups = page.evaluate("(await import('/static/js/shortcuts.js')).EDITOR_KEYS")
    for text in (key["text"] for _, keys in groups for key in keys):
        assert text in shown
    page.press("Escape")
    assert page.tab.locator("dialog.help[open]").count() == 0
    assert page.evaluate("store.route.value.view") == "editor"  # Escape has closed the help only


def test_the_guide_names_every_key(page: ReviewPage) -> None:
    _, _, guide = (ROOT / "docs" / "guides" / "reviewing.md").read_text(encoding="utf-8").partition("## Keys")
    groups = page.evaluate("(await import('/static/js/shortcuts.js')).EDITOR_KEYS")
    for key in (key["keys"][0] for _, keys in groups for key in keys):
        name = {"Escape": "Esc", "Ctrl+z": "Ctrl-Z", "Ctrl+Shift+Z": "Ctrl-Shift-Z", "Shift+R": "Shift-R"}.get(key, key)
        assert name in guide if len(name) > 1 else f"`{name.upper()}`" in guide, key


def test_every_control_has_a_name(page: ReviewPage) -> None:
    nameless = """() => [...document.querySelectorAll("button, input, select, a, [role=option], canvas")]
        .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)"""
    assert page.tab.evaluate(nameless) == []
    page.open("pair/00")
    page.press("s")
    assert page.tab.evaluate(nameless) == []


def test_texts_are_dark_enough(page: ReviewPage) -> None:
    """WCAG AA asks for a contrast of 4.5 between text and background."""
    for scheme in ("light", "dark"):
        page.tab.emulate_media(color_scheme=scheme)
        names = ["--ink", "--soft", "--accent", "--accepted", "--corrected", "--rejected", "--draft"]
        colors = page.tab.evaluate(
            "(names) => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(name))",
            [*names, "--card", "--paper"],
        )
        luminances = [luminance(color) for color in colors]
        for name, value in zip(names, luminances, strict=False):
            for background in luminances[-2:]:
                low, high = sorted((value, background))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, name)


def luminance(color: str) -> float:
    """Return the relative luminance of "#rrggbb", as WCAG 2 defines it."""
    channels = [int(part, 16) / 255 for part in re.findall("[0-9a-f]{2}", color)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
