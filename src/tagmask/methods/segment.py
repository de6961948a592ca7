"""The segmentation network, trained on pseudo-masks as if they were true (methods, section 8).

The second ground, beside `cam`, that other methods stand on: one that trains the network with another loss overrides
`Segment.layers` and `Segment.training`, and one that asks a network for masks takes what it says from `segmented`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from joblib import delayed
from pydantic import AfterValidator, Field
from torch import Tensor

from tagmask.data.loading import ExtraTargets, TrainingSet, whole_images
from tagmask.data.samples import Sample
from tagmask.data.transforms import RandomScale, normalize_images, training_transform
from tagmask.errors import RecipeError
from tagmask.label_map import IGNORE_INDEX, read_label_map, write_label_map
from tagmask.methods._settings import BackboneName, ScaleRange, Scales, Stride
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import FILE as CLASSIFIER_FILE
from tagmask.models.classifier import Classifier
from tagmask.models.inference import prepare_for_inference, with_hflip
from tagmask.models.saved_network import read_weights
from tagmask.models.segmenter import FILE, Segmenter, check_architecture
from tagmask.refine.dense_crf import unary_from_probabilities
from tagmask.refine.settings import NETWORK_CRF, CrfSettings
from tagmask.stage import ArtifactKind, Method, StageContext, group_by_size, mask_path
from tagmask.training import Optimizer, Training, fit, train_once

TEST_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)


class Segment(Method):
    """Train a segmentation network on the pseudo-masks, and segment the training images with it."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("masks", "classifier")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("segmenter", "masks")

    architecture: Annotated[str, AfterValidator(check_architecture)] = Field(
        "deeplabv2", description="deeplabv2, or any of segmentation_models_pytorch"
    )
    backbone: BackboneName | None = Field(None, description="any timm network; null: the classifier's")
    weights: str = Field("classifier", description="start from: classifier (this run's), pretrained, none, or a file")
    options: dict[str, Any] | None = Field(None, description="further arguments of timm.create_model")
    output_stride: Stride = 8
    steps: int = Field(20_000, ge=1, description="of training, rounded to whole epochs")
    epochs: int | None = Field(None, ge=0, description="instead of steps")
    batch_size: int = Field(10, ge=1)
    crop_size: int = Field(321, ge=16, description="pixels")
    scale: ScaleRange = Field((0.5, 1.5), description="images are resized by a random factor in this range")
    freeze_norm: bool = Field(True, description="keep the encoder's norm layers' running statistics")
    optimizer: Optimizer = "sgd"
    lr: float = Field(2.5e-4, gt=0, description="of the encoder")
    head_lr: float = Field(10, gt=0, description="new layers learn this many times faster")
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scales: Scales = Field(TEST_SCALES, description="each with its mirror image")
    inference_batch_size: int = Field(8, ge=1)
    crf: CrfSettings | None = Field(NETWORK_CRF, description="after the network at test time; null: none")

    def run(self, context: StageContext) -> None:
        train_once(context, FILE, lambda: self.train(context))
        network = prepare_for_inference(Segmenter.load(context.folder), context.compute)
        write_masks(network, context, scales=self.scales, crf=self.crf, batch_size=self.inference_batch_size)

    def train(self, context: StageContext) -> None:
        """Train the network and write it to `work.folder`."""
        torch.manual_seed(context.seed)
        network = self.untrained(context)
        transform = training_transform(RandomScale(*self.scale), self.crop_size, network.mean, network.std)
        data = TrainingSet(context.images, transform, context.seed, self.layers(context))
        new = network.new_parameters()
        groups = [(network.timm_network().parameters(), self.lr), (new, self.lr * self.head_lr)]
        module = self.training(
            network, groups, optimizer=self.optimizer, momentum=self.momentum, weight_decay=self.weight_decay
        )
        network.freeze_norm = self.freeze_norm
        steps_an_epoch = max(1, len(context.images) // self.batch_size)
        epochs = math.ceil(self.steps / steps_an_epoch) if self.epochs is None else self.epochs
        try:
            fit(module, data, context, epochs=epochs, batch_size=self.batch_size)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RecipeError(
                f"{self.architecture} cannot learn from one image at a time, as it pools an image to one point: "
                "give a larger batch_size and more images, or another architecture, e.g. Unet."
            ) from error
        if context.compute.is_main_process:
            test = {"scales": self.scales, "crf": self.crf and self.crf.model_dump()}
            network.save(context.folder, test=test)

    def layers(self, context: StageContext) -> ExtraTargets:
        """What goes into the loss besides the images; `labels` [H, W] uint8 among it."""
        return PseudoMasks(context.inputs["masks"])

    def training(self, *arguments: Any, **settings: Any) -> SegmentTraining:
        """The loss, with the network; the arguments are `Training`'s."""
        return SegmentTraining(*arguments, **settings)

    def untrained(self, context: StageContext) -> Segmenter:
        """The network to begin with, its encoder from the weights that the settings name."""
        _, config = read_weights(context.inputs["classifier"] / CLASSIFIER_FILE)
        same = self.backbone in (None, config["backbone"]["name"])
        backbone = self.backbone or config["backbone"]["name"]
        options = config["backbone"]["options"] if self.options is None and same else self.options
        network = Segmenter(self.architecture, backbone, context.images.classes, self.output_stride, options)
        if self.weights == "classifier":
            network.load_encoder(Classifier.load(context.inputs["classifier"]).backbone.net.state_dict())
        elif self.weights != "none":
            network.load_encoder(Backbone(backbone, self.weights, options=options).net.state_dict())
        return network


class SegmentTraining(Training):
    """Per-pixel cross-entropy against the pseudo-mask; unsure pixels are left out."""

    network: Segmenter

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": pixel_loss(self.logits(batch), batch["labels"], self.all_mean)}

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """[B, K + 1, H, W] float32, at the labels' size."""
        return F.interpolate(self.network(batch["image"]).float(), batch["labels"].shape[1:], mode="bilinear")


def pixel_loss(logits: Tensor, labels: Tensor, over_processes: Callable[[Tensor], Tensor] = Tensor.float) -> Tensor:
    """Cross-entropy, averaged over the known pixels; 0 where all are unsure.

    Args:
        logits: [B, K + 1, H, W].
        labels: [B, H, W] uint8: 0 background, 1..K classes, 255 unsure.
        over_processes: gives a count's mean over the processes, whose gradients are averaged (`Training.all_mean`).
    """
    known = over_processes((labels != IGNORE_INDEX).sum())
    known = known.where(known > 0, 1)  # less than 1 where some of many processes has the only known pixel
    return F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="sum") / known


