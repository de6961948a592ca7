"""A run with known maps and masks, and a browser that has opened its review page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import tagmask
from tagmask.artifacts import write_text
from tagmask.data.source import DataSource
from tagmask.review.app import create_app
from tagmask.review.images import image_key
from tagmask.review.security import Access
from tagmask.review.session import ReviewSession
from tagmask.run_folder import RunSources
from tests.report.fake_run import FakeRun
from tests.runs import write_toy

METHODS = {"cam": "cam", "pseudo_masks": "pseudo_masks", "segment": "segment"}
MAP_COLUMNS, MASK_COLUMNS = {"cam": 4}, {"pseudo_masks": 11, "segment": 13}
PORT = 4711
ORIGIN = f"http://127.0.0.1:{PORT}"
WRITE = {"X-Tagmask": "1", "Origin": ORIGIN}


def write_run(folder: Path, data: Path) -> Path:
    """Write a finished run on the data of `write_toy`: eight images of 48×40 pixels, classes blue, green, red."""
    source = DataSource(root=str(data), masks="masks")
    run = FakeRun(folder, source.read(), METHODS, MAP_COLUMNS, MASK_COLUMNS, {"pseudo_masks": {"threshold": 0.4}})
    run.folder.write_record(RunSources(images=source), run.images.classes)
    write_text(run.folder.recipe_path, run.recipe.to_yaml())
    return folder


@pytest.fixture
def data(tmp_path: Path, template: Path) -> Path:
    return Path(shutil.copytree(template / "data", tmp_path / "data"))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and the run that each test gets a copy of."""
    folder = tmp_path_factory.mktemp("template")
    write_run(folder / "run", write_toy(folder / "data"))
    return folder


@pytest.fixture
def folder(tmp_path: Path, data: Path, template: Path) -> Path:
    folder = Path(shutil.copytree(template / "run", tmp_path / "run"))
    record = folder / "run.json"
    record.write_text(record.read_text().replace(str(template), str(tmp_path)))
    return folder


@pytest.fixture
def session(folder: Path) -> ReviewSession:
    return ReviewSession(tagmask.load(folder, device="cpu"))


@pytest.fixture
def access(session: ReviewSession) -> Access:
    return Access(PORT, session.max_mask_bytes + 65_536)


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """A page that consists of two files."""
    write_text(tmp_path / "static" / "index.html", "<!doctype html><script src=/static/app/main.js></script>")
    write_text(tmp_path / "static" / "app" / "main.js", "export {};\n")
    return tmp_path / "static"


@pytest.fixture
def open_client(session: ReviewSession, access: Access, static: Path) -> Callable[..., TestClient]:
    """Return a function that makes a client without a cookie."""
    app = create_app(session, access, static)
    return lambda **options: TestClient(app, base_url=ORIGIN, follow_redirects=False, **options)


@pytest.fixture
def client(open_client: Callable[..., TestClient], access: Access) -> TestClient:
    """A client that has opened the address with the token."""
    client = open_client()
    assert client.get("/", params={"token": access.token}).status_code == 303
    return client


class Tab:
    """A tab that shows one image.

    Args:
        client: the browser.
        image_id: id of the image.
    """

    def __init__(self, client: TestClient, image_id: str) -> None:
        self.client, self.url = client, f"/api/images/{image_key(image_id)}"

    def get(self, what: str = "", **parameters: Any) -> Any:
        return self.client.get(self.url + what, params=parameters)

    def post(self, what: str, **content: Any) -> Any:
        return self.client.post(self.url + what, json=content, headers=WRITE)

    def put_mask(
        self, labels: np.ndarray, base: int, state: str = "draft", painted: np.ndarray | None = None, **headers: str
    ) -> Any:
        content, options = labels.astype(np.uint8).tobytes(), {"state": state, "base": base}
        if painted is not None:
            content += painted.astype(np.uint8).tobytes()
        return self.client.put(f"{self.url}/mask", content=content, params=options, headers={**WRITE, **headers})

    def mask(self, of: str = "current") -> np.ndarray:
        return np.frombuffer(self.get("/mask", of=of).content, np.uint8).reshape(40, 48)


@pytest.fixture
def tab(client: TestClient) -> Tab:
    """A tab that shows image 3, whose tags are red and green."""
    return Tab(client, "3")
