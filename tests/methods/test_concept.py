"""Test the method `concept` with a tiny randomly initialized SAM 3."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tagmask.compute import Compute
from tagmask.data.samples import PngMask, ReviewedMask, TaggedImages
from tagmask.errors import RecipeError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods.concept import Concept
from tagmask.models.concept_finder import ConceptFinder
from tagmask.pipeline import check_stages
from tagmask.recipe import Recipe
from tagmask.refine.concepts import Instance, apply_instances, instances_that_pass
from tagmask.run_folder import RunFolder
from tests.methods.contract import MakeContext, MethodContract

transformers = pytest.importorskip("transformers")
from tests.methods.tiny_sam import write_sam2, write_sam3  # noqa: E402

CPU = torch.device("cpu")
OFFLINE = "huggingface_hub.constants.HF_HUB_OFFLINE"


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sam3(tmp_path_factory.mktemp("sam3"))


class TestConcept(MethodContract):
    method = Concept
    trains = False
    settings: ClassVar[dict[str, Any]] = {"classes": ("red", "blue"), "min_score": 0.3}

    @pytest.fixture(autouse=True)
    def _model(self, sam3: Path) -> None:
        type(self).settings = {**self.settings, "sam": str(sam3)}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.kron(np.random.default_rng(2).integers(0, 256, (5, 6, 3)), np.ones((8, 9, 1))).astype(np.uint8)


@cache
def load_sam3(folder: Path) -> tuple[Any, Any]:
    model, processor = transformers.Sam3Model, transformers.Sam3Processor
    return model.from_pretrained(folder).eval(), processor.from_pretrained(folder)


def instances_by_hand(folder: Path, image: np.ndarray, words: str) -> list[tuple[float, np.ndarray]]:
    """Return the score and the mask of all queries: the logits of one call, the formula, and a bilinear enlargement."""
    model, processor = load_sam3(folder)
    with torch.inference_mode():
        output = model(**processor(images=Image.fromarray(image), text=words, return_tensors="pt"))
    logits, presence = (np.asarray(t[0], np.float64) for t in (output.pred_logits, output.presence_logits))
    scores = 1 / (1 + np.exp(-logits)) / (1 + np.exp(-presence))
    masks = F.interpolate(output.pred_masks.sigmoid(), image.shape[:2], mode="bilinear")[0] > 0.5
    return list(zip(scores.tolist(), masks.numpy(), strict=True))


def test_the_instances_have_the_scores_and_masks_of_the_logits(sam3: Path, image: np.ndarray) -> None:
    prompts, min_score = {1: "a red fox", 2: "green"}, 0.2
    found = ConceptFinder(str(sam3), prompts, min_score, CPU)(image, [2, 1])
    expected = [(c, *pair) for c in (2, 1) for pair in instances_by_hand(sam3, image, prompts[c])]
    assert 2 <= len(found) < len(expected) == 10
    expected = [entry for entry in expected if entry[1] > min_score]
    for instance, (class_id, score, mask) in zip(found, expected, strict=True):
        assert instance.class_id == class_id
        assert instance.score == pytest.approx(score, abs=1e-5)
        assert instance.mask.dtype == bool
        assert mask.any()
        np.testing.assert_array_equal(instance.mask, mask)


def test_a_checkpoint_for_videos_contains_the_same_model(sam3: Path, image: np.ndarray, tmp_path: Path) -> None:
    """facebook/sam3 has this layout: the model for images is the detector."""
    for file in sam3.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = {"model_type": "sam3_video", "detector_config": json.loads((sam3 / "config.json").read_text())}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {f"detector_model.{name}": value for name, value in load_file(sam3 / "model.safetensors").items()}
    weights["tracker_model.no_memory_embedding"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    found, expected = (ConceptFinder(str(folder), {1: "red"}, 0.2, CPU)(image, [1]) for folder in (tmp_path, sam3))
    assert expected
    for one, other in zip(found, expected, strict=True):
        assert one.score == other.score
        np.testing.assert_array_equal(one.mask, other.mask)


def test_the_masks_follow_the_rule(
    make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages, sam3: Path
) -> None:
    """Red and blue are asked for, blue by other words; images without them, and reviewed ones, need no SAM 3."""
    reviewed = replace(
        toy_images.samples[0], reviewed=ReviewedMask(PngMask(earlier_stages["masks"] / "masks/0.png"), "digest")
    )
    images = replace(toy_images, samples=(reviewed, *toy_images.samples[1:]))
    context = make_context(maps=earlier_stages["maps"], masks=earlier_stages["masks"], images=images)
    write_label_map(context.folder.mask_path("0"), np.full((40, 48), 255, np.uint8))  # as the pipeline does
    Concept(classes=("red", "blue"), prompts={"blue": "sea"}, min_score=0.3, sam=str(sam3)).run(context)
    assert (read_label_map(context.folder.mask_path("0")) == 255).all()
    num_found = num_counting = num_changed = 0
    for sample in images.samples[1:]:
        old = read_label_map(context.inputs["masks"].mask_path(sample.id))
        maps = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
        found = [
            Instance(class_id, score, mask)
            for class_id, words in ((1, "red"), (3, "sea"))
            if class_id in (sample.tags or ())
            for score, mask in instances_by_hand(sam3, sample.read_image(), words)
            if score > 0.3
        ]
        counting = instances_that_pass(found, maps)
        labels = read_label_map(context.folder.mask_path(sample.id))
        np.testing.assert_array_equal(labels, apply_instances(old, counting))
        num_found += len(found)
        num_counting += len(counting)
        num_changed += bool((labels != old).any())
    assert 0 < num_counting < num_found
    assert num_changed > 2


def test_images_without_these_tags_need_no_model(
    make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages
) -> None:
    images = toy_images.select(lambda sample: 1 not in (sample.tags or ()))
    context = make_context(maps=earlier_stages["maps"], masks=earlier_stages["masks"], images=images)
    Concept(classes=("red",), sam="no/such/folder").run(context)
    assert len(images) == 5
    for sample in images.samples:
        old = context.inputs["masks"].mask_path(sample.id)
        assert context.folder.mask_path(sample.id).read_bytes() == old.read_bytes()
    assert not (context.folder.path / "weights-license.txt").exists()


def test_a_large_image_is_reduced(
    make_context: MakeContext, toy_images: TaggedImages, sam3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagmask.large_images.MAX_PIXELS", 1000)
    sample = toy_images.samples[2]
    assert sample.size
    maps = ResponseMaps(np.array([3]), np.ones((1, *grid_size(sample.size)), np.float32), sample.size)
    maps.save(tmp_path / "maps" / f"{sample.id}.safetensors")
    old = np.full(sample.size, 3, np.uint8)
    write_label_map(tmp_path / "masks" / f"{sample.id}.png", old)
    context = make_context(maps=tmp_path, masks=tmp_path, images=replace(toy_images, samples=(sample,)))
    Concept(classes=("blue",), min_score=0.2, sam=str(sam3)).run(context)
    image = sample.read_reduced_image()
    assert image.shape[0] * image.shape[1] <= 1000
    found = [Instance(3, *pair) for pair in instances_by_hand(sam3, image, "blue") if pair[0] > 0.2]
    labels = read_label_map(context.folder.mask_path(sample.id))
    np.testing.assert_array_equal(labels, apply_instances(old, found))
    assert 0 < (labels == 3).mean() < 1


def test_two_processes_share_the_images(
    make_context: MakeContext, earlier_stages: dict[str, Path], sam3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they write the files of one process; the license is written once."""
    method = Concept(classes=("green",), min_score=0.3, sam=str(sam3))
    inputs = {kind: earlier_stages[kind] for kind in ("maps", "masks")}
    alone, both = make_context("alone", **inputs), make_context("both", **inputs)
    method.run(alone)
    counts = []
    monkeypatch.setattr(Compute, "barrier", lambda self: None)
    for rank in (0, 1):
        method.run(replace(both, compute=Compute(rank=rank, world_size=2)))
        counts.append(len(list((both.folder.path / "masks").glob("*.png"))))
    assert counts == [4, 8]
    assert TestConcept.files(both) == TestConcept.files(alone)
    for file in TestConcept.files(alone):
        assert (both.folder.path / file).read_bytes() == (alone.folder.path / file).read_bytes()


