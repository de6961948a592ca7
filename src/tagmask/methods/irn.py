"""IRN: boundaries and displacements learnt from confident seeds, and the random walk that stops at the boundaries.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
(methods, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from joblib import delayed
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tagmask.artifacts import read_json, write_json
from tagmask.data.loading import TrainingSet, whole_images
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.transforms import RandomScale, labels_on_grid, normalize_images, training_transform
from tagmask.label_map import IGNORE_INDEX, read_label_map, write_label_map
from tagmask.maps import STRIDE, ResponseMaps
from tagmask.methods._seeds import SeedFolder, write_seeds
from tagmask.methods._settings import BackboneName, ScaleRange, Stride
from tagmask.methods._threshold import OneThreshold, kept_threshold
from tagmask.models.boundary_network import FILE, BoundaryNetwork, predict_boundaries
from tagmask.models.classifier import initial_backbone
from tagmask.models.inference import prepare_for_inference
from tagmask.outputs.coco_instances import instance_annotation, write_instances
from tagmask.outputs.folder import file_name
from tagmask.refine.label_maps import ConfidentSeeds
from tagmask.refine.random_walk import half_disc, path_cells, propagate
from tagmask.refine.walk import Walk
from tagmask.stage import ArtifactKind, Method, StageContext, group_by_size, maps_path
from tagmask.training import Optimizer, Training, fit, train_once

EPSILON = 1e-5  # in the logarithms, and in the counts of pairs
MEAN_IMAGES = 1464  # that stand for all of a run, at most; the reference's number, VOC train
WALK_FILE = "walk.json"
INSTANCES_FILE = "instances.json"


class Irn(Method):
    """Learn class boundaries from confident seeds; spread the maps by a random walk up to them."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps", "classifier")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)

    seeds: ConfidentSeeds = Field(
        ConfidentSeeds(), description="to learn from; the papers' fg and bg: ReCAM 0.35, 0.1; AMN 0.45, 0.15"
    )
    # The classifier's, because it is there without a download; the paper's: resnet50, pretrained.
    backbone: BackboneName | None = Field(None, description="any timm network; null: the classifier's")
    weights: str = Field("classifier", description="of the backbone: classifier (this run's), pretrained, none, a file")
    options: dict[str, Any] | None = Field(None, description="further arguments of timm.create_model")
    output_stride: Stride = 16
    pair_radius: int = Field(10, ge=2, description="in cells of 4 pixels; nearer ones are pairs to learn from")
    epochs: int = Field(3, ge=0)
    batch_size: int = Field(32, ge=1)
    crop_size: int = Field(512, ge=16, description="pixels")
    scale: ScaleRange = Field((0.5, 1.5), description="images are resized by a random factor in this range")
    optimizer: Optimizer = "sgd"
    lr: float = Field(0.1, gt=0, description="of the boundary branch")
    displacement_lr: float = Field(1.0, gt=0, description="of the displacement branch")
    momentum: float = 0.0
    weight_decay: float = 1e-4
    walk: Walk = Walk()
    threshold: OneThreshold = Field(
        "auto",
        description="share of the image's highest activation after the walk, below: background; auto: Otsu's on the "
        "walked maps of the run; the papers': 0.25",
    )
    instances: bool = Field(False, description="also write instances.json: COCO, an annotation an object")
    inference_batch_size: int = Field(8, ge=1, description="images of one size that go through the network together")

    @model_validator(mode="after")
    def _crop_holds_pairs(self) -> Self:
        cells = -(-self.crop_size // STRIDE)
        if cells < 2 * self.pair_radius:
            raise ValueError(f"crop must be {8 * self.pair_radius} or more for pair_radius {self.pair_radius}")
        return self

    def run(self, context: StageContext) -> None:
        seeds = write_seeds(self.seeds, context)
        train_once(context, FILE, lambda: self.train(context, seeds))
        network = prepare_for_inference(BoundaryNetwork.load(context.folder), context.compute)
        propagate(np.zeros((1, 2, 2), np.float32), np.zeros((2, 2), np.float32), steps=1)  # compiled once, for all
        some = context.compute.shard(evenly_spaced(context.images.select(lambda sample: bool(sample.tags))))
        threshold = kept_threshold(context, self.threshold, self.walked(network, context, some), len(some), WALK_FILE)
        self.write_masks(network, threshold, context)
        context.compute.barrier()
        if self.instances and context.compute.is_main_process:
            gather_instances(context)

    def train(self, context: StageContext, seeds: SeedFolder) -> None:
        """Train the two branches on the seeds and write the network to `work.folder`."""
        torch.manual_seed(context.seed)
        classifier = context.inputs["classifier"]
        backbone = initial_backbone(classifier, self.backbone, self.weights, self.output_stride, self.options)
        network = BoundaryNetwork(backbone)
        transform = training_transform(RandomScale(*self.scale), self.crop_size, backbone.mean, backbone.std)
        rates = {"boundary": self.lr, "displacement": self.displacement_lr}
        module = IrnTraining(
            network,
            [(network.parameters_of(branch), rate) for branch, rate in rates.items()],
            optimizer=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        module.radius = self.pair_radius
        data = TrainingSet(context.images, transform, context.seed, seeds)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)
        if context.compute.is_main_process:
            network.mean_displacement = mean_displacement(network, context, self.inference_batch_size)
            network.save(context.folder)

    def walked(
        self, network: BoundaryNetwork, context: StageContext, samples: Sequence[Sample]
    ) -> Iterator[ResponseMaps]:
        """The samples' maps after the walk."""
        for sample, boundary, _ in predictions(
            network, context, group_by_size(samples, self.inference_batch_size, context.compute.batch_pixels)
        ):
            yield self.walk.walked(ResponseMaps.load(maps_path(context.inputs["maps"], sample)), boundary)

    def write_masks(self, network: BoundaryNetwork, threshold: float, context: StageContext) -> None:
        """Write the label map (and the instances) of every image of the stage that has none yet."""
        groups = context.pending_shard(
            group_by_size(context.images.samples, self.inference_batch_size, context.compute.batch_pixels),
            context.mask_path,
        )
        threads = 1 if context.compute.workers > 1 else None
        cut = partial(_write, self.walk, threshold, threads)

        def jobs() -> Iterator[Any]:
            for sample, boundary, displacement in predictions(network, context, groups):
                files = maps_path(context.inputs["maps"], sample), context.mask_path(sample)
                moves = displacement if self.instances else None
                yield delayed(cut)(*files, _instances_file(context.folder, sample), boundary, moves)

        context.run_parallel("random walk", jobs(), sum(map(len, groups)))


class IrnTraining(Training):
    """The affinity and displacement losses against the seeds."""

    network: BoundaryNetwork
    radius: int

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        boundary, displacement = self.network(batch["image"])
        labels = labels_on_grid(batch["labels"], (boundary.shape[1], boundary.shape[2]))
        losses = pair_losses(boundary.float(), displacement.float(), labels, self.radius, self.all_mean)
        return {"loss": losses.total, "boundary": (losses.positive + losses.negative) / 2}


@dataclass(frozen=True)
class PairLosses:
    """Scalars: −log affinity of pairs of one label (half background's, half the classes'), −log (1 − affinity) of
    pairs of two labels, L1 of the displacements of foreground and of background pairs; `pairs` [3] counts background,
    foreground and different pairs. The mean of a kind that has no pair is 0."""

    positive: Tensor
    negative: Tensor
    displacement_fg: Tensor
    displacement_bg: Tensor
    pairs: Tensor

    @property
    def total(self) -> Tensor:
        return (self.positive + self.negative + self.displacement_fg + self.displacement_bg) / 2


def pair_losses(
    boundary: Tensor,
    displacement: Tensor,
    labels: Tensor,
    radius: int = 10,
    over_processes: Callable[[Tensor], Tensor] = Tensor.float,
) -> PairLosses:
    """IRN's losses over all pairs of cells nearer than `radius` (sections 4.1 and 4.2, equations 4, 5 and 9 to 11).

    The first of a pair is any cell with the whole half disc of second ones below it on the grid.

    Args:
        boundary: [B, h, w] logits.
        displacement: [B, 2, h, w] (rows, columns) in cells.
        labels: [B, h, w] int: 0, class ids, 255 unsure (in no pair).
        radius: in cells; the grid must be at least `radius` high and 2 · `radius` − 1 wide.
        over_processes: the counts' mean, for processes whose common batch this is a part of (`Training.all_mean`).
    """
    probability = boundary.sigmoid()
    # An offset at a time, and once more backwards: all pairs of a batch at once would take gigabytes.
    per_offset = [
        checkpoint(_sums, probability, displacement, labels, offset, radius, use_reentrant=False)
        for offset in half_disc(radius).tolist()
    ]
    bg, fg, different, disp_fg, disp_bg, *pairs = torch.stack(per_offset).sum(0)
    counts = torch.stack(pairs).detach()
    n_bg, n_fg, n_different = over_processes(counts.clone())  # which are averaged in place
    return PairLosses(
        (bg / (n_bg + EPSILON) + fg / (n_fg + EPSILON)) / 2,
        different / (n_different + EPSILON),
        disp_fg / (2 * n_fg + EPSILON),
        disp_bg / (2 * n_bg + EPSILON),
        counts,
    )


def _sums(probability: Tensor, displacement: Tensor, labels: Tensor, offset: list[int], radius: int) -> Tensor:
    """Sums over the pairs at one offset: three of −log terms, two of displacements, three counts."""
    rows, columns = labels.shape[1] - radius + 1, labels.shape[2] - 2 * (radius - 1)

    def moved(grids: Tensor, dy: int, dx: int) -> Tensor:
        return grids[..., dy : dy + rows, radius - 1 + dx : radius - 1 + dx + columns]

    dy, dx = offset
    highest = torch.stack([moved(probability, y, x) for y, x in path_cells(dy, dx)]).amax(0)
    first, second = moved(labels, 0, 0), moved(labels, dy, dx)
    known = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    same = known & (first == second)
    background, foreground, different = same & (first == 0), same & (first != 0), known & (first != second)
    alike, unlike = -(1 - highest + EPSILON).log(), -(highest + EPSILON).log()
    move = moved(displacement, 0, 0) - moved(displacement, dy, dx)
    # both cells point to one centroid: their displacements differ by the way from one to the other
    towards = (move - move.new_tensor(offset)[:, None, None]).abs().sum(1)
    return torch.stack(
        [
            (alike * background).sum(),
            (alike * foreground).sum(),
            (unlike * different).sum(),
            (towards * foreground).sum(),
            (move.abs().sum(1) * background).sum(),
            background.sum(),
            foreground.sum(),
            different.sum(),
        ]
    )


def predictions(
    network: BoundaryNetwork, context: StageContext, groups: Sequence[Sequence[Sample]]
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
    """Each sample with its boundary [h, w] and displacement [2, h, w]."""
    backbone = network.backbone
    for samples, pixels in whole_images(groups, context.compute) if groups else ():
        images = normalize_images(pixels.to(context.compute.device), backbone.mean, backbone.std)
        with context.compute.autocast(network):  # here: joblib may run this generator in a thread of its own
            boundary, displacement = predict_boundaries(network, images)
        yield from zip(samples, boundary.cpu().numpy(), displacement.cpu().numpy(), strict=True)


def evenly_spaced(images: TaggedImages) -> Sequence[Sample]:
    """Some images that stand for all."""
    return images.samples[:: -(-len(images) // MEAN_IMAGES)]


def mean_displacement(network: BoundaryNetwork, context: StageContext, batch_size: int) -> Tensor:
    """The mean [2] of the displacements over (some of) the training images, each image alike."""
    some = evenly_spaced(context.images)
    network = network.to(memory_format=torch.channels_last).eval()
    network.mean_displacement.zero_()
    groups = group_by_size(some, batch_size, context.compute.batch_pixels)
    means = []
    with context.progress("mean displacement", len(some)) as advance:
        for _, _, move in predictions(network, context, groups):
            means.append(move.mean((1, 2)))
            advance(1)
    return torch.from_numpy(np.mean(means, 0)).to(network.mean_displacement)


def _write(
    walk: Walk,
    threshold: float,
    threads: int | None,
    maps_path: Path,
    mask_path: Path,
    instances_path: Path,
    boundary: np.ndarray,
    displacement: np.ndarray | None,
) -> None:
    """Write one image's instances (if there is a displacement), then its label map: where that is, all is."""
    maps = ResponseMaps.load(maps_path)
    if displacement is not None:
        found = walk.instances(maps, boundary, displacement, threshold, threads)
        write_json(instances_path, [instance_annotation(i.class_id, i.mask, i.score) for i in found])
    write_label_map(mask_path, walk.walked(maps, boundary, threads).label_map(threshold))


def _instances_file(stage: Path, sample: Sample) -> Path:
    """Where a sample's instances are, before they are gathered."""
    return stage / "instances" / f"{sample.id}.json"


def gather_instances(context: StageContext) -> None:
    """Write `instances.json`: all images' instances, in the samples' order."""
    items = (
        (
            file_name(sample),
            read_label_map(context.mask_path(sample)).shape,
            read_json(_instances_file(context.folder, sample)),
        )
        for sample in context.images.samples
    )
    write_instances(context.folder / INSTANCES_FILE, items, context.images.classes)
