"""Places where shards can be: a folder, fsspec's file system in memory, and a local S3 server."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

KINDS = ("folder", "memory", "s3")

MakeStorage = Callable[[str], str]
"""Returns an empty place of a kind: the path of a folder, or a URL."""


@pytest.fixture(scope="session")
def _s3_environment() -> Iterator[dict[str, str]]:
    """Run a local S3 server with the bucket "bucket"; returns the environment variables by which s3fs finds it."""
    server_module = pytest.importorskip("moto.server", reason="moto is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    fsspec.filesystem("s3", endpoint_url=url, key="test", secret="test").mkdir("bucket")
    yield {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    server.stop()


@pytest.fixture
def make_storage(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MakeStorage:
    def make(kind: str) -> str:
        name = uuid.uuid4().hex
        if kind == "s3":
            for key, value in request.getfixturevalue("_s3_environment").items():
                monkeypatch.setenv(key, value)
        return {"folder": str(tmp_path / name), "memory": f"memory://{name}", "s3": f"s3://bucket/{name}"}[kind]

    return make


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system and the path of a URL or folder."""
    return fsspec.core.url_to_fs(url)


def contents(url: str) -> dict[str, bytes]:
    """Return the files in a place by their names."""
    system, path = file_system(url)
    system.invalidate_cache()
    return {name.rpartition("/")[2]: system.cat_file(name) for name in sorted(system.find(path))}