def test_the_license_is_named_before_the_model_is_loaded(
    make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of SAM 3, whatever a README says."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    context = make_context(maps=earlier_stages["maps"], masks=earlier_stages["masks"])
    with pytest.raises(RecipeError, match="could not be loaded"):
        Concept(classes=("red",), sam=str(tmp_path)).run(context)
    text = (context.folder.path / "weights-license.txt").read_text()
    assert text.startswith(f"The weights of {tmp_path} are under the license 'SAM License'")


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (
            (),
            r"^the method concept has no classes: name those that SAM 3 is asked for, e\.g\. classes: \[red\]; choose "
            r"from red, green, blue\.$",
        ),
        (("red", "Blu"), r"^'Blu' in the classes of .* is not one of the classes .*: did you mean 'blue'\?$"),
        (("dog",), r"is not one of the classes of the images: choose from red, green, blue$"),
    ],
)
def test_classes_are_checked_before_the_run_begins(
    classes: tuple[str, ...],
    sentence: str,
    make_context: MakeContext,
    earlier_stages: dict[str, Path],
    toy_images: TaggedImages,
    tmp_path: Path,
) -> None:
    stages = {"cam": {}, "pseudo_masks": {}, "concept": {"classes": classes}}
    with pytest.raises(RecipeError, match=sentence):
        check_stages(Recipe.model_validate({"stages": stages}), toy_images, RunFolder(tmp_path / "run"))
    context = make_context(maps=earlier_stages["maps"], masks=earlier_stages["masks"])
    with pytest.raises(RecipeError, match=sentence):
        Concept(classes=classes).run(context)
    assert not context.folder.path.exists()


