"""A run's masks, exported, corrected and imported again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagmask.corrections.known_images import KnownImages
from tagmask.data.samples import Sample
from tagmask.import_masks import ImportedMasks, import_masks
from tagmask.label_map import IGNORE_INDEX, read_label_map, write_label_map
from tagmask.outputs.settings import ExportSettings
from tagmask.outputs.writer import write_masks_as
from tagmask.review_folder import ReviewFolder
from tests.runs import reading

CLASSES = ("cat", "dog & <b>")
LabelMaps = dict[str, np.ndarray]
Import = Callable[..., ImportedMasks]


@pytest.fixture
def label_maps() -> LabelMaps:
    """Label maps of three images; the first two have ignored pixels."""
    rng = np.random.default_rng(0)
    maps = {image_id: np.zeros((18 + i, 25), np.uint8) for i, image_id in enumerate(("a", "sub/ü b", "empty"))}
    maps["a"][3:12, 4:20], maps["a"][8:15, 10:22], maps["a"][12, 5] = 1, 2, 1
    maps["a"][0:2], maps["sub/ü b"][:] = IGNORE_INDEX, rng.choice([0, 1, 2, IGNORE_INDEX], (19, 25))
    return maps


@pytest.fixture
def samples() -> list[Sample]:
    return [Sample("a", "/photos/a.jpg", (1, 2)), Sample("sub/ü b", "/photos/sub/ü b.png", (1, 2)),
            Sample("empty", "/photos/empty.jpg", ())]  # fmt: skip


@pytest.fixture
def mask_path(tmp_path: Path, label_maps: LabelMaps) -> Callable[[str], Path]:
    for image_id, labels in label_maps.items():
        write_label_map(tmp_path / "run" / f"{image_id}.png", labels)
    return lambda image_id: tmp_path / "run" / f"{image_id}.png"


@pytest.fixture
def export(tmp_path: Path, samples: list[Sample], mask_path: Callable[[str], Path]) -> Callable[..., Path]:
    def write(format: str, **settings: Any) -> Path:
        return write_masks_as(
            samples, reading(mask_path), CLASSES, tmp_path / "out", format, ExportSettings(**settings)
        )

    return write


@pytest.fixture
def review(tmp_path: Path) -> ReviewFolder:
    return ReviewFolder(tmp_path / "review")


@pytest.fixture
def import_(review: ReviewFolder, samples: list[Sample], mask_path: Callable[[str], Path]) -> Import:
    def read(path: Path, format: str, **options: Any) -> ImportedMasks:
        known = KnownImages(samples, CLASSES, lambda image_id: read_label_map(mask_path(image_id)))
        return import_masks(review, path, format, known, **options)

    return read
