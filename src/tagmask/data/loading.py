"""Samples into batches of tensors: for training (augmented, shuffled) and for inference (whole images)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from tagmask.compute import Compute
from tagmask.data.images import read_image
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import RecipeError

ExtraTargets = Callable[[Sample], Mapping[str, np.ndarray]]
"""What else of a sample goes through the same augmentation: name → uint8 [H, W] label map, or float32 [C, H, W]
map at the image's size. Outside the image the value is 255 in both."""


def multi_hot(tags: Sequence[int] | None, num_classes: int) -> Tensor:
    """Tags as a float vector [K]; unknown tags are an error of the caller's."""
    vector = torch.zeros(num_classes)
    if tags:
        vector[torch.tensor(tags) - 1] = 1
    return vector


class TrainingSet(Dataset[dict[str, Any]]):
    """Augmented samples: {"image" [3, crop, crop], "tags" [K], and one entry a layer}.

    An item is asked for as (epoch, index) and is random by (seed, epoch, index) alone, so that it is the same
    in whichever worker, process or resumed run it is made.
    """

    def __init__(
        self, images: TaggedImages, transform: v2.Transform, seed: int, layers: ExtraTargets | None = None
    ) -> None:
        self.images, self.transform, self.seed, self.layers = images, transform, seed, layers

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        sample = self.images.samples[index]
        item: dict[str, Any] = {"image": tv_tensors.Image(torch.from_numpy(read_image(sample.image)).permute(2, 0, 1))}
        for name, array in (self.layers(sample) if self.layers else {}).items():
            item[name] = tv_tensors.Mask(torch.from_numpy(array))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64).item())
            item = self.transform(item)
        item = {name: torch.as_tensor(value) for name, value in item.items()}
        item["tags"] = multi_hot(sample.tags, len(self.images.classes))
        return item


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), shuffled by (seed, epoch); each process gets its part of every batch.

    The last, incomplete batch of an epoch is dropped, unless it is the only one.
    """

    def __init__(self, n: int, batch_size: int, seed: int, compute: Compute) -> None:
        if batch_size % compute.world_size:
            raise RecipeError(
                f"batch_size {batch_size} cannot be split over {compute.world_size} processes: choose a multiple."
            )
        if n < compute.world_size:
            raise RecipeError(f"{n} images cannot be split over {compute.world_size} processes: start fewer.")
        self.n, self.seed, self.compute = n, seed, compute
        self.batch_size = min(batch_size, n - n % compute.world_size)  # every process gets the same number
        self.epoch = 0
        self.sampler = self  # Lightning sets the epoch of a batch sampler's sampler

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.n)
        for i in range(len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size].tolist()
            yield [(self.epoch, index) for index in self.compute.shard(batch)]


def training_loader(data: TrainingSet, batch_size: int, compute: Compute, epoch: int = 0) -> DataLoader[dict[str, Any]]:
    """The batches of a training; whoever iterates over them sets the epoch of the `batch_sampler`.

    `epoch` is the first: loading processes read ahead as soon as they are there.
    """
    sampler = ShuffledBatches(len(data.images), batch_size, data.seed, compute)
    sampler.set_epoch(epoch)
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=compute.workers,
        pin_memory=compute.device.type == "cuda",
        worker_init_fn=_end_with_the_main_process,
        persistent_workers=compute.workers > 0,  # Ctrl-C would be lost on torch while it ends them, each epoch anew
    )


def _end_with_the_main_process(worker: int) -> None:
    """Let loading processes end without a word: the main process, to which Ctrl-C and SIGTERM come, too, says it all.

    They ignore Ctrl-C, and end at SIGTERM, by which the main process ends one that is stuck. Not as killed, as by
    default: the main process would take that for an error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(0))


class _WholeImages(Dataset[tuple[list[Sample], Tensor]]):
    def __init__(self, groups: Sequence[Sequence[Sample]]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[list[Sample], Tensor]:
        group = list(self.groups[index])
        images = np.stack([read_image(sample.image) for sample in group])
        return group, torch.from_numpy(images).permute(0, 3, 1, 2)


def whole_images(groups: Sequence[Sequence[Sample]], compute: Compute) -> Iterator[tuple[list[Sample], Tensor]]:
    """Read groups of samples of equal size ahead: yields (samples, images [B, 3, H, W] uint8), in order."""
    loader = DataLoader(
        _WholeImages(groups),
        batch_size=None,
        num_workers=min(compute.workers, len(groups)),
        worker_init_fn=_end_with_the_main_process,
    )
    return iter(loader)