@dataclass(frozen=True)
class PseudoMasks:
    """`masks/<id>.png` of a stage as the layer "labels" of the training (`Layers`)."""

    folder: Path

    def __call__(self, sample: Sample) -> Mapping[str, np.ndarray]:
        return {"labels": read_label_map(mask_path(self.folder, sample))}


@torch.inference_mode()
def probabilities(
    network: Segmenter, images: Tensor, tags: Sequence[Sequence[int] | None], scales: Sequence[float] = (1.0,)
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Class probabilities, averaged over scales and mirror images.

    Args:
        images: [B, 3, H, W] normalised, of one size.
        tags: for each image the class ids that may appear (background always may); None: any.

    Returns:
        For each image the channels' ids [L] uint8 (0 first) and the probabilities [L, H, W] float32.
    """
    size = (images.shape[2], images.shape[3])
    n = len(network.classes) + 1
    allowed = [list(range(n)) if ids is None else [0, *sorted(ids)] for ids in tags]
    summed = [torch.zeros(len(ids), *size, device=images.device) for ids in allowed]
    for scale in scales:
        straight, mirrored = network(with_hflip(images, scale)).float().chunk(2)
        for i, ids in enumerate(allowed):
            pair = torch.stack([straight[i, ids], mirrored[i, ids].flip(2)])
            full = F.interpolate(pair, size, mode="bilinear", align_corners=False)
            summed[i] += full.softmax(1).sum(0)
    total = 2 * len(scales)
    return [(np.array(ids, np.uint8), (s / total).cpu().numpy()) for ids, s in zip(allowed, summed, strict=True)]


def decide(image: np.ndarray, ids: np.ndarray, probs: np.ndarray, crf: CrfSettings | None) -> np.ndarray:
    """Each pixel's class: [H, W] uint8 from the image [H, W, 3] uint8 and `probabilities`' ids and values."""
    if crf is not None and len(ids) > 1:
        probs = crf.apply(image, unary_from_probabilities(probs))
    return ids[probs.argmax(0)]


def segmented(
    network: Segmenter, context: StageContext, *, scales: Sequence[float], batch_size: int
) -> tuple[Iterator[tuple[Sample, np.ndarray, np.ndarray, np.ndarray]], int]:
    """What the network, made ready `for_inference`, says of this process's images of the stage that have no mask yet.

    Returns:
        (sample, image [H, W, 3] uint8, and the ids and values of `probabilities`) of each, and how many they are.
    """
    groups = context.pending_shard(
        group_by_size(context.images.samples, batch_size, context.compute.batch_pixels), context.mask_path
    )
    missing = sum(not context.mask_path(sample).exists() for group in groups for sample in group)

    def found() -> Iterator[tuple[Sample, np.ndarray, np.ndarray, np.ndarray]]:
        for samples, pixels in whole_images(groups, context.compute):
            images = normalize_images(pixels.to(context.compute.device), network.mean, network.std)
            with context.compute.autocast(network):  # here: joblib may run this generator in a thread of its own
                results = probabilities(network, images, [s.tags for s in samples], scales)
            for sample, rgb, (ids, probs) in zip(samples, pixels, results, strict=True):
                if not context.mask_path(sample).exists():  # else it is here to make the batch what it was
                    yield sample, rgb.permute(1, 2, 0).contiguous().numpy(), ids, probs

    return (found() if groups else iter(())), missing


def write_masks(
    network: Segmenter, context: StageContext, *, scales: Sequence[float], crf: CrfSettings | None, batch_size: int
) -> None:
    """Write the network's label map of every image of the stage that has none yet."""
    seen, missing = segmented(network, context, scales=scales, batch_size=batch_size)
    jobs = (
        delayed(_write_mask)(context.mask_path(sample), image, ids, probs, crf) for sample, image, ids, probs in seen
    )
    context.run_parallel("masks from the network", jobs, missing)


def _write_mask(path: Path, image: np.ndarray, ids: np.ndarray, probs: np.ndarray, crf: CrfSettings | None) -> None:
    write_label_map(path, decide(image, ids, probs, crf))
