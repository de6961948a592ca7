"""The training of a classifier whose backbone is not trained: its features are computed once and kept until the end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tagmask.artifacts import read_arrays, write_arrays, write_json
from tagmask.data.loading import multi_hot
from tagmask.methods._batches import write_missing_files
from tagmask.methods._settings import ClassifierSettings
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.inference import BILINEAR, Resize, scaled_with_hflip
from tagmask.models.linear_head import fit_linear_head
from tagmask.stage import StageContext


def fit_frozen_classifier(classifier: Classifier, context: StageContext, settings: ClassifierSettings) -> None:
    """Set the weights W of a classifier to the minimum of its loss on the features of its backbone.

    The views of an image are those of which its maps are made: each of the `scales`, with and without horizontal flip.
    Their pooled features are kept as float16 in the folder of the checkpoints, which is removed after the training.
    They take 2 · views · channels bytes per image, e.g. 6 KB for 8 views and 384 channels.

    Args:
        classifier: its backbone is not changed; its weights are set in the main process.
        context: of the stage.
        settings: scales, batch size and weight decay.
    """
    folder = context.folder.path / "training" / "features"
    write_missing_features(copy.deepcopy(classifier.backbone), folder, context, settings)
    context.compute.barrier()
    if not context.compute.is_main_process:
        return
    samples = context.images.samples
    features = np.stack([read_arrays(features_path(folder, sample.id))["features"] for sample in samples])
    tags = torch.stack([multi_hot(sample.tags, len(classifier.classes)) for sample in samples]).numpy()
    context.reporter.info(f"  finding the weights of {tags.shape[1]} classes for {features.shape[2]} channels")
    losses: list[float] = []
    weight = fit_linear_head(features, tags, settings.weight_decay, losses.append)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(weight))
    write_json(context.folder.history_path, [{"epoch": i, "loss": loss} for i, loss in enumerate(losses, 1)])


def features_path(folder: Path, image_id: str) -> Path:
    """Return the path of the pooled features of an image."""
    return folder / f"{image_id}.safetensors"


def write_missing_features(
    backbone: Backbone, folder: Path, context: StageContext, settings: ClassifierSettings
) -> None:
    """Write the pooled features of every image that has none yet: "features" [V, D] float16, see `pooled_features`.

    The backbone is prepared for inference in place.
    """
    write_missing_files(
        backbone,
        context,
        "features",
        partial(features_path, folder),
        lambda images, samples: (
            pooled_features(backbone, images, settings.scales, settings.resize(backbone)).half().cpu().numpy()
        ),
        lambda features, sample, path: write_arrays(path, {"features": features}),
        settings.inference_batch_size,
    )


@torch.inference_mode()
def pooled_features(backbone: Backbone, images: Tensor, scales: Sequence[float], resize: Resize = BILINEAR) -> Tensor:
    """Return the mean features of each view of some images.

    Args:
        backbone: in eval mode.
        images: [B, 3, H, W] normalized.
        scales: factors by which the images are resized.
        resize: how they are resized.

    Returns:
        [B, V, D] float32, with V = 2 · len(scales): each scale and its horizontal flip.
    """
    views = []
    for scale in scales:
        views += backbone(scaled_with_hflip(images, scale, resize)).float().mean((2, 3)).chunk(2)
    return torch.stack(views, 1)
