"""What a person does and sees on the review page, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tagmask.review.images import image_key
from tagmask.review_log import ReviewEvent
from tests.review.browser.small_run import SIZE

if TYPE_CHECKING:
    from tests.review.browser.conftest import Server

_SIGNALS = ["filter", "order", "tool", "label", "view", "settings", "sequence", "selected"]
_STORE = "const store = await import('/static/js/store.js');"


class ReviewPage:
    """One tab.

    Args:
        tab: the page of Playwright.
        server: the server that it shows.

    Attributes:
        errors: JavaScript errors so far.
        thumbnails: the number of small pictures that were loaded, where a test counts them.
    """

    def __init__(self, tab: Any, server: Server) -> None:
        self.tab, self.server = tab, server
        self.errors: list[str] = []
        self.thumbnails = 0
        self._defaults: dict[str, Any] = {}
        tab.on("pageerror", lambda error: self.errors.append(str(error)))

    def goto(self, url: str) -> None:
        self.tab.goto(url)
        self.tab.wait_for_selector(".gallery, .stage")

    def reset(self) -> None:
        """Go to the gallery; all filters, tools and settings become those of a new browser."""
        self.errors.clear()
        self.wait_until_saved()
        if not self._defaults:
            self._defaults = self.evaluate("Object.fromEntries(argument.map((n) => [n, store[n].value]))", _SIGNALS)
        self.evaluate("Object.entries(argument).forEach(([n, value]) => (store[n].value = value))", self._defaults)
        self.evaluate("(await import('/static/js/router.js')).openGallery()")
        self.tab.wait_for_selector(".gallery")

    def open(self, image_id: str) -> None:
        """Show an image in the editor, and wait until its photo is there."""
        self.evaluate("(await import('/static/js/router.js')).openImage(argument)", image_key(image_id))
        self.wait_for_image(image_id)

    def wait_for_image(self, image_id: str) -> None:
        """Wait until an image is in the editor, with its photo and in the size of the window."""
        self.wait_for("store.document.value?.id === argument && Boolean(store.canvas.value?.photo)", image_id)
        self.wait_for(
            "(({ element }) => element.width === Math.round(element.parentElement.clientWidth * devicePixelRatio))"
            "(store.canvas.value)"
        )

    def evaluate(self, expression: str, argument: Any = None) -> Any:
        """Evaluate an expression with the `store` and an `argument`."""
        return self.tab.evaluate(f"async (argument) => {{ {_STORE} return {expression}; }}", argument)

    def wait_for(self, expression: str, argument: Any = None) -> None:
        """Wait until an expression with the `store` and an `argument` is true."""
        self.tab.evaluate(f"async () => {{ {_STORE} globalThis.store = store; }}")
        self.tab.wait_for_function(f"(argument) => {expression}", arg=argument, polling=20)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.tab.keyboard.press(key)

    def mask(self) -> np.ndarray:
        """The mask in the editor, [H, W] uint8."""
        text = self.evaluate("String.fromCharCode(...store.document.value.labels)")
        return np.frombuffer(text.encode("latin-1"), np.uint8).reshape(SIZE)

    def drag(self, *points: tuple[float, float], button: str = "left") -> None:
        """Press a mouse button at the first of some points (x, y), in pixels of the image, and move to the others."""
        view = self.evaluate(
            "[store.canvas.value.scale, ...store.canvas.value.offset, "
            "...Object.values(store.canvas.value.element.getBoundingClientRect().toJSON())]"
        )
        scale, x0, y0, left, top = view[:5]
        mouse = self.tab.mouse
        positions = [(left + x0 + x * scale, top + y0 + y * scale) for x, y in points]
        mouse.move(*positions[0])
        mouse.down(button=button)
        for position in positions[1:]:
            mouse.move(*position, steps=2)
        mouse.up(button=button)

    def set_slider(self, name: str, value: float, *, release: bool = True) -> None:
        """Move a slider, as the mouse does; without `release`, the button stays down."""
        self.tab.get_by_label(name, exact=True).evaluate(
            """(slider, [value, release]) => {
                slider.value = value;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
                if (release) slider.dispatchEvent(new Event("change", { bubbles: true }));
            }""",
            [value, release],
        )

    def check(self, name: str) -> None:
        """Tick or clear a check box."""
        self.tab.get_by_label(name).click()

    def click(self, name: str) -> None:
        self.tab.get_by_role("button", name=name).first.click()

    @property
    def status(self) -> str:
        """The indicator: "Saved", "Saving…" or "Not saved"."""
        return str(self.tab.locator(".save").inner_text())

    def wait_until_saved(self) -> None:
        self.tab.wait_for_selector(".save.is-saved")

    # What is on disk

    def saved(self, image_id: str) -> ReviewEvent:
        """The last change in the log."""
        return self.server.review.history(image_id)[-1]

    def saved_mask(self, image_id: str) -> np.ndarray:
        return self.server.review.read_mask(image_id)

    def run_mask(self, image_id: str) -> np.ndarray:
        session = self.server.session
        return session.masks.read(session.images[image_key(image_id)], "run")[1]
