"""Test IRN: its losses against values of the public code, its maps after the walk, and its instances."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pydantic import ValidationError
from skimage.filters import threshold_otsu

from tagmask.data.samples import TaggedImages
from tagmask.dryrun.subset import ImageSubset
from tagmask.dryrun.timing import LoopTimer
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods.irn import INSTANCES_FILE, Irn, Prediction, mean_displacement, pair_losses, predict
from tagmask.methods.pseudo_masks import PseudoMasks
from tagmask.models.backbone import Backbone
from tagmask.models.boundary_network import BoundaryNetwork
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.refine.instances import find_instances
from tagmask.refine.random_walk import half_disc, walk_maps
from tagmask.refine.settings import RandomWalkSettings
from tagmask.stage import StageContext
from tagmask.stage_folder import ThresholdRecord
from tests.conftest import GOLDENS
from tests.methods.contract import MakeContext, MethodContract

GOLDEN = np.load(GOLDENS / "irn.npz")


class TestIrn(MethodContract):
    method = Irn
    settings: ClassVar = {
        "output_stride": 8, "seeds": {"crf": None}, "pair_radius": 3, "crop_size": 32, "epochs": 1, "batch_size": 4,
        "walk": {"steps": 16}, "instances": True, "inference_batch_size": 2,
    }  # fmt: skip

    def test_seeds_and_instances_are_written(self, make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
        context = self.finished(make_context, earlier_stages)
        seeds = [read_label_map(context.folder.file_path("seeds", sample.id)) for sample in context.images.samples]
        assert set(np.unique(np.stack(seeds))) <= {0, 1, 2, 3, 255}
        coco = COCO(context.folder.path / INSTANCES_FILE)
        assert len(coco.imgs) == len(context.images)
        assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
        for annotation in coco.anns.values():
            sample = context.images.samples[annotation["image_id"] - 1]
            assert annotation["category_id"] in (sample.tags or ())
            mask = coco.annToMask(annotation)
            assert mask.shape == sample.size
            assert mask.sum() == annotation["area"] >= 0.01 * mask.size

    def test_maps_are_the_input_maps_after_the_walk(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = self.finished(make_context, earlier_stages)
        for sample, boundary, _ in predictions(context):
            before = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
            expected = walk_maps(before, boundary, RandomWalkSettings(steps=16))
            maps = ResponseMaps.load(context.folder.maps_path(sample.id))
            np.testing.assert_array_equal(maps.maps, expected.maps.astype(np.float16))
            assert maps.background is None

    def test_pseudo_masks_cut_the_maps_after_the_walk(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        """The automatic threshold is Otsu's threshold of the maps after the walk."""
        context = self.finished(make_context, earlier_stages)
        masks = make_context("masks", maps=context.folder.path)
        PseudoMasks(refine="none").run(masks)
        maps = {s.id: ResponseMaps.load(context.folder.maps_path(s.id)) for s in context.images.samples}
        record = masks.folder.read_threshold_if_any()
        assert record is not None
        assert record.threshold == pytest.approx(otsu(maps.values()), abs=0.01)
        for image_id, walked in maps.items():
            labels = read_label_map(masks.folder.mask_path(image_id))
            np.testing.assert_array_equal(labels, walked.label_map(record.threshold))

    def test_the_automatic_instance_threshold_is_otsus(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = self.finished(make_context, earlier_stages)
        maps = [ResponseMaps.load(context.folder.maps_path(sample.id)) for sample in context.images.samples]
        record = context.folder.read_threshold_if_any()
        assert record is not None
        assert record.threshold == pytest.approx(otsu(maps), abs=0.01)

    def test_the_instance_threshold_is_used(self, make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
        context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
        Irn(**{**self.settings, "instance_threshold": 0.5}).run(context)
        assert context.folder.read_threshold_if_any() == ThresholdRecord(threshold=0.5)
        coco = COCO(context.folder.path / INSTANCES_FILE)
        by_name = {image["file_name"]: coco.imgToAnns[image_id] for image_id, image in coco.imgs.items()}
        total = 0
        for sample, boundary, displacement in predictions(context):
            before = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
            walk = RandomWalkSettings(steps=16)
            instances = find_instances(before, boundary, displacement, walk, threshold=0.5)
            annotations = by_name[f"{sample.id}.png"]
            assert [a["category_id"] for a in annotations] == [instance.class_id for instance in instances]
            for annotation, instance in zip(annotations, instances, strict=True):
                np.testing.assert_array_equal(coco.annToMask(annotation) > 0, instance.mask)
            total += len(instances)
        assert total > 0


def test_without_instances_only_maps_are_made(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
    Irn(**{**TestIrn.settings, "epochs": 0, "instances": False}).run(context)
    assert context.folder.maps_path("0").exists()
    assert context.folder.read_threshold_if_any() is None
    assert not (context.folder.path / INSTANCES_FILE).exists()


def predictions(context: StageContext) -> Iterator[Prediction]:
    """Predict boundaries and displacements with the network that a stage has trained, in batches like the stage."""
    network = prepare_for_inference_inplace(BoundaryNetwork.load(context.folder.path), context.compute)
    return predict(network, context, context.batches(2))


def otsu(maps: Iterable[ResponseMaps]) -> float:
    """Return Otsu's threshold of the strongest activation of each cell, computed by scikit-image."""
    activations = np.concatenate([m.maps.max(0).ravel() for m in maps if len(m.classes)])
    return float(threshold_otsu(activations.astype(np.float64), nbins=256))


def golden() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(GOLDEN[f"train_{n}"]) for n in ("boundary_logits", "displacement", "labels"))  # type: ignore[return-value]


def test_losses_equal_the_goldens() -> None:
    losses = pair_losses(*golden(), radius=10)
    for name in ("positive", "negative", "displacement_fg", "displacement_bg", "total"):
        assert float(getattr(losses, name)) == pytest.approx(float(GOLDEN[f"loss_{name}"]), rel=1e-5)
    assert losses.num_pairs.tolist() == GOLDEN["n_pairs"].tolist()


def test_the_half_disc_has_one_offset_of_each_opposite_pair() -> None:
    offsets = {tuple(o) for o in half_disc(10).tolist()}
    disc = {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < x * x + y * y < 100}
    assert offsets | {(-y, -x) for y, x in offsets} == disc
    assert len(offsets) == len(disc) / 2 == 152


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    boundary = torch.randn(1, 4, 6, dtype=torch.double, requires_grad=True)
    displacement = torch.randn(1, 2, 4, 6, dtype=torch.double, requires_grad=True)
    labels = torch.randint(0, 3, (1, 4, 6))
    assert torch.autograd.gradcheck(lambda b, d: pair_losses(b, d, labels, 3).total, (boundary, displacement))


def test_the_loss_does_not_depend_on_the_number_of_processes() -> None:
    """The mean over the processes is the loss of the whole batch, even if they have different numbers of pairs."""
    torch.manual_seed(0)
    boundary, displacement = torch.randn(2, 8, 12, requires_grad=True), torch.randn(2, 2, 8, 12, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 12))
    labels[0, 3:], labels[1, :, :5] = 255, 1
    whole = pair_losses(boundary, displacement, labels, 3)
    parts = []
    for i in range(2):
        part = pair_losses(boundary[[i]], displacement[[i]], labels[[i]], 3, lambda own_counts: whole.num_pairs / 2)
        parts.append(part)
    assert not torch.equal(parts[0].num_pairs, parts[1].num_pairs)
    torch.testing.assert_close(parts[0].num_pairs + parts[1].num_pairs, whole.num_pairs)
    mean = (parts[0].total + parts[1].total) / 2
    torch.testing.assert_close(mean, whole.total)
    inputs = (boundary, displacement)
    torch.testing.assert_close(torch.autograd.grad(mean, inputs), torch.autograd.grad(whole.total, inputs))


@pytest.mark.parametrize(("num_images", "count"), [(8, 8), (2928, 1464), (118_000, 1464)])
def test_dry_run_counts_the_images_of_the_mean_displacement(
    make_context: MakeContext, toy_images: TaggedImages, num_images: int, count: int
) -> None:
    """The mean is over evenly spaced images of the whole run, at most 1,464."""
    subset = ImageSubset(toy_images, num_images)
    timer = LoopTimer(None, Path())
    context = replace(make_context(), reporter=timer, epoch_size=num_images)
    with timer.time_stage("irn", subset):
        mean = mean_displacement(BoundaryNetwork(Backbone("test_resnet")), context, 2)
    assert mean.shape == (2,)
    assert [(t.description, t.count) for t in timer.timings] == [("mean displacement", count), ("outside of loops", 1)]


@pytest.mark.parametrize("label", [0, 1, 255])
def test_a_batch_with_only_one_label(label: int) -> None:
    boundary, displacement, labels = golden()
    boundary.requires_grad_()
    losses = pair_losses(boundary, displacement, torch.full_like(labels, label))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert torch.isfinite(boundary.grad).all()  # type: ignore[arg-type]
    assert (losses.displacement_fg > 0) == (label == 1)
    assert (losses.displacement_bg > 0) == (label == 0)
    assert losses.negative == 0
    assert losses.num_pairs.sum() == (0 if label == 255 else losses.num_pairs[label])


def test_displacements_to_a_common_center_have_no_loss() -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(20.0), indexing="ij")
    to_center = torch.stack([5 - rows, 9 - columns])[None]
    losses = pair_losses(torch.zeros(1, 12, 20), to_center, torch.ones(1, 12, 20, dtype=torch.long), radius=4)
    assert losses.displacement_fg == pytest.approx(0, abs=1e-6)


