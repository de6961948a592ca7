"""Methods that learn from pixels take reviewed masks as ground truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision.transforms import v2

from tagmask import large_images
from tagmask.data.loading import TrainingSet
from tagmask.data.samples import PngMask, ReviewedMask, TaggedImages
from tagmask.label_map import write_label_map
from tagmask.large_images import reduced_size
from tagmask.methods._class_balance import label_shares
from tagmask.methods._seeds import make_seeds
from tagmask.methods.activation_aware import COMPLETION, write_missing_saliency_targets
from tagmask.methods.amn import Amn
from tagmask.methods.irn import Irn
from tagmask.methods.segment import PseudoMaskTargets, Segment
from tagmask.refine.settings import SeedSettings
from tagmask.stage_folder import StageFolder
from tests.methods.contract import MakeContext, MethodContract
from tests.methods.test_segment import TOY

SEEDS = SeedSettings(fg=0.3, bg=0.05, crf=None)
REVIEWED, REJECTED, PLAIN = "3", "4", "6"


def drawn() -> np.ndarray:
    """Return a label map [40, 48] that nothing but a person has made."""
    labels = np.zeros((40, 48), np.uint8)
    labels[5:15, 5:30], labels[20:30], labels[35:] = 1, 2, 255
    return labels


@pytest.fixture
def images(toy_images: TaggedImages, tmp_path: Path) -> TaggedImages:
    """Return the toy images, of which one has a reviewed mask and one was rejected."""
    write_label_map(tmp_path / "drawn.png", drawn())
    reviews = {REVIEWED: ReviewedMask(PngMask(tmp_path / "drawn.png")), REJECTED: ReviewedMask(None)}
    return replace(
        toy_images, samples=tuple(replace(sample, reviewed=reviews.get(sample.id)) for sample in toy_images.samples)
    )


def by_id(images: TaggedImages, image_id: str) -> int:
    return [sample.id for sample in images.samples].index(image_id)


def test_a_training_set_has_the_reviewed_labels(
    images: TaggedImages, earlier_stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = PseudoMaskTargets(StageFolder(earlier_stages["masks"]))
    data = TrainingSet(images, v2.Identity(), 0, targets)

    def labels(image_id: str) -> np.ndarray:
        return data[0, by_id(images, image_id)]["labels"].numpy()  # type: ignore[no-any-return]

    np.testing.assert_array_equal(labels(REVIEWED), drawn())
    assert (labels(REJECTED) == 255).all()
    np.testing.assert_array_equal(labels(PLAIN), targets(images.samples[by_id(images, PLAIN)])["labels"])

    monkeypatch.setattr(large_images, "MAX_PIXELS", 500)  # the images are large now
    small = reduced_size((40, 48))
    seeds = {"labels": np.zeros(small, np.uint8), "other": np.ones(small, np.uint8)}
    data = TrainingSet(images, v2.Identity(), 0, lambda sample: seeds)
    assert labels(REVIEWED).shape == small
    assert set(np.unique(labels(REVIEWED))) == {0, 1, 2, 255}
    assert (data[0, by_id(images, REVIEWED)]["other"] == 1).all()
    assert not labels(PLAIN).any()


def test_a_method_without_labels_is_left_alone(images: TaggedImages) -> None:
    assert set(TrainingSet(images, v2.Identity(), 0)[0, by_id(images, REVIEWED)]) == {"image", "tags"}


def test_the_network_learns_as_if_the_reviewed_masks_were_its_pseudo_masks(
    toy_images: TaggedImages, make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path
) -> None:
    """The weights are the same to the last bit, also with `class_balance`, which counts labels."""
    truth = StageFolder(tmp_path / "truth")
    samples = []
    for sample in toy_images.samples:
        assert sample.mask is not None
        write_label_map(truth.mask_path(sample.id), sample.mask.read())
        samples.append(replace(sample, reviewed=ReviewedMask(PngMask(truth.mask_path(sample.id)))))
    method, classifier = Segment(**{**TOY, "class_balance": 0.5}), earlier_stages["classifier"]
    expected = make_context("expected", masks=truth.path, classifier=classifier)
    reviewed = make_context(
        "reviewed", images=replace(toy_images, samples=tuple(samples)), masks=earlier_stages["masks"],
        classifier=classifier,
    )  # fmt: skip
    for context in (expected, reviewed):
        method.train(context)
    assert MethodContract.is_same(expected.folder.path, reviewed.folder.path)


def test_the_shares_of_labels(images: TaggedImages, make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    only = images.select(lambda sample: sample.id in (REVIEWED, REJECTED))
    counts = np.bincount(drawn().ravel(), minlength=256)[:4]
    shares = label_shares(make_context(images=only, masks=earlier_stages["masks"]), 4)
    np.testing.assert_allclose(shares, counts / counts.sum())


def test_seeds_are_the_reviewed_mask(
    images: TaggedImages, make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages
) -> None:
    """A rejected image keeps automatic seeds, which nothing is learned from, to make its new maps."""
    seeds = make_seeds(SEEDS, make_context("seeds", images=images, maps=earlier_stages["maps"]))
    automatic = make_seeds(SEEDS, make_context("automatic", maps=earlier_stages["maps"]))
    np.testing.assert_array_equal(seeds.stage.read_label_map("seeds", REVIEWED), drawn())
    assert not np.array_equal(automatic.stage.read_label_map("seeds", REVIEWED), drawn())
    for image_id in (PLAIN, REJECTED):
        assert seeds.stage.read_file("seeds", image_id)[0] == automatic.stage.read_file("seeds", image_id)[0]


def test_the_foreground_of_a_reviewed_mask_is_the_target_of_saliency(
    images: TaggedImages, make_context: MakeContext, earlier_stages: dict[str, Path]
) -> None:
    context = make_context(images=images, maps=earlier_stages["maps"])
    write_missing_saliency_targets(COMPLETION, context)
    targets = {i: context.folder.read_label_map("saliency", i) for i in (REVIEWED, REJECTED, PLAIN)}
    expected = np.where(drawn() == 255, 255, drawn() > 0)
    np.testing.assert_array_equal(targets[REVIEWED], expected)
    assert (targets[REJECTED] == 255).all()
    assert (targets[PLAIN] == 255).all()  # it has no saliency map


@pytest.mark.parametrize("method", [Amn, Irn])
def test_methods_that_learn_from_seeds_say_so(method: Any) -> None:
    assert method().uses_reviewed_masks()
