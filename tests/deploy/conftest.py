"""A tiny trained network, and its ONNX file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tagmask.deploy.onnx_export import export_onnx
from tests.deploy.networks import CLASSES, make_network, write_stage


@pytest.fixture(scope="session")
def stage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished stage that has trained a network."""
    return write_stage(tmp_path_factory.mktemp("runs") / "segment", make_network("deeplabv2"))


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ONNX file of `make_network("deeplabv2")`, the network in `stage_folder`."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(make_network("deeplabv2"), path)
    assert len(CLASSES) == 3
    return path
