"""The segmentation network, trained on pseudo-masks as if they were ground truth.

DeepLab-v2 (Chen et al., TPAMI 2018) on any timm backbone, or any architecture of segmentation_models_pytorch.

Shared base, like `cam`: methods that train the network with another loss override `Segment.extra_targets` and
`Segment.make_training`; methods that need the network's probabilities use `predict_pending_images`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from joblib import delayed
from pydantic import AfterValidator, Field, PositiveFloat
from torch import Tensor, nn

from tagmask.compute import Compute
from tagmask.data.loading import ExtraTargets, TrainingSet, load_image_batches
from tagmask.data.samples import Sample, evenly_spaced
from tagmask.data.transforms import (
    RandomScale,
    RandomScaleChoice,
    downsample_labels,
    normalize_images,
    training_transform,
)
from tagmask.errors import RecipeError
from tagmask.label_map import IGNORE_INDEX, write_label_map
from tagmask.large_images import is_large, middle_window, segment_tiles, tiles
from tagmask.methods._calibration import fit_label_biases, sample_pixels
from tagmask.methods._class_balance import (
    balanced_label_weights,
    label_shares,
    learned_labels,
    undo_label_weights,
)
from tagmask.methods._settings import BackboneSettings, InferenceSettings, ScaleRange, Scales, Stride
from tagmask.models.inference import prepare_for_inference_inplace, scaled, scaled_with_hflip
from tagmask.models.segmenter import InferenceConfig, Segmenter, check_architecture, initial_segmenter
from tagmask.progress import stop_workers
from tagmask.refine.crf_labels import most_probable_crf_labels
from tagmask.refine.label_selection import SelectedLabels, select_labels
from tagmask.refine.settings import NETWORK_CRF, NetworkCrfSettings
from tagmask.stage import ArtifactKind, InferenceContext, MakeFiles, StageContext
from tagmask.stage_folder import StageFolder
from tagmask.training import ParameterGroup, ParameterGroups, Training, TrainingSettings, fit, train_once

Prediction = tuple[Sample, np.ndarray, np.ndarray, np.ndarray]
"""A sample, its image [H, W, 3] uint8, and the ids [L] and probabilities [L, H, W] of its labels."""

ChangeLabels = Callable[[np.ndarray], np.ndarray]
"""Changes a label map [H, W] uint8; it can be pickled."""

PrepareChange = Callable[[np.ndarray], ChangeLabels]
"""Returns, for an image [H, W, 3] uint8, what changes its label map."""


class Segment(BackboneSettings, TrainingSettings, InferenceSettings):
    """Train a segmentation network on the pseudo-masks, and segment the training images with it."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("masks", "classifier")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("segmenter", "masks")
    learning_rates: ClassVar[tuple[str, ...]] = ("lr", "head_lr", "head_bias_lr")
    free_settings: ClassVar[tuple[str, ...]] = (*TrainingSettings.free_settings, "write_masks")

    architecture: Annotated[str, AfterValidator(check_architecture)] = Field(
        "deeplabv2", description="deeplabv2, or an architecture of segmentation_models_pytorch"
    )
    output_stride: Stride = Field(
        8, description="side of a feature cell in pixels of the image, for backbones that can be dilated"
    )
    steps: int = Field(20_000, ge=1, description="number of training steps")
    epochs: int | None = Field(  # type: ignore[assignment]
        None, ge=0, description="passes over the training images; null: as many as steps says"
    )
    batch_size: int = Field(10, ge=1, description="images per training step, over all processes")
    crop_size: int = Field(321, ge=16, description="side of the random crops in pixels")
    scale_range: ScaleRange = Field((0.5, 1.5), description="range of the random factor by which images are resized")
    scale_choices: tuple[PositiveFloat, ...] | None = Field(
        None,
        min_length=1,
        description="the factors of which one is drawn instead of one from scale_range (deeplab-pytorch: 0.5, 0.75, 1, "
        "1.25, 1.5)",
    )
    freeze_norm: bool = Field(True, description="keep the running statistics of the encoder's batch norms fixed")
    train_norm: bool = Field(
        True, description="train the factors and offsets of the encoder's norms (deeplab-pytorch: false)"
    )
    loss_grid: Literal["image", "logits"] = Field(
        "image",
        description="where the loss compares logits and labels: image (the logits are enlarged) or logits (the labels "
        "are reduced, as in deeplab-pytorch)",
    )
    loss_scales: tuple[PositiveFloat, ...] = Field(
        (),
        description="further factors by which each crop is resized; their losses, and the loss of the pixelwise "
        "maximum of all logits, are added to that of the crop (deeplab-pytorch: 0.75 and 0.5)",
    )
    lr: float = Field(2.5e-4, gt=0, description="learning rate of the encoder")
    head_lr: float = Field(2.5e-3, gt=0, description="learning rate of the new layers; the papers use 10 times lr")
    head_bias_lr: float | None = Field(
        None,
        gt=0,
        description="learning rate of the biases of the new layers, which then have no weight decay (deeplab-pytorch: "
        "20 times lr); null: they are trained as all new layers",
    )
    class_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="exponent b: a pixel whose label covers the share s of all masks has the weight s^−b in the loss, "
        "so that rare classes are not lost; afterwards the network's probabilities are multiplied by s^b, so that it "
        "does not see rare classes everywhere; 0: all pixels have the same weight",
    )
    calibration_images: int = Field(
        0,
        ge=0,
        description="number of training images, evenly spaced, to which the biases of the last layer are fitted after "
        "the training, so that the network finds each label as often as the masks have it; 0: they stay as they are",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    scales: Scales = Field(
        (0.5, 0.75, 1.0, 1.25, 1.5),
        description="factors by which an image is resized at inference; each resized image is used together with its "
        "horizontal flip",
    )
    inference_batch_size: int = Field(8, ge=1, description="largest number of images of equal size in a batch")
    crf: NetworkCrfSettings | None = Field(
        NETWORK_CRF, description="the dense CRF on the network's probabilities at inference; null: no CRF"
    )
    write_masks: bool = Field(
        True, description="segment the training images with the trained network; false: only train the network"
    )

    def made_artifacts(self) -> tuple[ArtifactKind, ...]:
        return self.makes if self.write_masks else ("segmenter",)

    def inference_settings(self) -> tuple[str, ...]:
        names = {"crf", *super().inference_settings()}
        return tuple(names - {"scales"} if self.calibration_images else names)  # it is calibrated at these scales

    def run(self, context: StageContext) -> None:
        train_once(context, Segmenter, lambda: self.train(context))
        if context.compute.is_main_process:
            Segmenter.save_notes(context.folder.path, test=self.inference.model_dump(mode="json"))
        if not self.write_masks:
            context.reporter.info("write_masks is false: the network is trained, and segments no training images")
            return
        context.make_files("masks", self.prepare_masks)

    def prepare_masks(self, context: StageContext) -> MakeFiles:
        """Load the network, and return the function that segments the training images."""
        network = prepare_for_inference_inplace(Segmenter.load(context.folder.path), context.compute)
        return lambda part: write_missing_masks(network, part, self.inference, self.inference_batch_size)

    @property
    def inference(self) -> InferenceConfig:
        """How the network is applied."""
        return InferenceConfig(scales=self.scales, crf=self.crf)

    def train(self, context: StageContext) -> None:
        """Train the network and write it to the stage folder."""
        torch.manual_seed(context.seed)
        network = initial_segmenter(
            context.inputs["classifier"].path,
            self.architecture,
            context.images.classes,
            self.backbone,
            self.weights,
            self.output_stride,
            self.options,
        )
        network.freeze_norm = self.freeze_norm
        resize = RandomScaleChoice(self.scale_choices) if self.scale_choices else RandomScale(*self.scale_range)
        transform = training_transform(resize, self.crop_size, network.mean, network.std)
        data = TrainingSet(context.images, transform, context.seed, self.extra_targets(context), windows=True)
        module = self.make_training(network, self.parameter_groups(network))
        if self.class_balance:
            shares = label_shares(context, len(context.images.classes) + 1)
            module.label_weights = torch.from_numpy(balanced_label_weights(shares, self.class_balance)).float()
        steps_per_epoch = max(1, context.images_per_epoch // self.batch_size)
        steps = self.steps if self.epochs is None else None
        epochs = math.ceil(self.steps / steps_per_epoch) if self.epochs is None else self.epochs
        try:
            fit(module, data, context, epochs=epochs, batch_size=self.batch_size, steps=steps)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RecipeError(
                f"{self.architecture} cannot be trained with one image per step, because it pools an image to one "
                "point: give a larger batch_size and more images, or another architecture, e.g. Unet."
            ) from error
        if context.compute.is_main_process:
            if module.label_weights is not None:
                network.add_to_logits(undo_label_weights(module.label_weights))
            if self.calibration_images:
                network.add_to_logits(self.calibrated_biases(network, context))
            network.save(context.folder.path)

    def calibrated_biases(self, network: Segmenter, context: StageContext) -> Tensor:
        """Return what to add to the logits [K + 1] so that whole images get each label as often as the masks have it.

        The images are seen as at inference, without tags; of a large image, one tile is seen.
        """
        network.eval()
        samples = evenly_spaced(context.images.samples, self.calibration_images)
        total = min(self.calibration_images, context.images_per_epoch)  # of a whole run; a dry run has fewer samples
        pixels = []
        with context.reporter.progress("calibrating", total, "steps") as advance:
            for sample in samples:
                image = sample.read_image()
                window = middle_window((image.shape[0], image.shape[1]))
                rgb = torch.from_numpy(image[window].copy()).permute(2, 0, 1)[None].to(context.compute.device)
                with context.compute.autocast(network):
                    normalized = normalize_images(rgb, network.mean, network.std)
                    [(_, probabilities)] = class_probabilities(network, normalized, [None], self.scales)
                pixels.append(sample_pixels(probabilities, learned_labels(context, sample)[window], IGNORE_INDEX))
                advance(1)
        log_probabilities, labels = (np.concatenate(parts) for parts in zip(*pixels, strict=True))
        return torch.from_numpy(fit_label_biases(log_probabilities, labels)).float()

    def parameter_groups(self, network: Segmenter) -> list[ParameterGroup]:
        """Return the parameters of encoder and head with their learning rates; switches off the norms if they stay."""
        encoder = network.timm_network()
        if not self.train_norm:
            for module in encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
                    module.requires_grad_(False)
        head = network.head_parameters()
        groups = [ParameterGroup(encoder.parameters(), self.lr)]
        if self.head_bias_lr is None:
            return [*groups, ParameterGroup(head, self.head_lr)]
        weights, biases = ([p for p in head if (p.ndim == 1) == is_bias] for is_bias in (False, True))
        return [*groups, ParameterGroup(weights, self.head_lr), ParameterGroup(biases, self.head_bias_lr, 0.0)]

    def extra_targets(self, context: StageContext) -> ExtraTargets:
        """Return what the loss needs of each sample besides the image; one target is "labels" [H, W] uint8."""
        return PseudoMaskTargets(context.inputs["masks"])

    def make_training(self, network: Segmenter, parameter_groups: ParameterGroups) -> SegmentTraining:
        """Return the network with its loss."""
        return SegmentTraining(network, parameter_groups, self)


class SegmentTraining(Training):
    """Per-pixel cross-entropy against the pseudo-masks, without ignored pixels.

    Attributes:
        label_weights: [K + 1] float32, the weight of the pixels of each label; None: all have the same.
    """

    network: Segmenter
    label_weights: Tensor | None

    def __init__(self, network: Segmenter, parameter_groups: ParameterGroups, settings: Segment) -> None:
        super().__init__(network, parameter_groups, settings)
        self.loss_grid, self.loss_scales = settings.loss_grid, settings.loss_scales
        self.register_buffer("label_weights", None, persistent=False)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": torch.stack([self.pixel_loss(*pair) for pair in self.logits_and_labels(batch)]).sum()}

    def pixel_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of logits [B, K + 1, h, w] and labels [B, h, w]."""
        return pixel_loss(logits, labels, self.mean_over_processes, self.label_weights)

    def logits_and_labels(self, batch: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return the logits [B, K + 1, h, w] float32 whose losses are added up, each with labels [B, h, w].

        The first are those of the crops. With `loss_scales`, those of the resized crops follow, and at last the
        pixelwise maximum of all, as in deeplab-pytorch.
        """
        images, labels = batch["image"], batch["labels"]
        logits = [self.network(images).float()]
        for scale in self.loss_scales:
            size = [max(1, int(side * scale)) for side in images.shape[2:]]
            logits.append(self.network(F.interpolate(images, size, mode="bilinear", align_corners=False)).float())
        if self.loss_scales:
            grid = logits[0].shape[2:]
            resized = [F.interpolate(each, grid, mode="bilinear", align_corners=False) for each in logits]
            logits.append(torch.stack(resized).amax(0))
        if self.loss_grid == "logits":
            return [(each, downsample_labels(labels, (each.shape[2], each.shape[3]))) for each in logits]
        return [(F.interpolate(each, labels.shape[1:], mode="bilinear"), labels) for each in logits]


def pixel_loss(
    logits: Tensor,
    labels: Tensor,
    reduce_mean: Callable[[Tensor], Tensor] = Tensor.float,
    label_weights: Tensor | None = None,
) -> Tensor:
    """Compute the cross-entropy, averaged over all pixels that are not ignored; 0 if all are.

    Args:
        logits: [B, K + 1, H, W].
        labels: [B, H, W] integers: 0 background, 1..K classes, 255 ignored.
        reduce_mean: returns the mean of a count over the processes that share a batch
            (`Training.mean_over_processes`).
        label_weights: [K + 1], the weight of the pixels of each label in the average; None: all have the same.
    """
    valid = labels != IGNORE_INDEX
    total = reduce_mean(valid.sum() if label_weights is None else label_weights[labels[valid].long()].sum())
    total = total.where(total > 0, 1)  # the mean is below 1 if only one of many processes has a labeled pixel
    return F.cross_entropy(logits, labels.long(), label_weights, ignore_index=IGNORE_INDEX, reduction="sum") / total


@dataclass(frozen=True)
class PseudoMaskTargets:
    """The masks of a stage as the training target "labels" (see `ExtraTargets`)."""

    stage: StageFolder

    def __call__(self, sample: Sample) -> Mapping[str, np.ndarray]:
        return {"labels": self.stage.read_mask(sample.id)}


@torch.inference_mode()
def class_probabilities(
    network: Segmenter,
    images: Tensor,
    tags: Sequence[Sequence[int] | None],
    scales: Sequence[float] = (1.0,),
    hflip: bool = True,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Compute the label probabilities of images, averaged over scales and horizontal flips.

    Args:
        network: in eval mode.
        images: [B, 3, H, W] normalized, of equal size.
        tags: for each image the class ids that can appear beside background; None: all.
        scales: factors by which the images are resized.
        hflip: whether each resized image is used together with its horizontal flip.

    Returns:
        For each image the ids of its L labels [L] uint8 (0 first) and their probabilities [L, H, W] float32.
    """
    size = (images.shape[2], images.shape[3])
    num_labels = len(network.classes) + 1
    labels = [list(range(num_labels)) if ids is None else [0, *sorted(ids)] for ids in tags]
    summed = [torch.zeros(len(ids), *size, device=images.device) for ids in labels]
    for scale in scales:
        views = scaled_with_hflip(images, scale) if hflip else scaled(images, scale)
        plain, *flipped = network(views).float().split(len(images))
        for i, ids in enumerate(labels):
            logits = torch.stack([plain[i, ids], *(view[i, ids].flip(2) for view in flipped)])
            full_size = F.interpolate(logits, size, mode="bilinear", align_corners=False)
            summed[i] += full_size.softmax(1).sum(0)
    num_views = (2 if hflip else 1) * len(scales)
    return [(np.array(ids, np.uint8), (s / num_views).cpu().numpy()) for ids, s in zip(labels, summed, strict=True)]


def most_probable_labels(
    image: np.ndarray, ids: np.ndarray, probabilities: np.ndarray, crf: NetworkCrfSettings | None
) -> np.ndarray:
    """Return the label map [H, W] uint8 of the most probable labels, after the dense CRF if there is one.

    Args:
        image: [H, W, 3] uint8.
        ids: [L] uint8 label ids.
        probabilities: [L, H, W] float32.
        crf: settings of the dense CRF; None: none.
    """
    return prepare_most_probable_labels(image, ids, probabilities, crf)()


def prepare_most_probable_labels(
    image: np.ndarray, ids: np.ndarray, probabilities: np.ndarray, crf: NetworkCrfSettings | None
) -> Callable[[], np.ndarray]:
    """Return `most_probable_labels` of these arguments as a function that is small to send to another process."""
    if crf is None or len(ids) == 1:
        return partial(np.asarray, ids[probabilities.argmax(0)])
    biased = add_foreground_bias(probabilities, crf.foreground_bias) if crf.foreground_bias else probabilities
    return partial(_crf_labels, image, ids, select_labels(biased, crf), crf)


def add_foreground_bias(probabilities: np.ndarray, bias: float) -> np.ndarray:
    """Add a number to the logits of all labels but the first, background.

    Args:
        probabilities: [L, H, W] float32; they sum to 1 at each pixel.
        bias: what is added.

    Returns:
        The new probabilities [L, H, W] float32.
    """
    biased = probabilities.copy()
    biased[1:] *= math.exp(bias)
    return biased / biased.sum(0)


def _crf_labels(image: np.ndarray, ids: np.ndarray, selected: SelectedLabels, crf: NetworkCrfSettings) -> np.ndarray:
    return ids[most_probable_crf_labels(image, selected, crf)]


def predict_pending_images(
    network: Segmenter, context: InferenceContext, scales: Sequence[float], batch_size: int, hflip: bool = True
) -> tuple[Iterator[Prediction], int]:
    """Segment this process's images that have no mask yet, large images at their reduced size.

    Args:
        network: prepared for inference.
        context: the images, and the folder of the masks.
        scales: factors by which the images are resized.
        batch_size: the largest number of images in a batch.
        hflip: as in `class_probabilities`.

    Returns:
        An iterator over the predictions, and their number.
    """
    mask_path = context.folder.mask_path
    batches = context.pending_shard(context.batches(batch_size), mask_path)
    total = sum(not mask_path(sample.id).exists() for batch in batches for sample in batch)

    def predictions() -> Iterator[Prediction]:
        for samples, pixels in load_image_batches(batches, context.compute):
            images = normalize_images(pixels.to(context.compute.device), network.mean, network.std)
            with context.compute.autocast(network):  # here, because joblib may run this generator in another thread
                results = class_probabilities(network, images, [sample.tags for sample in samples], scales, hflip)
            for sample, rgb, (ids, probabilities) in zip(samples, pixels, results, strict=True):
                if not mask_path(sample.id).exists():  # the others only complete the batch of the first attempt
                    yield sample, rgb.permute(1, 2, 0).contiguous().numpy(), ids, probabilities

    return (predictions() if batches else iter(())), total


def write_missing_masks(
    network: Segmenter,
    context: InferenceContext,
    inference: InferenceConfig,
    batch_size: int,
    prepare_change: PrepareChange | None = None,
) -> None:
    """Write the network's label map of every image that has none yet; see `predict_pending_images`.

    Large images follow one by one, see `segment_in_tiles`. `prepare_change` says what then happens to each label map.
    """
    small = context.images.select(lambda sample: not (sample.size and is_large(sample.size)))
    large = context.images.select(lambda sample: bool(sample.size and is_large(sample.size)))
    predictions, total = predict_pending_images(
        network, replace(context, images=small), inference.scales, batch_size, inference.hflip
    )
    jobs = (
        delayed(_write_mask)(
            context.folder.mask_path(sample.id),
            prepare_most_probable_labels(image, ids, probabilities, inference.crf),
            prepare_change and prepare_change(image),
        )
        for sample, image, ids, probabilities in predictions
    )
    if total or not len(large):
        context.run_in_workers("masks of the network", jobs, total)
    groups = context.pending_shard([[sample] for sample in large.samples], context.folder.mask_path)
    if groups:
        stop_workers()  # those of the small images: the large ones need the memory
    num_tiles = sum(len(tiles(sample.size)) for (sample,) in groups if sample.size)
    with context.reporter.progress("large images", num_tiles, "tiles") as advance:
        for (sample,) in groups:
            image = sample.read_image()
            labels = segment_in_tiles(network, image, sample.tags, inference, context.compute, lambda: advance(1))
            change = prepare_change and prepare_change(image)
            write_label_map(context.folder.mask_path(sample.id), change(labels) if change else labels)


def segment_in_tiles(
    network: Segmenter,
    image: np.ndarray,
    tags: Sequence[int] | None,
    inference: InferenceConfig,
    compute: Compute,
    on_tile: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Segment a large image in overlapping tiles (`segment_tiles`); an image that is not large is one tile.

    Args:
        network: prepared for inference.
        image: [H, W, 3] uint8.
        tags: the class ids that can appear beside background; None: all.
        inference: how the network is applied to each tile.
        compute: device and precision.
        on_tile: called after each tile.

    Returns:
        The label map [H, W] uint8.
    """

    def segment(part: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(part).permute(2, 0, 1)[None].to(compute.device)
        with compute.autocast(network):
            images = normalize_images(pixels, network.mean, network.std)
            [(ids, probabilities)] = class_probabilities(network, images, [tags], inference.scales, inference.hflip)
        return most_probable_labels(part, ids, probabilities, inference.crf)

    return segment_tiles(image, segment, on_tile)


def _write_mask(path: Path, make_labels: Callable[[], np.ndarray], change: ChangeLabels | None) -> None:
    labels = make_labels()
    write_label_map(path, change(labels) if change else labels)
