"""Test the method `regions`: masks that follow the regions of an image."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods.regions import Regions
from tagmask.refine.map_cutting import cut_maps, refine_labels
from tagmask.refine.regions import vote
from tests.methods.contract import MakeContext, MethodContract


class TestRegions(MethodContract):
    method = Regions
    settings: ClassVar = {"region_sizes": [20], "crf": {"steps": 2}}
    trains = False


class TestRegionsWithoutCrf(MethodContract):
    method = Regions
    settings: ClassVar = {"source": "slic", "region_sizes": [20, 60], "refine": "none", "threshold": 0.3}
    trains = False


def write_regions(folder: Path, images: TaggedImages) -> None:
    """The ground truth as regions: perfect ones."""
    for sample in images.samples:
        assert sample.mask
        path = folder / f"{sample.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.mask.read() + np.uint16(1)).save(path)


def test_regions_of_a_folder(
    make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages, tmp_path: Path
) -> None:
    write_regions(tmp_path / "regions", toy_images)
    context = make_context(maps=earlier_stages["maps"])
    Regions(source="folder", folder=tmp_path / "regions", threshold=0.4, refine="none").run(context)
    for sample in toy_images.samples:
        assert sample.mask
        maps = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
        expected = vote(maps.label_map(0.4), sample.mask.read().astype(np.int32)[None] + 1)
        np.testing.assert_array_equal(read_label_map(context.folder.mask_path(sample.id)), expected)


@pytest.mark.parametrize("refine", ["before", "after"])
def test_the_crf_comes_before_or_after_the_vote(
    refine: str, make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages
) -> None:
    context = make_context(maps=earlier_stages["maps"])
    method = Regions(threshold=0.4, refine=refine, region_sizes=(20,))  # type: ignore[arg-type]
    sample = toy_images.samples[0]
    image, maps = sample.read_image(), ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
    got = method.label_map(sample, image, maps, 0.4)
    if refine == "before":
        expected = vote(cut_maps(image, maps, 0.4, method.crf), method.regions(sample, image))
    else:
        voted = vote(maps.label_map(0.4), method.regions(sample, image))
        expected = refine_labels(image, voted, maps.classes, method.crf)
        assert not np.array_equal(expected, voted)
    np.testing.assert_array_equal(got, expected)


def test_a_missing_file_is_an_error(make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "regions").mkdir()
    context = make_context(maps=earlier_stages["maps"])
    with pytest.raises(DataError, match="has no regions of"):
        Regions(source="folder", folder=tmp_path / "regions").run(context)


def test_folder_and_source_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="source folder needs folder"):
        Regions(source="folder")
    with pytest.raises(ValidationError, match="source folder needs folder"):
        Regions(folder=tmp_path)
