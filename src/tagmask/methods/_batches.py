"""The loop of methods that write one file per image: only missing files, in batches, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from tagmask.data.loading import load_image_batches
from tagmask.data.samples import Sample
from tagmask.data.transforms import normalize_images
from tagmask.models.inference import prepare_for_inference_inplace
from tagmask.stage import InferenceContext

T = TypeVar("T")


def write_missing_files(
    network: Any,
    context: InferenceContext,
    description: str,
    path: Callable[[str], Path],
    compute: Callable[[Tensor, Sequence[Sample]], Iterable[T]],
    write: Callable[[T, Sample, Path], None],
    batch_size: int,
) -> None:
    """Compute a result for each image that has no file yet, and write it.

    Args:
        network: a `Backbone`, or a network with a `backbone`; it is prepared for inference in place.
        context: the images.
        description: text beside the progress bar.
        path: maps an image id to its file.
        compute: makes the results of a batch from normalized images [B, 3, H, W] and their samples, one for each.
        write: writes a result to its file.
        batch_size: the largest number of images in a batch.
    """
    batches = context.pending_shard(context.batches(batch_size), path)
    network = prepare_for_inference_inplace(network, context.compute)
    backbone = getattr(network, "backbone", network)
    num_images = sum(map(len, batches))
    with context.reporter.progress(description, num_images) as advance, context.compute.autocast(network):
        for samples, pixels in load_image_batches(batches, context.compute) if batches else ():
            images = normalize_images(pixels.to(context.compute.device), backbone.mean, backbone.std)
            for sample, result in zip(samples, compute(images, samples), strict=True):
                if not path(sample.id).exists():  # the others only complete the batch of the first attempt
                    write(result, sample, path(sample.id))
            advance(len(samples))
