"""IRN: boundaries learned from confident seeds, and a random walk that spreads response maps up to them.

Ahn, Cho and Kwak, "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019
(arXiv:1904.05044), with the values of its public code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from joblib import delayed
from pydantic import BaseModel, Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tagmask.artifacts import decode_model, write_json
from tagmask.data.loading import TrainingSet, load_image_batches
from tagmask.data.samples import Sample, evenly_spaced
from tagmask.data.transforms import RandomScale, downsample_labels, normalize_images, training_transform
from tagmask.label_map import IGNORE_INDEX
from tagmask.large_images import reduced_size, resize_labels
from tagmask.maps import STRIDE, ResponseMaps, grid_size
from tagmask.methods._seeds import SeedFolder, make_seeds
from tagmask.methods._settings import FeatureSettings, ScaleRange
from tagmask.methods._threshold import GlobalThreshold, record_threshold
from tagmask.models.boundary_network import BoundaryNetwork, predict_boundaries
from tagmask.models.classifier import initial_backbone
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.outputs.coco_instances import instance_annotation, write_instances
from tagmask.outputs.writer import image_file_name
from tagmask.refine.instances import find_instances
from tagmask.refine.random_walk import half_disc, path_cells, propagate, walk_maps
from tagmask.refine.settings import RandomWalkSettings, SeedSettings
from tagmask.stage import ArtifactKind, MakeFiles, StageContext, group_by_size
from tagmask.training import ParameterGroup, ParameterGroups, Training, TrainingSettings, fit, train_once

EPSILON = 1e-5  # added inside logarithms and to the counts of pairs, as in the public code
MAX_MEAN_IMAGES = 1464  # images over which the mean displacement is taken, the size of VOC train, as in the public code
INSTANCES_FILE = "instances.json"

Prediction = tuple[Sample, np.ndarray, np.ndarray]
"""A sample, its boundary map [h, w] in 0..1 and its displacement field [2, h, w] in cells."""


class Irn(FeatureSettings, TrainingSettings):
    """Learn class boundaries from confident seeds, and spread the response maps by a random walk up to them.

    The maps after the walk are cut by a later `pseudo_masks` stage.
    """

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps", "classifier")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("boundary", "maps")
    learns_from_pixels: ClassVar[bool] = True
    learning_rates: ClassVar[tuple[str, ...]] = ("lr", "displacement_lr")
    free_settings: ClassVar[tuple[str, ...]] = (*TrainingSettings.free_settings, "write_maps")

    boundaries: Literal["learned", "none"] = Field(
        "learned",
        description="learned: the walk stops at boundaries that a network has learned from seeds; none: nothing is "
        "learned, and the walk blurs the maps (an ablation)",
    )
    seeds: SeedSettings = Field(
        SeedSettings(),
        description="the labels that the network learns from; the papers use fg 0.35 and bg 0.1 after ReCAM, fg 0.45 "
        "and bg 0.15 after AMN",
    )
    pair_radius: int = Field(
        10, ge=2, description="the network learns from pairs of cells nearer than this, in cells of 4 × 4 pixels"
    )
    scale_range: ScaleRange = Field((0.5, 1.5), description="range of the random factor by which images are resized")
    epochs: int = Field(3, ge=0, description="passes over the training images")
    batch_size: int = Field(32, ge=1, description="images per training step, over all processes")
    lr: float = Field(0.1, gt=0, description="learning rate of the boundary branch")
    displacement_lr: float = Field(1.0, gt=0, description="learning rate of the displacement branch")
    walk: RandomWalkSettings = Field(RandomWalkSettings(), description="the random walk")
    write_maps: bool = Field(
        True, description="make the maps after the walk; false: only train the network, for regions of boundaries"
    )
    inference_batch_size: int = Field(8, ge=1, description="largest number of images of equal size in a batch")
    instances: bool = Field(False, description="also write instances.json: masks in the format of COCO, one per object")
    instance_threshold: GlobalThreshold = Field(
        "auto",
        description="a pixel belongs to no instance if its activation after the walk is below this share of the "
        "image's highest one; auto: Otsu's threshold of the maps after the walk; the paper uses 0.25",
    )

    @model_validator(mode="after")
    def _crop_holds_pairs(self) -> Self:
        cells = -(-self.crop_size // STRIDE)
        if cells < 2 * self.pair_radius:
            raise ValueError(f"crop_size must be at least {8 * self.pair_radius} for pair_radius {self.pair_radius}")
        return self

    @model_validator(mode="after")
    def _instances_need_a_network(self) -> Self:
        if self.instances and self.boundaries == "none":
            raise ValueError("instances are found by what the network learns: set boundaries to learned")
        return self

    @model_validator(mode="after")
    def _maps_are_needed(self) -> Self:
        if not self.write_maps and (self.instances or self.boundaries == "none"):
            raise ValueError("write_maps must be true with instances or without learned boundaries")
        return self

    def made_artifacts(self) -> tuple[ArtifactKind, ...]:
        learned: tuple[ArtifactKind, ...] = ("boundary",) if self.boundaries == "learned" else ()
        return (*learned, "maps") if self.write_maps else learned

    def inference_settings(self) -> tuple[str, ...]:
        return ("walk", "instances", "instance_threshold")

    def run(self, context: StageContext) -> None:
        if self.boundaries == "none":
            context.make_files("maps", lambda stage: self.walk_without_boundaries)
            return
        seeds = make_seeds(self.seeds, context)
        train_once(context, BoundaryNetwork, lambda: self.train(context, seeds))
        if not self.write_maps:
            context.reporter.info("write_maps is false: the network is trained, and no maps are made")
            return
        context.make_files("maps", self.prepare_maps)
        if self.instances:
            threshold = record_threshold(context, self.instance_threshold, context.folder)
            context.make_files("instances", partial(self.prepare_instances, threshold))
            if context.compute.is_main_process:
                gather_instances(context)

    def walk_without_boundaries(self, context: StageContext) -> None:
        """Write the maps after a walk that no boundary stops, of every image that has none yet."""
        maps_path = context.folder.maps_path
        _compile_kernel()
        groups = context.pending_shard([[sample] for sample in context.images.samples], maps_path)
        write = partial(_write_missing_walked_maps, self.walk, _threads(context))
        jobs = (
            delayed(write)(context.inputs["maps"].maps_path(sample.id), maps_path(sample.id), None)
            for (sample,) in groups
        )
        context.run_in_workers("random walk", jobs, len(groups))

    def train(self, context: StageContext, seeds: SeedFolder) -> None:
        """Train both branches on the seeds and write the network to the stage folder."""
        torch.manual_seed(context.seed)
        classifier = context.inputs["classifier"].path
        backbone = initial_backbone(
            classifier, self.backbone, self.weights, self.output_stride, self.options, self.dilation
        )
        network = BoundaryNetwork(backbone)
        resize = RandomScale(*self.scale_range, self.interpolation)
        transform = training_transform(resize, self.crop_size, backbone.mean, backbone.std)
        parameter_groups = [
            ParameterGroup(network.boundary_parameters(), self.lr),
            ParameterGroup(network.displacement_parameters(), self.displacement_lr),
        ]
        module = IrnTraining(network, parameter_groups, self)
        data = TrainingSet(context.images, transform, context.seed, seeds)
        fit(module, data, context, epochs=self.epochs, batch_size=self.batch_size)
        if context.compute.is_main_process:
            network.mean_displacement = mean_displacement(network, context, self.inference_batch_size)
            network.save(context.folder.path)

    def prepare_maps(self, context: StageContext) -> MakeFiles:
        """Load the network, and return the function that makes the maps."""
        _compile_kernel()
        return partial(self.make_missing_maps, _load_network(context))

    def make_missing_maps(self, network: BoundaryNetwork, context: StageContext) -> None:
        """Write the maps after the walk of every image that has none yet."""
        maps_path = context.folder.maps_path
        batches = context.pending_shard(context.batches(self.inference_batch_size), maps_path)
        write = partial(_write_missing_walked_maps, self.walk, _threads(context))
        jobs = (
            delayed(write)(context.inputs["maps"].maps_path(sample.id), maps_path(sample.id), boundary)
            for sample, boundary, _ in predict(network, context, batches)
        )
        context.run_in_workers("random walk", jobs, sum(map(len, batches)))

    def prepare_instances(self, threshold: float, context: StageContext) -> MakeFiles:
        """Load the network, and return the function that finds the instances."""
        return partial(self.find_missing_instances, _load_network(context), threshold)

    def find_missing_instances(self, network: BoundaryNetwork, threshold: float, context: StageContext) -> None:
        """Write the COCO annotations of the instances of every image that has none yet."""
        path = partial(context.folder.file_path, "instances")
        batches = context.pending_shard(context.batches(self.inference_batch_size), path)
        write = partial(_write_missing_instances_json, self.walk, threshold, _threads(context))
        jobs = (
            delayed(write)(context.inputs["maps"].maps_path(sample.id), path(sample.id), boundary, displacement)
            for sample, boundary, displacement in predict(network, context, batches)
        )
        context.run_in_workers("instances", jobs, sum(map(len, batches)))


class IrnTraining(Training):
    """The affinity and displacement losses against the seeds."""

    network: BoundaryNetwork

    def __init__(self, network: BoundaryNetwork, parameter_groups: ParameterGroups, settings: Irn) -> None:
        super().__init__(network, parameter_groups, settings)
        self.pair_radius = settings.pair_radius

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        boundary, displacement = self.network(batch["image"])
        labels = downsample_labels(batch["labels"], (boundary.shape[1], boundary.shape[2]))
        losses = pair_losses(boundary.float(), displacement.float(), labels, self.pair_radius, self.mean_over_processes)
        return {"loss": losses.total, "boundary": (losses.positive + losses.negative) / 2}


@dataclass(frozen=True)
class PairLosses:
    """The losses of IRN, as scalars. The mean over a kind of pairs that does not occur is 0.

    Attributes:
        positive: −log(affinity) of pairs with equal labels; background and foreground pairs count half each.
        negative: −log(1 − affinity) of pairs with different labels.
        displacement_fg: L1 loss of the displacements of foreground pairs.
        displacement_bg: L1 loss of the displacements of background pairs.
        num_pairs: [3] the number of background pairs, foreground pairs and pairs with different labels.
    """

    positive: Tensor
    negative: Tensor
    displacement_fg: Tensor
    displacement_bg: Tensor
    num_pairs: Tensor

    @property
    def total(self) -> Tensor:
        """The loss that is minimized."""
        return (self.positive + self.negative + self.displacement_fg + self.displacement_bg) / 2


def pair_losses(
    boundary: Tensor,
    displacement: Tensor,
    labels: Tensor,
    radius: int = 10,
    reduce_mean: Callable[[Tensor], Tensor] = Tensor.float,
) -> PairLosses:
    """Compute IRN's losses over all pairs of cells closer than `radius` (Sections 4.1 and 4.2).

    The first cell of a pair is any cell for which the whole half disc of second cells lies on the grid.

    Args:
        boundary: [B, h, w] logits.
        displacement: [B, 2, h, w] (rows, columns) in cells.
        labels: [B, h, w] int: 0 background, class ids, 255 ignored cells, which are in no pair.
        radius: in cells; the grid must be at least `radius` high and 2 · `radius` − 1 wide.
        reduce_mean: returns the mean of the pair counts over the processes that share a batch
            (`Training.mean_over_processes`).
    """
    probability = boundary.sigmoid()
    # One offset at a time, recomputed in the backward pass: all pairs of a batch at once would take gigabytes.
    sums_per_offset = [
        checkpoint(_pair_sums, probability, displacement, labels, offset, radius, use_reentrant=False)
        for offset in half_disc(radius).tolist()
    ]
    bg, fg, different, displacement_fg, displacement_bg, *counts = torch.stack(sums_per_offset).sum(0)
    num_pairs = torch.stack(counts).detach()
    mean_bg, mean_fg, mean_different = reduce_mean(num_pairs.clone())  # the reduction overwrites its argument
    return PairLosses(
        (bg / (mean_bg + EPSILON) + fg / (mean_fg + EPSILON)) / 2,
        different / (mean_different + EPSILON),
        displacement_fg / (2 * mean_fg + EPSILON),
        displacement_bg / (2 * mean_bg + EPSILON),
        num_pairs,
    )


def _pair_sums(probability: Tensor, displacement: Tensor, labels: Tensor, offset: list[int], radius: int) -> Tensor:
    """Sum over the pairs at one offset: three sums of −log terms, two of displacements, and three counts."""
    rows, columns = labels.shape[1] - radius + 1, labels.shape[2] - 2 * (radius - 1)

    def shifted(grids: Tensor, dy: int, dx: int) -> Tensor:
        return grids[..., dy : dy + rows, radius - 1 + dx : radius - 1 + dx + columns]

    dy, dx = offset
    max_boundary = torch.stack([shifted(probability, y, x) for y, x in path_cells(dy, dx)]).amax(0)
    first, second = shifted(labels, 0, 0), shifted(labels, dy, dx)
    known = (first != IGNORE_INDEX) & (second != IGNORE_INDEX)
    same = known & (first == second)
    background, foreground, different = same & (first == 0), same & (first != 0), known & (first != second)
    same_loss, different_loss = -(1 - max_boundary + EPSILON).log(), -(max_boundary + EPSILON).log()
    difference = shifted(displacement, 0, 0) - shifted(displacement, dy, dx)
    # two cells of one object point to one centroid, so their displacements differ by the offset between them
    fg_error = (difference - difference.new_tensor(offset)[:, None, None]).abs().sum(1)
    return torch.stack(
        [
            (same_loss * background).sum(),
            (same_loss * foreground).sum(),
            (different_loss * different).sum(),
            (fg_error * foreground).sum(),
            (difference.abs().sum(1) * background).sum(),
            background.sum(),
            foreground.sum(),
            different.sum(),
        ]
    )


def predict(
    network: BoundaryNetwork, context: StageContext, batches: Sequence[Sequence[Sample]]
) -> Iterator[Prediction]:
    """Yield the boundary and the displacement of each sample of the batches, at the reduced size of large images."""
    backbone = network.backbone
    for samples, pixels in load_image_batches(batches, context.compute) if batches else ():
        images = normalize_images(pixels.to(context.compute.device), backbone.mean, backbone.std)
        with context.compute.autocast(network):  # here, because joblib may run this generator in another thread
            boundary, displacement = predict_boundaries(network, images)
        yield from zip(samples, boundary.cpu().numpy(), displacement.cpu().numpy(), strict=True)


def mean_displacement(network: BoundaryNetwork, context: StageContext, batch_size: int) -> Tensor:
    """Compute the mean displacement [2] over (a subset of) the training images, each with equal weight."""
    samples = evenly_spaced(context.images.samples, MAX_MEAN_IMAGES)
    total = min(MAX_MEAN_IMAGES, context.images_per_epoch)  # of a whole run; a dry run has fewer samples
    network = network.to(memory_format=torch.channels_last).eval()
    network.mean_displacement.zero_()
    batches = group_by_size(samples, batch_size, context.compute.batch_pixels)
    means = []
    with context.reporter.progress("mean displacement", total, "steps") as advance:
        for _, _, displacement in predict(network, context, batches):
            means.append(displacement.mean((1, 2)))
            advance(1)
    return torch.from_numpy(np.mean(means, 0)).to(network.mean_displacement)


def _load_network(context: StageContext) -> BoundaryNetwork:
    return prepare_for_inference_inplace(BoundaryNetwork.load(context.folder.path), context.compute)


def _compile_kernel() -> None:
    """Compile the kernel of the random walk once, before worker processes would each do it."""
    propagate(np.zeros((1, 2, 2), np.float32), np.zeros((2, 2), np.float32), steps=1)


def _threads(context: StageContext) -> int | None:
    """Threads per random walk: one if several processes walk at the same time, else all."""
    return 1 if context.compute.workers > 1 else None


def _write_missing_walked_maps(
    settings: RandomWalkSettings, threads: int | None, maps_path: Path, path: Path, boundary: np.ndarray | None
) -> None:
    """Walk within a boundary map [h, w]; None: there are no boundaries."""
    if not path.exists():
        maps = ResponseMaps.load(maps_path)
        reduced = maps.resized(reduced_size(maps.size))
        if boundary is None:
            boundary = np.zeros(grid_size(reduced.size), np.float32)
        walked = walk_maps(reduced, boundary, settings, threads)
        walked.resized(maps.size).save(path)


def _write_missing_instances_json(
    settings: RandomWalkSettings,
    threshold: float,
    threads: int | None,
    maps_path: Path,
    path: Path,
    boundary: np.ndarray,
    displacement: np.ndarray,
) -> None:
    if path.exists():
        return
    maps = ResponseMaps.load(maps_path)
    reduced = maps.resized(reduced_size(maps.size))
    instances = find_instances(reduced, boundary, displacement, settings, threshold=threshold, threads=threads)
    annotations = [
        instance_annotation(i.class_id, resize_labels(i.mask.astype(np.uint8), maps.size) > 0, i.score)
        for i in instances
    ]
    write_json(path, {"size": list(maps.size), "annotations": annotations})


class InstancesRecord(BaseModel):
    """The instances of one image: the (H, W) of the image, and COCO annotations."""

    size: tuple[int, int]
    annotations: list[dict[str, Any]]


def gather_instances(context: StageContext) -> None:
    """Write the instances of all images to `instances.json`, in the order of the samples."""

    def items() -> Iterator[tuple[str, tuple[int, ...], list[dict[str, Any]]]]:
        for sample in context.images.samples:
            instances = decode_model(*context.folder.read_file("instances", sample.id), InstancesRecord)
            yield image_file_name(sample), instances.size, instances.annotations

    write_instances(context.folder.path / INSTANCES_FILE, items(), context.images.classes)
