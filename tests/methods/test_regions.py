"""Test the method `regions`: masks that follow the regions of an image."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tagmask.data.samples import TaggedImages
from tagmask.data.transforms import normalize_images
from tagmask.errors import DataError
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods.cam import Cam
from tagmask.methods.irn import Irn
from tagmask.methods.regions import Regions
from tagmask.models.boundary_network import BoundaryNetwork, predict_boundaries
from tagmask.recipe import Recipe
from tagmask.refine.map_cutting import cut_maps, refine_labels
from tagmask.refine.regions import boundary_regions, felzenszwalb_regions, vote
from tests.methods.contract import MakeContext, MethodContract


class TestRegions(MethodContract):
    method = Regions
    settings: ClassVar = {"region_sizes": [20], "crf": {"steps": 2}}
    trains = False


class TestRegionsWithoutCrf(MethodContract):
    method = Regions
    settings: ClassVar = {"source": "slic", "region_sizes": [20, 60], "refine": "none", "threshold": 0.3}
    trains = False


class TestRegionsOfBoundaries(MethodContract):
    """Masks of an earlier stage take the regions of two sources."""

    method = Regions
    settings: ClassVar = {"vote_on": "masks", "source": ["felzenszwalb", "boundaries"], "region_sizes": [20]}
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


def test_a_vote_on_masks_with_regions_of_boundaries(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context = make_context(masks=earlier_stages["masks"], boundary=earlier_stages["boundary"])
    Regions(vote_on="masks", source="boundaries", boundary_depth=0.01).run(context)  # type: ignore[arg-type]
    network = BoundaryNetwork.load(earlier_stages["boundary"])
    changed = 0
    for sample in context.images.samples:
        image = torch.from_numpy(sample.read_image()).permute(2, 0, 1)[None]
        with torch.inference_mode():
            views = normalize_images(image, network.backbone.mean, network.backbone.std)
            boundary = predict_boundaries(network, views)[0][0].numpy()
        old = context.inputs["masks"].read_mask(sample.id)
        expected = vote(old, boundary_regions(boundary, (40, 48), 0.01)) if sample.tags else old
        got = context.folder.read_mask(sample.id)
        assert (got != expected).mean() < 0.01  # batches round the boundaries differently
        changed += (got != old).sum()
    assert changed > 50
    assert not context.folder.threshold_path.exists()


def test_the_crf_after_a_vote_on_masks(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context = make_context(masks=earlier_stages["masks"])
    method = Regions(vote_on="masks", refine="after", region_sizes=(20,))
    method.run(context)
    sample = next(sample for sample in context.images.samples if sample.tags)
    voted = vote(context.inputs["masks"].read_mask(sample.id), felzenszwalb_regions(sample.read_image(), [20]))
    expected = refine_labels(sample.read_image(), voted, np.array(sample.tags), method.crf)
    np.testing.assert_array_equal(context.folder.read_mask(sample.id), expected)


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
    with pytest.raises(ValidationError, match="both sam and folder"):
        Regions(source=("sam", "folder"), folder=tmp_path)


def test_boundaries_come_from_an_earlier_stage() -> None:
    stages = {"cam": Cam(), "irn": Irn(), "regions": Regions(source=("boundaries",))}
    assert Recipe(stages=stages).stages["regions"].inputs == {"maps": "irn", "boundary": "irn"}
    with pytest.raises(ValidationError, match=r"needs a network of boundaries.* one of these methods: irn"):
        Recipe(stages={name: stages[name] for name in ("cam", "regions")})
    with pytest.raises(ValidationError, match="needs a network of boundaries"):
        Recipe(stages={**stages, "irn": Irn(boundaries="none")})