def test_a_crop_that_is_too_small_for_a_pair_is_an_error() -> None:
    with pytest.raises(ValueError, match="crop_size must be at least 80 for pair_radius 10"):
        Irn(crop_size=64)


def test_instances_have_one_threshold_for_all_images() -> None:
    with pytest.raises(ValueError, match="'per-image' is not a threshold; give auto or a number from 0 to 1"):
        Irn(instance_threshold="per-image")


def test_settings_survive_json() -> None:
    method = Irn(walk=RandomWalkSettings(map_power=1.3), instances=True)
    assert Irn(**json.loads(method.model_dump_json())) == method


def test_a_walk_without_boundaries(make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
    context = make_context(maps=earlier_stages["maps"], classifier=earlier_stages["classifier"])
    settings = Irn(boundaries="none", walk={"steps": 16})
    settings.run(context)
    assert not BoundaryNetwork.exists(context.folder.path)
    assert not (context.folder.path / "seeds").exists()
    for sample in context.images.samples:
        maps = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
        expected = walk_maps(maps, np.zeros(maps.maps.shape[1:], np.float32), settings.walk)
        walked = ResponseMaps.load(context.folder.maps_path(sample.id))
        np.testing.assert_array_equal(walked.maps, expected.maps.astype(np.float16))


def test_instances_need_learned_boundaries() -> None:
    with pytest.raises(ValidationError, match="set boundaries to learned"):
        Irn(boundaries="none", instances=True)
