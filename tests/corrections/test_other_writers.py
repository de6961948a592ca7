"""Masks that another program has written, as a stand-in for the annotation tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.samples import Sample
from tagmask.outputs.settings import ExportSettings
from tagmask.outputs.writer import write_masks_as
from tagmask.review_folder import ReviewFolder
from tests.corrections.conftest import CLASSES, Import, LabelMaps
from tests.runs import reading


@pytest.mark.parametrize(("format", "name_in_datumaro"), [("cvat", "cvat"), ("coco", "coco_instances")])
def test_datumaro_reads_and_writes_the_masks(
    tmp_path: Path, import_: Import, review: ReviewFolder, label_maps: LabelMaps, samples: list[Sample],
    mask_path: Callable[[str], Path], format: str, name_in_datumaro: str,
) -> None:  # fmt: skip
    datumaro = pytest.importorskip("datumaro", reason="install tagmask[readers]")
    photos = []
    for sample in samples:
        photo = tmp_path / "photos" / f"{sample.id}{Path(sample.image).suffix}"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*label_maps[sample.id].shape, 3), np.uint8)).save(photo)
        photos.append(Sample(sample.id, str(photo), sample.tags))
    exported = write_masks_as(
        photos, reading(mask_path), CLASSES, tmp_path / "out", "cvat", ExportSettings(images="copy")
    )
    data = datumaro.Dataset.import_from(str(exported), "cvat")
    data.export(str(tmp_path / "written"), name_in_datumaro, save_media=False)
    imported = import_(tmp_path / "written", format)
    assert sorted(imported.accepted) == sorted(label_maps)
    for image_id, labels in label_maps.items():
        np.testing.assert_array_equal(review.read_mask(image_id), labels)
