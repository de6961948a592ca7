"""A browser, and a review server with a page of its own for each test."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import tagmask
from tagmask.review.app import create_app
from tagmask.review.security import Access
from tagmask.review.server import bind
from tagmask.review.session import ReviewSession
from tests.review.browser.review_page import ReviewPage
from tests.review.browser.small_run import write_small_run

IMAGES = [f"{kind}/{n:02}" for kind, count in (("extra", 4), ("pair", 12), ("solo", 6)) for n in range(count)]
VIEWPORT, TIMEOUT = {"width": 1280, "height": 800}, 20_000  # CSS pixels; ms
STATIC = Path(__file__).resolve().parents[3] / "src" / "tagmask" / "review" / "static"


class Server:
    """A review server in a thread.

    Args:
        folder: the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0
        self.start()

    def start(self) -> None:
        """Start with a new token, on the same port as before."""
        bound = bind("127.0.0.1", self.port)
        self.port = bound.getsockname()[1]
        run = tagmask.load(self.folder, device="cpu")
        self.session, self.review = ReviewSession(run), run.review
        self.access = Access(self.port, self.session.max_mask_bytes + 65_536)
        config = uvicorn.Config(create_app(self.session, self.access, STATIC), log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [bound]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    @property
    def url(self) -> str:
        return self.access.url("127.0.0.1")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, started once."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a run with `IMAGES`; each test changes images of its own."""
    server = Server(write_small_run(tmp_path_factory.mktemp("review"), IMAGES))
    yield server
    server.stop()


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    """A browser without cookies and stored data."""
    context = chromium.new_context(viewport=VIEWPORT)
    context.set_default_timeout(TIMEOUT)
    with contextlib.closing(context):
        yield context


@pytest.fixture
def new_page(context: Any, server: Server) -> Iterator[ReviewPage]:
    """The gallery, loaded again. A JavaScript error fails the test."""
    page = ReviewPage(context.new_page(), server)
    page.goto(server.url)
    yield page
    assert not page.errors


@pytest.fixture(scope="session")
def shared_page(chromium: Any, server: Server) -> ReviewPage:
    """A page that many tests use one after the other, because loading it takes longer than most of them."""
    page = ReviewPage(chromium.new_page(viewport=VIEWPORT), server)
    page.tab.set_default_timeout(TIMEOUT)
    page.goto(server.url)
    return page


@pytest.fixture
def page(shared_page: ReviewPage) -> Iterator[ReviewPage]:
    """The gallery with the settings of a new browser. A JavaScript error fails the test."""
    shared_page.reset()
    yield shared_page
    assert not shared_page.errors
