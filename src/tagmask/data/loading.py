"""Batches of tensors: augmented and shuffled for training, whole images for inference."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from tagmask.compute import Compute, exit_with_parent
from tagmask.data.packed_samples import PackedSamples
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.shard_file import shard_cache
from tagmask.data.shuffling import shuffle_images, shuffle_windows
from tagmask.errors import RecipeError
from tagmask.large_images import is_large, random_window

WINDOW_CACHE_BYTES = 2**28  # for 1,000 images of 250 kB
ExtraTargets = Callable[[Sample], Mapping[str, np.ndarray]]
"""Loads the label maps of a sample that are augmented together with its image: name → [H, W] uint8, at the size of the
image (see `TrainingSet`). Pixels outside the image become `IGNORE_INDEX`. "labels" holds class ids: `TrainingSet`
replaces it by the reviewed mask of the image, if there is one."""


def multi_hot(tags: Sequence[int] | None, num_classes: int) -> Tensor:
    """Return tags as a vector [K] float32 of zeros and ones. Unknown tags (None) give zeros."""
    vector = torch.zeros(num_classes)
    if tags:
        vector[torch.tensor(tags) - 1] = 1
    return vector


class TrainingSet(Dataset[dict[str, Any]]):
    """A data set of augmented samples.

    An item is a dictionary: "image" [3, crop_size, crop_size] float32, "tags" [K] float32, and each extra target
    [crop_size, crop_size] uint8. Its key is (epoch, index). The augmentation depends only on (seed, epoch, index), so
    that an item is the same in every worker, process and resumed run.

    A large image is reduced (`tagmask.large_images`), and its extra targets have the reduced size. With
    `windows`, a random window of the image and of its extra targets is taken at full resolution instead.

    Args:
        images: the training images.
        transform: the augmentation, applied to the image and the extra targets together.
        seed: the seed of the augmentation.
        extra_targets: loads further label maps of a sample. A reviewed mask replaces "labels".
        windows: whether large images are learned from at full resolution.
    """

    def __init__(
        self,
        images: TaggedImages,
        transform: v2.Transform,
        seed: int,
        extra_targets: ExtraTargets | None = None,
        *,
        windows: bool = False,
    ) -> None:
        self.images, self.transform, self.seed, self.extra_targets = images, transform, seed, extra_targets
        self.windows = windows
        self._samples, self._num_classes = PackedSamples(images.samples), len(images.classes)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "images": None}  # a spawned worker does not need them

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        sample = self._samples[index]
        targets = dict(self.extra_targets(sample)) if self.extra_targets else {}
        if "labels" in targets:
            height, width = targets["labels"].shape
            if (reviewed := sample.read_reviewed_labels((height, width))) is not None:
                targets["labels"] = reviewed
        if self.windows and sample.size is not None and is_large(sample.size):
            window = random_window(sample.size, np.random.default_rng([self.seed, epoch, index]))
            image = sample.read_window(window)
            targets = {name: np.ascontiguousarray(labels[window]) for name, labels in targets.items()}
        else:
            image = sample.read_reduced_image()
        item: dict[str, Any] = {"image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))}
        for name, labels in targets.items():
            item[name] = tv_tensors.Mask(torch.from_numpy(labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64).item())
            item = self.transform(item)
        item = {name: torch.as_tensor(value) for name, value in item.items()}
        item["tags"] = multi_hot(sample.tags, self._num_classes)
        return item


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys (epoch, index), shuffled by (seed, epoch). Each process gets its shard of every batch.

    The shards of a batch differ by at most one image, so a loss has to be normalized by the mean over all processes
    (`Training.mean_over_processes`).
    The last, incomplete batch of an epoch is dropped, unless it is the only one.

    Args:
        num_images: the number of images; an index is below it.
        batch_size: the number of images per batch, over all processes.
        seed: the seed of the order.
        compute: this process.
        epoch_size: the number of images of an epoch; images repeat if it is larger than `num_images` (dry runs).
            None: `num_images`.
        shuffle: returns the order of an epoch.

    Attributes:
        epoch: the epoch whose batches are returned next.
        resume_at: (epoch, batch): the first batch that is returned in this epoch. Other epochs begin with batch 0.

    Raises:
        RecipeError: there are more processes than images in a batch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        compute: Compute,
        epoch_size: int | None = None,
        shuffle: Callable[[int, np.random.Generator], np.ndarray] = shuffle_images,
    ) -> None:
        world_size = compute.world_size
        epoch_size = num_images if epoch_size is None else epoch_size
        if min(batch_size, epoch_size) < world_size:
            raise RecipeError(
                f"{min(batch_size, epoch_size)} images per training step cannot be split over {world_size} processes; "
                "start fewer processes, or give a larger batch_size."
            )
        self.num_images, self.epoch_size, self.seed, self.compute = num_images, epoch_size, seed, compute
        self.batch_size, self.shuffle = min(batch_size, epoch_size), shuffle
        self.epoch = 0
        self.resume_at = (0, 0)
        self.sampler = self  # Lightning calls set_epoch on the sampler of a batch sampler

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose batches are returned next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return self.epoch_size // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this process's shard of each batch."""
        order = self.shuffle(self.epoch_size, np.random.default_rng([self.seed, self.epoch])) % self.num_images
        resumed_epoch, first = self.resume_at
        for i in range(first if self.epoch == resumed_epoch else 0, len(self)):
            batch = order[i * self.batch_size : (i + 1) * self.batch_size].tolist()
            yield [(self.epoch, index) for index in self.compute.shard(batch)]


