"""Make the pictures in guides/reviewing.md: open the review page of a run in Chromium, and work on it a little.

    python docs/review_screenshots.py RUN IMAGE [--out docs/guides]

RUN is a finished run, for example demo/run of `make demo`; it does not change. IMAGE is the id of the image that is
opened in the editor. It should have two tags.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from playwright.sync_api import sync_playwright

from tagmask.review.images import image_key

QUALITY = 82
PAUSE = 1500  # ms, for pictures to load and the CRF to run


@contextmanager
def review_server(run: Path) -> Iterator[str]:
    """Start `tagmask review` on a copy of a run; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(run, Path(folder) / "photos", ignore=shutil.ignore_patterns("review")))
        command = [sys.executable, "-m", "tagmask", "review", str(copy), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            [address] = re.findall(r"http://\S+", server.stdout.readline())
            try:
                yield address
            finally:
                server.terminate()


def save(page: Any, path: Path) -> None:
    """Save what the page shows as a WebP file."""
    page.wait_for_timeout(PAUSE)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(path, quality=QUALITY, method=6)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def review_some(page: Any) -> None:
    """Accept and reject a few images in the gallery."""
    page.wait_for_selector("text=computing the doubt", state="detached", timeout=600_000)
    page.wait_for_function("() => document.querySelectorAll('.tile img.is-loaded').length > 8")
    for key in ("ArrowRight", "a", "ArrowRight", "r", "ArrowRight", "a", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
        page.wait_for_timeout(PAUSE // 4)


def edit(page: Any, image: str) -> None:
    """Open an image, change its first threshold, and paint pixels that are not sure."""
    page.evaluate("(key) => { location.hash = `#/image/${key}`; }", image_key(image))
    page.wait_for_selector("canvas")
    page.wait_for_timeout(PAUSE)
    page.locator(".threshold input").first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(PAUSE)
    page.keyboard.press("u")
    for _ in range(4):
        page.keyboard.press("[")
    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.85
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y + 20, steps=12)
    page.mouse.up()
    page.keyboard.press("1")
    page.keyboard.press("b")


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("image")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "guides")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--dark", action="store_true", help="with the dark colors")
    arguments = parser.parse_args()
    with review_server(arguments.run) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        scheme: Literal["dark", "light"] = "dark" if arguments.dark else "light"
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.goto(address)
        review_some(page)
        save(page, arguments.out / "review-gallery.webp")
        edit(page, arguments.image)
        save(page, arguments.out / "review-editor.webp")
        page.keyboard.press("h")
        save(page, arguments.out / "review-map.webp")
        browser.close()


if __name__ == "__main__":
    main()
