"""Tests of label maps: the palette, files, boundaries."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

import tagmask.label_map
from tagmask.errors import RunError
from tagmask.label_map import label_boundaries, read_label_map, voc_palette, write_label_map


def test_the_palette_is_that_of_voc() -> None:
    palette = np.reshape(voc_palette(), (256, 3)).tolist()
    # from VOClabelcolormap in the VOC devkit: background, aeroplane, bicycle, bird, person, tvmonitor, void
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert all(tuple(palette[i]) == color for i, color in known.items())
    assert palette[255] == [224, 224, 192]
    assert len({tuple(color) for color in palette}) == 256


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(labels=arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=30)))
def test_label_maps_read_back_unchanged(tmp_path: Path, labels: np.ndarray) -> None:
    path = tmp_path / "labels.png"
    write_label_map(path, labels)
    np.testing.assert_array_equal(read_label_map(path), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        colors = np.array(image.convert("RGB")).reshape(-1, 3)
    np.testing.assert_array_equal(colors, np.reshape(voc_palette(), (256, 3))[labels.ravel()])


def test_grayscale_files_are_label_maps_and_other_files_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(tmp_path / "gray.png")
    assert read_label_map(tmp_path / "gray.png").tolist() == [[7] * 3] * 2
    Image.new("RGB", (3, 2)).save(tmp_path / "rgb.png")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "gray.png").read_bytes()[:50])
    for name, reason in {
        "rgb": "is an image of mode RGB, not a label map",
        "text": "cannot be read as an image",
        "cut": "cannot be read as an image",
        "none": "does not exist",
    }.items():
        with pytest.raises(RunError, match=reason):
            read_label_map(tmp_path / f"{name}.png")


def test_label_boundaries_by_hand() -> None:
    labels = np.array([[0, 0, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    assert label_boundaries(labels).astype(int).tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    valid = np.ones(labels.shape, bool)
    valid[1, 3] = False
    assert label_boundaries(labels, valid).astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert not label_boundaries(np.zeros((1, 1), np.uint8)).any()


def test_importing_does_not_import_torch() -> None:
    code = "import sys, tagmask.label_map; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_examples_in_docstrings() -> None:
    result = doctest.testmod(tagmask.label_map)
    assert result.attempted
    assert not result.failed