def test_prompts_replace_the_names_of_classes() -> None:
    method = Concept(classes=("green", "red"), prompts={"red": " a red square "})
    assert method.prompts_by_id(("red", "green", "blue")) == {1: "a red square", 2: "green"}
    with pytest.raises(ValidationError, match="prompts has 'blue', which is not in classes: add it there"):
        Concept(classes=("green",), prompts={"blue": "sea"})
    with pytest.raises(ValidationError, match="at least 1 character"):
        Concept(classes=("green",), prompts={"green": " "})


def test_a_prompt_that_is_too_long_is_one_sentence(sam3: Path) -> None:
    ConceptFinder(str(sam3), {1: "a" * 30}, 0.5, CPU)
    with pytest.raises(RecipeError, match=r"is too long for SAM 3 \(more than 32 tokens\); shorten it\.$"):
        ConceptFinder(str(sam3), {1: "a" * 31}, 0.5, CPU)


def test_another_model_is_refused(sam3: Path, tmp_path: Path) -> None:
    """transformers would load it as SAM 3 with random weights."""
    write_sam2(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (tmp_path / name).write_bytes((sam3 / name).read_bytes())
    with pytest.raises(RecipeError, match=r"is not SAM 3, but 'sam2'; give another as the setting sam\.$"):
        ConceptFinder(str(tmp_path), {1: "red"}, 0.5, CPU)


def test_a_model_that_cannot_be_downloaded_is_one_sentence(
    make_context: MakeContext, earlier_stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OFFLINE, True)
    context = make_context(maps=earlier_stages["maps"], masks=earlier_stages["masks"])
    with pytest.raises(RecipeError, match=r"the model 'facebook/sam3' could not be loaded \(.*\); connect") as error:
        Concept(classes=("red",)).run(context)
    assert "\n" not in str(error.value)
