"""Scenes with ignored pixels, written in every format; settings of hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from tagmask.data.samples import Sample
from tagmask.data.scenes import CLASSES, make_scene
from tagmask.label_map import IGNORE_INDEX, write_label_map
from tagmask.outputs.settings import ExportSettings
from tagmask.outputs.writer import write_masks_as
from tests.runs import reading

IDS = ("a", "sub/b", "sub/ünï & <c>", "empty")
Export = Callable[..., Path]
at_any_speed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a machine with other work


@pytest.fixture(scope="session")
def label_maps() -> dict[str, np.ndarray]:
    """Label maps of different sizes by image id; some have ignored pixels, the last one is background only."""
    maps = {image_id: make_scene(i, size=72 + 8 * i).mask[: 64 + i].copy() for i, image_id in enumerate(IDS)}
    maps["a"][10:20, 5:30] = maps["sub/b"][:, -3:] = IGNORE_INDEX
    maps["empty"][:] = 0
    return maps


@pytest.fixture
def export(tmp_path: Path, label_maps: dict[str, np.ndarray]) -> Export:
    """Write the label maps in a format: (format, settings) → folder."""
    samples = []
    for i, (image_id, labels) in enumerate(label_maps.items()):
        image = tmp_path / "images" / f"{image_id}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_scene(i, size=72 + 8 * i).image[: labels.shape[0]]).save(image)
        write_label_map(tmp_path / "label_maps" / f"{image_id}.png", labels)
        samples.append(Sample(image_id, str(image), ()))

    def write(format: str, **settings: Any) -> Path:
        return write_masks_as(
            samples, reading(lambda image_id: tmp_path / "label_maps" / f"{image_id}.png"), CLASSES, tmp_path / "out",
            format, ExportSettings(**settings),
        )  # fmt: skip

    return write
