"""IRN: its losses against the public code's figures, its label maps worked by hand, its files read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from skimage.filters import threshold_otsu

from tagmask.artifacts import read_json
from tagmask.data.samples import TaggedImages
from tagmask.dryrun.subset import ImageSubset
from tagmask.dryrun.timing import LoopTimer
from tagmask.label_map import read_label_map, voc_palette
from tagmask.maps import ResponseMaps
from tagmask.methods.irn import Irn, mean_displacement, pair_losses
from tagmask.models.backbone import Backbone
from tagmask.models.boundary_network import BoundaryNetwork
from tagmask.models.inference import prepare_for_inference
from tagmask.refine.random_walk import half_disc
from tagmask.refine.walk import Walk
from tests.conftest import GOLDENS
from tests.methods.contract import MakeContext, MethodContract

GOLDEN = np.load(GOLDENS / "irn.npz")


class TestIrn(MethodContract):
    method = Irn
    settings: ClassVar = {
        "output_stride": 8, "seeds": {"crf": None}, "pair_radius": 3, "crop_size": 32, "epochs": 1, "batch_size": 4,
        "walk": {"steps": 16}, "instances": True, "inference_batch_size": 2,
    }  # fmt: skip

    def test_its_files(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        context = self.run(make_context, earlier)
        seeds = np.unique(
            np.stack([read_label_map(context.folder.path / "seeds" / f"{s.id}.png") for s in context.images.samples])
        )
        assert set(seeds) <= {0, 1, 2, 3, 255}
        coco = COCO(context.folder.path / "instances.json")
        assert len(coco.imgs) == len(context.images)
        assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
        for annotation in coco.anns.values():
            sample = context.images.samples[annotation["image_id"] - 1]
            assert annotation["category_id"] in (sample.tags or ())
            mask = coco.annToMask(annotation)
            assert mask.shape == sample.size
            assert mask.sum() == annotation["area"] >= 0.01 * mask.size
        with Image.open(context.mask_path(context.images.samples[0])) as picture:
            assert picture.getpalette() == voc_palette()

    def test_the_automatic_threshold_is_otsu_s_on_the_walked_maps(
        self, make_context: MakeContext, earlier: dict[str, Path]
    ) -> None:
        context = self.run(make_context, earlier)
        method = Irn(**self.settings)
        network = prepare_for_inference(BoundaryNetwork.load(context.folder), context.compute)
        walked = list(method.walked(network, context, context.images.samples))
        activations = np.concatenate([each.maps.max(0).ravel() for each in walked if len(each.classes)])
        kept = read_json(context.folder.path / "walk.json")["threshold"]
        assert kept == pytest.approx(threshold_otsu(activations.astype(np.float64), nbins=256), abs=0.01)
        for sample, maps in zip(context.images.samples, walked, strict=True):
            assert (read_label_map(context.folder.mask_path(sample.id)) != maps.label_map(kept)).mean() < 0.01


def golden() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(GOLDEN[f"train_{n}"]) for n in ("boundary_logits", "displacement", "labels"))  # type: ignore[return-value]


def test_losses_are_the_reference_s() -> None:
    losses = pair_losses(*golden(), radius=10)
    for name in ("positive", "negative", "displacement_fg", "displacement_bg", "total"):
        assert float(getattr(losses, name)) == pytest.approx(float(GOLDEN[f"loss_{name}"]), rel=1e-5)
    assert losses.pairs.tolist() == GOLDEN["n_pairs"].tolist()


def test_the_half_disc_has_one_of_each_opposite_pair() -> None:
    offsets = {tuple(o) for o in half_disc(10).tolist()}
    whole = {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < x * x + y * y < 100}
    assert offsets | {(-y, -x) for y, x in offsets} == whole
    assert len(offsets) == len(whole) / 2 == 152


def test_gradients_are_those_of_the_values() -> None:
    torch.manual_seed(0)
    boundary = torch.randn(1, 4, 6, dtype=torch.double, requires_grad=True)
    displacement = torch.randn(1, 2, 4, 6, dtype=torch.double, requires_grad=True)
    labels = torch.randint(0, 3, (1, 4, 6))
    assert torch.autograd.gradcheck(lambda b, d: pair_losses(b, d, labels, 3).total, (boundary, displacement))


def test_many_processes_make_the_loss_of_one() -> None:
    """Their parts' mean is the whole's, with its gradients, however unevenly the pairs lie."""
    torch.manual_seed(0)
    boundary, displacement = torch.randn(2, 8, 12, requires_grad=True), torch.randn(2, 2, 8, 12, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 12))
    labels[0, 3:], labels[1, :, :5] = 255, 1
    whole = pair_losses(boundary, displacement, labels, 3)
    parts = []
    for i in range(2):
        one = slice(i, i + 1)
        parts.append(pair_losses(boundary[one], displacement[one], labels[one], 3, lambda _: whole.pairs / 2))
    assert not torch.equal(parts[0].pairs, parts[1].pairs)
    torch.testing.assert_close(parts[0].pairs + parts[1].pairs, whole.pairs)
    together = (parts[0].total + parts[1].total) / 2
    torch.testing.assert_close(together, whole.total)
    inputs = (boundary, displacement)
    torch.testing.assert_close(torch.autograd.grad(together, inputs), torch.autograd.grad(whole.total, inputs))


@pytest.mark.parametrize(("num_images", "count"), [(8, 8), (2928, 1464), (118_000, 1457)])
def test_dry_run_counts_the_images_of_the_mean_displacement(
    make_context: MakeContext, toy_images: TaggedImages, num_images: int, count: int
) -> None:
    """The mean is over every n-th image of the whole run, at most 1,464."""
    subset = ImageSubset(toy_images, num_images)
    timer = LoopTimer(None, Path())
    context = replace(make_context(), reporter=timer, epoch_size=num_images)
    with timer.time_stage("irn", subset):
        mean = mean_displacement(BoundaryNetwork(Backbone("test_resnet")), context, 2)
    assert mean.shape == (2,)
    assert [(t.description, t.count) for t in timer.timings] == [("mean displacement", count), ("outside of loops", 1)]


@pytest.mark.parametrize("label", [0, 1, 255])
def test_a_batch_without_some_kind_of_pair(label: int) -> None:
    boundary, displacement, labels = golden()
    boundary.requires_grad_()
    losses = pair_losses(boundary, displacement, torch.full_like(labels, label))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert torch.isfinite(boundary.grad).all()  # type: ignore[arg-type]
    assert (losses.displacement_fg > 0) == (label == 1)
    assert (losses.displacement_bg > 0) == (label == 0)
    assert losses.negative == 0
    assert losses.pairs.sum() == (0 if label == 255 else losses.pairs[label])


def test_displacements_to_a_common_centre_cost_nothing() -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(20.0), indexing="ij")
    to_centre = torch.stack([5 - rows, 9 - columns])[None]
    losses = pair_losses(torch.zeros(1, 12, 20), to_centre, torch.ones(1, 12, 20, dtype=torch.long), radius=4)
    assert losses.displacement_fg == pytest.approx(0, abs=1e-6)


def flat(*heights: float) -> ResponseMaps:
    """Maps of classes 1, 2, ..., each 8 cells square with one height in its own stripe of columns."""
    maps = np.zeros((len(heights), 8, 8), np.float16)
    for k, height in enumerate(heights):
        maps[k, :, 8 * k // len(heights) : 8 * (k + 1) // len(heights)] = height
    return ResponseMaps(np.arange(1, len(heights) + 1), maps, (32, 30))


def test_the_label_map_divides_by_the_highest_of_all_classes() -> None:
    still = Walk(steps=0)
    open_ground = np.zeros((8, 8), np.float32)
    labels = still.walked(flat(0.5, 0.1), open_ground).label_map(0.25)
    assert labels.shape == (32, 30)
    assert labels[16, 4] == 1
    assert labels[16, 28] == 0  # 0.1 / 0.5 is below 0.25
    assert still.walked(flat(0.5, 0.2), open_ground).label_map(0.25)[16, 28] == 2
    # AMN's power 1.3 spreads the heights: 0.4 ** 1.3 = 0.304, 0.3 ** 1.3 = 0.209
    assert Walk(steps=0, power=1.3).walked(flat(0.5, 0.2), open_ground).label_map(0.25)[16, 28] == 2
    assert Walk(steps=0, power=1.3).walked(flat(0.5, 0.15), open_ground).label_map(0.25)[16, 28] == 0
    assert still.walked(flat(0.5, 0.15), open_ground).label_map(0.25)[16, 28] == 2


def test_images_without_tags_or_activation_are_background() -> None:
    nothing = ResponseMaps(np.zeros(0, np.int64), np.zeros((0, 8, 8), np.float16), (32, 30))
    for maps in (nothing, flat(0.0, 0.0)):
        assert Walk().walked(maps, np.zeros((8, 8), np.float32)).label_map(0.25).max() == 0
        assert Walk().instances(maps, np.zeros((8, 8), np.float32), np.zeros((2, 8, 8), np.float32), 0.25) == []
    one = ResponseMaps(np.array([3]), np.ones((1, 1, 1), np.float16), (1, 1))
    assert Walk().walked(one, np.zeros((1, 1), np.float32)).label_map(0.25).tolist() == [[3]]


def test_a_crop_too_small_for_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="crop must be 80 or more"):
        Irn(crop_size=64)


def test_settings_survive_yaml() -> None:
    method = Irn(walk=Walk(power=1.3), instances=True)
    assert Irn(**json.loads(method.model_dump_json())) == method
