"""Test the source `sam` of the method `regions`, with tiny randomly initialized models."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from tagmask.compute import Compute
from tagmask.data.region_files import read_regions
from tagmask.data.samples import PngMask, ReviewedMask, TaggedImages
from tagmask.errors import RecipeError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods.regions import Regions
from tagmask.models.region_generator import RegionGenerator
from tagmask.refine.regions import layers_of_masks, vote
from tagmask.stage_files import discard_damaged_files
from tests.methods.contract import MakeContext, MethodContract

transformers = pytest.importorskip("transformers")
from tests.methods.tiny_sam import write_sam, write_sam2  # noqa: E402

OFFLINE = "huggingface_hub.constants.HF_HUB_OFFLINE"


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam2(tmp_path_factory.mktemp("sam2"))


class TestRegionsOfSam(MethodContract):
    method = Regions
    trains = False
    settings: ClassVar[dict[str, Any]] = {"source": "sam", "points_per_side": 2, "refine": "none", "threshold": 0.3}

    @pytest.fixture(autouse=True)
    def _model(self, sam2: Path) -> None:
        type(self).settings = {**self.settings, "sam": str(sam2)}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)


@pytest.mark.parametrize("write", [write_sam, write_sam2])
def test_the_regions_are_the_masks_of_the_pipeline(
    write: Callable[[Path], Path], tmp_path: Path, image: np.ndarray
) -> None:
    folder = str(write(tmp_path))
    generate = RegionGenerator(folder, points_per_side=4, points_per_batch=5, device=torch.device("cpu"))
    generate.options["crops_nms_thresh"] = 1.0  # random masks have the whole image as their box
    regions = generate(image)
    pipeline: Any = transformers.pipeline("mask-generation", model=folder, device="cpu")
    expected = pipeline(Image.fromarray(image), points_per_crop=4, crops_nms_thresh=1.0)["masks"]
    expected = [np.asarray(mask) for mask in expected]
    assert len(expected) > 5
    assert regions.shape[1:] == image.shape[:2]
    np.testing.assert_array_equal(regions, layers_of_masks(expected, image.shape[:2]))
    got = [layer == number for layer in regions for number in range(1, layer.max() + 1)]
    assert {mask.tobytes() for mask in got} == {mask.tobytes() for mask in expected if mask.any()}


def test_files_are_kept_and_the_vote_reads_them(
    make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages, sam2: Path
) -> None:
    """Images without tags and reviewed ones need no regions; a run with another threshold can read the files."""
    reviewed = replace(
        toy_images.samples[0], reviewed=ReviewedMask(PngMask(earlier_stages["masks"] / "masks/0.png"), "digest")
    )
    images = replace(toy_images, samples=(reviewed, *toy_images.samples[1:]))
    context = make_context(maps=earlier_stages["maps"], images=images)
    write_label_map(context.folder.mask_path("0"), reviewed.read_reviewed_labels((40, 48)))  # as the pipeline does
    Regions(source="sam", sam=str(sam2), points_per_side=4, refine="none", threshold=0.3).run(context)
    folder = context.folder.path / "regions"
    expected = {sample.id for sample in images.samples[1:] if sample.tags}
    assert {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.png")} == expected
    generate = RegionGenerator(str(sam2), 4, 64, torch.device("cpu"))
    other = make_context("other", maps=earlier_stages["maps"], images=images.select(lambda s: s.id in expected))
    Regions(source="folder", folder=folder, refine="none", threshold=0.5).run(other)
    for sample in other.images.samples:
        regions = read_regions(folder, sample.id, sample.size or (0, 0))
        np.testing.assert_array_equal(regions, generate(sample.read_image()))
        maps = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
        for stage, threshold in ((context, 0.3), (other, 0.5)):
            labels = read_label_map(stage.folder.mask_path(sample.id))
            np.testing.assert_array_equal(labels, vote(maps.label_map(threshold), regions))


def test_a_large_image_is_reduced(
    make_context: MakeContext, toy_images: TaggedImages, sam2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagmask.large_images.MAX_PIXELS", 1000)
    sample = toy_images.samples[0]
    assert sample.size
    (tmp_path / "maps").mkdir()
    maps = np.ones((len(sample.tags or ()), *grid_size(sample.size)), np.float32)
    ResponseMaps(np.array(sample.tags), maps, sample.size).save(tmp_path / "maps" / f"{sample.id}.safetensors")
    context = make_context(maps=tmp_path, images=replace(toy_images, samples=(sample,)))
    Regions(source="sam", sam=str(sam2), points_per_side=4, refine="none", threshold=0.5).run(context)
    with Image.open(context.folder.path / "regions" / f"{sample.id}.png") as file:
        height, width = sample.read_reduced_image().shape[:2]
        assert height * width <= 1000
        assert file.width == width
        assert file.height % height == 0
    assert read_label_map(context.folder.mask_path(sample.id)).shape == sample.size


def test_two_processes_share_the_images(
    make_context: MakeContext, earlier_stages: dict[str, Path], sam2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they write the files of one process; the second finds the regions of the first."""
    method = Regions(source="sam", sam=str(sam2), points_per_side=4, refine="none", threshold=0.3)
    alone = make_context("alone", maps=earlier_stages["maps"])
    method.run(alone)
    monkeypatch.setattr(Compute, "barrier", lambda self: None)
    monkeypatch.setattr(Regions, "_write_mask", lambda *arguments, **settings: None)
    both = make_context("both", maps=earlier_stages["maps"])
    counts = []
    for rank in (0, 1):
        method.run(replace(both, compute=Compute(rank=rank, world_size=2)))
        counts.append(len(list((both.folder.path / "regions").rglob("*.png"))))
    files = sorted((alone.folder.path / "regions").rglob("*.png"))
    assert counts == [-(-len(files) // 2), len(files)]
    for file in files:
        assert (both.folder.path / file.relative_to(alone.folder.path)).read_bytes() == file.read_bytes()


def test_a_damaged_file_is_removed(
    make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages, sam2: Path
) -> None:
    context = make_context(maps=earlier_stages["maps"])
    assert context.folder.begin({}, context.compute)
    Regions(source="sam", sam=str(sam2), points_per_side=4, refine="none").run(context)
    file = min((context.folder.path / "regions").rglob("*.png"))
    file.write_bytes(file.read_bytes()[:40])
    assert discard_damaged_files(context.folder, ["masks"], toy_images, context.reporter.progress) == [file]
    assert not file.exists()


def test_the_license_of_other_weights_is_said_and_written(
    make_context: MakeContext, earlier_stages: dict[str, Path], sam2: Path, tmp_path: Path
) -> None:
    """Only a README names a license here."""
    for text, is_said in (("apache-2.0", False), ("cc-by-nc-4.0", True)):
        (sam2 / "README.md").write_text(f"---\nlicense: {text}\n---\n")
        context = make_context(text, maps=earlier_stages["maps"])
        Regions(source="sam", sam=str(sam2), points_per_side=1, refine="none").run(context)
        file = context.folder.path / "weights-license.txt"
        assert file.exists() == is_said
        assert not is_said or "are under the license 'cc-by-nc-4.0'" in file.read_text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "facebook/no-such-sam",
            r"the model 'facebook/no-such-sam' could not be loaded \(.*\); connect to the network",
        ),
        ("no/such/folder", r"sam 'no/such/folder' is neither a folder nor a name on the Hugging Face Hub"),
        (".", r"the model '.' could not be loaded"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_sentence(
    name: str,
    sentence: str,
    make_context: MakeContext,
    earlier_stages: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OFFLINE, True)
    monkeypatch.chdir(tmp_path)
    context = make_context(maps=earlier_stages["maps"])
    with pytest.raises(RecipeError, match=sentence) as error:
        Regions(source="sam", sam=name).run(context)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_not_loaded(sam2: Path, tmp_path: Path) -> None:
    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((sam2 / file).read_bytes())
    torch.save(
        transformers.AutoModelForMaskGeneration.from_pretrained(sam2).state_dict(), tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(RecipeError, match="could not be loaded"):
        RegionGenerator(str(tmp_path), 4, 64, torch.device("cpu"))


def test_transformers_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RecipeError, match=r'needs transformers: pip install "tagmask\[sam\]"'):
        RegionGenerator("facebook/sam2.1-hiera-small", 4, 64, torch.device("cpu"))