def training_loader(
    data: TrainingSet,
    batch_size: int,
    compute: Compute,
    epoch: int = 0,
    *,
    epoch_size: int | None = None,
    first_batch: int = 0,
    windows: bool = False,
) -> DataLoader[dict[str, Any]]:
    """Return a loader of training batches. The caller sets the epoch of its `batch_sampler` before each epoch.

    Args:
        data: the training set.
        batch_size: the number of images per batch, over all processes.
        compute: this process and the number of its workers.
        epoch: the first epoch. The workers read its batches ahead as soon as they start.
        epoch_size: the number of images of an epoch; None: all images of the training set.
        first_batch: the batch of the first epoch that is read first.
        windows: whether the images are shuffled in windows, see `shuffle_windows`.
    """
    shuffle = shuffle_windows if windows else shuffle_images
    sampler = ShuffledBatches(len(data.images), batch_size, data.seed, compute, epoch_size, shuffle)
    sampler.set_epoch(epoch)
    sampler.resume_at = (epoch, first_batch)
    # A generator of its own: drawing the workers' seeds from the global one would shift the random numbers of dropout,
    # in a resumed training at another moment than in an undisturbed one.
    generator = torch.Generator().manual_seed(data.seed)
    return DataLoader(
        data,
        batch_sampler=sampler,
        generator=generator,
        num_workers=compute.workers,
        pin_memory=compute.device.type == "cuda",
        worker_init_fn=partial(_set_up_training_worker, os.getpid()),
        persistent_workers=compute.workers > 0,  # torch ignores Ctrl-C while it stops and starts workers
    )


def _set_up_worker(parent: int, worker: int) -> None:
    """Make a worker exit silently, because the main process receives the same signals and reports them.

    A worker ignores Ctrl-C and exits with status 0 on SIGTERM, which the main process sends to a worker that is stuck.
    By default it would exit as killed, which the main process would report as an error.

    The worker's garbage collector leaves out the objects of the main process. It would write to all of them, and so
    copy the memory that a forked worker shares with the main process.
    """
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(0))
    exit_with_parent(parent)


def _set_up_training_worker(parent: int, worker: int) -> None:
    """Let a worker keep the row groups of shards that belong to a window of images."""
    _set_up_worker(parent, worker)
    shard_cache().max_bytes = WINDOW_CACHE_BYTES


class _ImageBatches(Dataset[tuple[int, Tensor]]):
    """Items are the index of a group of samples and their images."""

    def __init__(self, groups: Sequence[Sequence[Sample]]) -> None:
        self._samples = PackedSamples([sample for group in groups for sample in group])
        self._ends = np.cumsum([0, *map(len, groups)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        group = [self._samples[i] for i in range(self._ends[index], self._ends[index + 1])]
        images = np.stack([sample.read_reduced_image() for sample in group])
        return index, torch.from_numpy(images).permute(0, 3, 1, 2)


def load_image_batches(groups: Sequence[Sequence[Sample]], compute: Compute) -> Iterator[tuple[list[Sample], Tensor]]:
    """Read batches of whole images ahead of time, in worker processes. Large images are reduced.

    Args:
        groups: the samples of each batch, whose images have equal size.
        compute: this process and the number of its workers.

    Yields:
        The samples and the images [B, 3, H, W] uint8 of each batch, in order.
    """
    loader = DataLoader(
        _ImageBatches(groups),
        batch_size=None,
        num_workers=min(compute.workers, len(groups)),
        worker_init_fn=partial(_set_up_worker, os.getpid()),
    )
    batches = iter(loader)
    return ((list(groups[index]), images) for index, images in batches)
