"""Batches of samples, which are the same in every worker, process and resumed run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from tagmask.compute import Compute
from tagmask.data.coco_mask import CocoMask, CocoObject
from tagmask.data.images import read_image
from tagmask.data.loading import ShuffledBatches, TrainingSet, load_image_batches, multi_hot, training_loader
from tagmask.data.packed_samples import PackedSamples
from tagmask.data.samples import PngMask, ReviewedMask, Sample, TaggedImages
from tagmask.data.shuffling import shuffle_windows
from tagmask.data.transforms import RandomLongSide, RandomResize, RandomScale, normalize_images, training_transform
from tagmask.errors import DataError, RecipeError
from tagmask.stage import group_by_size

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make_training_set(images: TaggedImages, seed: int = 0) -> TrainingSet:
    transform = training_transform(RandomLongSide(30, 60), 32, MEAN, STD)

    def load_labels(sample: Sample) -> dict[str, np.ndarray]:
        assert sample.mask is not None
        return {"labels": sample.mask.read()}

    return TrainingSet(images, transform, seed, load_labels)


def load_epoch(data: TrainingSet, epoch: int, compute: Compute, batch_size: int = 4) -> list[dict[str, torch.Tensor]]:
    loader = training_loader(data, batch_size, compute)
    loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return list(loader)


def are_equal(first: list[dict[str, torch.Tensor]], second: list[dict[str, torch.Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a)


def test_an_item_depends_only_on_seed_epoch_and_index(toy_images: TaggedImages) -> None:
    data = make_training_set(toy_images)
    item = data[3, 5]
    assert item["image"].shape == (3, 32, 32)
    assert item["image"].dtype == torch.float32
    assert item["labels"].shape == (32, 32)
    assert item["labels"].dtype == torch.uint8
    torch.manual_seed(17)
    data[3, 4]
    again = data[3, 5]
    assert all(torch.equal(item[name], again[name]) for name in item)
    others = [data[4, 5], data[3, 6], make_training_set(toy_images, seed=1)[3, 5]]
    assert not any(torch.equal(item["image"], other["image"]) for other in others)


def test_an_item_does_not_change_the_global_generator(toy_images: TaggedImages) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_training_set(toy_images)[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_batches_do_not_depend_on_the_number_of_workers(toy_images: TaggedImages) -> None:
    data = make_training_set(toy_images)
    expected = load_epoch(data, 1, Compute())
    assert are_equal(expected, load_epoch(data, 1, Compute(workers=2)))
    assert not are_equal(expected, load_epoch(data, 2, Compute()))
    assert not are_equal(expected, load_epoch(make_training_set(toy_images, seed=1), 1, Compute()))


def test_workers_persist_from_epoch_to_epoch(toy_images: TaggedImages) -> None:
    """Otherwise torch would ignore Ctrl-C between two epochs, while it stops and starts workers."""
    data, before = make_training_set(toy_images), multiprocessing.active_children()
    loader = training_loader(data, 4, Compute(workers=2))
    workers = []
    for epoch in (1, 2):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        assert are_equal(list(loader), load_epoch(data, epoch, Compute()))
        workers.append({process.pid for process in multiprocessing.active_children() if process not in before})
    assert len(workers[0]) == 2
    assert workers[0] == workers[1]


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_shards_of_all_processes_form_the_batches_of_one_process(toy_images: TaggedImages, world_size: int) -> None:
    data = make_training_set(toy_images)
    expected = load_epoch(data, 1, Compute())
    shards = [load_epoch(data, 1, Compute(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for i, batch in enumerate(expected):
        pieces = [shard[i]["image"] for shard in shards]
        assert {len(piece) for piece in pieces} == {4 // world_size}
        joined = torch.stack(pieces, 1).flatten(0, 1)  # rank r has the items r, r + world_size, ...
        assert torch.equal(joined, batch["image"])


def test_an_epoch_holds_every_image_once() -> None:
    sampler = ShuffledBatches(103, 10, seed=0, compute=Compute())
    seen = [index for batch in sampler for _, index in batch]
    assert len(sampler) == 10
    assert len(set(seen)) == len(seen) == 100
    small = ShuffledBatches(3, 10, seed=0, compute=Compute())
    assert [sorted(index for _, index in batch) for batch in small] == [[0, 1, 2]]


def test_a_batch_smaller_than_the_number_of_processes_is_refused() -> None:
    with pytest.raises(RecipeError, match="3 images per training step cannot be split over 4 processes"):
        ShuffledBatches(100, 3, seed=0, compute=Compute(world_size=4))
    with pytest.raises(RecipeError, match="3 images per training step cannot be split over 4 processes"):
        ShuffledBatches(3, 8, seed=0, compute=Compute(world_size=4))


@pytest.mark.parametrize(("num_images", "batch_size", "sizes"), [(5, 8, [[3], [2]]), (13, 5, [[3, 3], [2, 2]])])
def test_shards_of_a_batch_differ_by_one_image(num_images: int, batch_size: int, sizes: list[list[int]]) -> None:
    """Every process has the same number of steps; otherwise they would wait for each other forever."""
    shards = [list(ShuffledBatches(num_images, batch_size, 0, Compute(rank=rank, world_size=2))) for rank in range(2)]
    assert [[len(batch) for batch in shard] for shard in shards] == sizes
    batches = list(ShuffledBatches(num_images, batch_size, 0, Compute()))
    assert [sorted(first + second) for first, second in zip(*shards, strict=True)] == [sorted(b) for b in batches]


def test_multi_hot() -> None:
    assert multi_hot((1, 3), 4).tolist() == [1, 0, 1, 0]
    assert multi_hot((), 2).tolist() == [0, 0]


def write_one_image(folder: Path, image: np.ndarray) -> TaggedImages:
    Image.fromarray(image).save(folder / "a.png")
    return TaggedImages(("a",), (Sample("a", str(folder / "a.png"), (1,)),))


class ResizeTo(RandomResize):
    def __init__(self, *size: int) -> None:
        super().__init__()
        self.size = size

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size  # type: ignore[return-value]


def test_padding_is_the_mean_color_and_ignored(tmp_path: Path) -> None:
    images = write_one_image(tmp_path, np.full((8, 6, 3), 255, np.uint8))
    transform = training_transform(ResizeTo(8, 6), 16, MEAN, STD)
    targets = {"labels": np.ones((8, 6), np.uint8)}
    item = TrainingSet(images, transform, 0, lambda sample: targets)[0, 0]
    inside = item["labels"] == 1
    assert inside.sum() == 48
    assert (item["labels"][~inside] == 255).all()
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(item["image"][:, inside], white[:, None].expand(3, 48))
    assert item["image"][:, ~inside].abs().max() < 0.5 / 255 / min(STD) + 1e-6  # 0, up to rounding to 8 bits


@pytest.mark.parametrize("size", [(3, 9), (7, 2), (10, 14), (1, 1)])
def test_labels_are_resized_by_the_nearest_pixel_center(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    resized = ResizeTo(*size)({"m": tv_tensors.Mask(torch.from_numpy(labels))})["m"].numpy()
    pillow = np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))  # uses pixel centers, too
    np.testing.assert_array_equal(resized, pillow)


def test_image_and_labels_stay_together(toy_images: TaggedImages) -> None:
    """The squares are where the labels are, after any augmentation."""
    data = make_training_set(toy_images)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    for epoch in range(5):
        for i in range(len(toy_images)):
            item = data[epoch, i]
            rgb = item["image"] * std + mean
            strongest = rgb.argmax(0) + 1
            vivid = (rgb.max(0).values > 0.75) & (rgb.min(0).values < 0.25)
            labelled = (item["labels"] > 0) & (item["labels"] < 255)
            if vivid.any():
                assert (strongest[vivid] == item["labels"][vivid]).float().mean() > 0.97
            assert (vivid & ~labelled).sum() <= 0.05 * max(1, int(labelled.sum()))


def test_random_sizes() -> None:
    torch.manual_seed(0)
    sizes = [RandomLongSide(20, 40).new_size(50, 100) for _ in range(300)]
    assert {max(size) for size in sizes} == set(range(20, 41))
    assert all(abs(height - width / 2) <= 0.5 for height, width in sizes)
    scales = [RandomScale(0.5, 1.5).new_size(1000, 1000)[0] / 1000 for _ in range(300)]
    assert 0.5 <= min(scales) < 0.55
    assert 1.45 < max(scales) <= 1.5


def test_an_image_of_one_pixel_can_be_augmented(tmp_path: Path) -> None:
    images = write_one_image(tmp_path, np.full((1, 1, 3), 9, np.uint8))
    for resize in (RandomLongSide(20, 40), RandomScale(0.1, 0.2)):
        item = TrainingSet(images, training_transform(resize, 16, MEAN, STD), 0)[0, 0]
        assert item["image"].shape == (3, 16, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_image_batches_are_in_order(toy_images: TaggedImages, workers: int) -> None:
    groups = group_by_size(toy_images.samples, 3, 2**20)
    read = list(load_image_batches(groups, Compute(workers=workers)))
    assert [[s.id for s in samples] for samples, _ in read] == [[s.id for s in group] for group in groups]
    for samples, pixels in read:
        assert pixels.dtype == torch.uint8
        for sample, image in zip(samples, pixels, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), read_image(sample.image))


def test_a_stuck_worker_ignores_ctrl_c_and_exits_on_sigterm(toy_images: TaggedImages, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "stuck.png")  # nothing is ever written to it
    stuck = replace(toy_images.samples[0], image=str(tmp_path / "stuck.png"))
    before = multiprocessing.active_children()
    read = load_image_batches([[toy_images.samples[0]], [stuck]], Compute(workers=1))
    [worker] = [process for process in multiprocessing.active_children() if process not in before]
    next(read)  # the worker has started
    os.kill(worker.pid or 0, signal.SIGINT)
    worker.join(1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    ended = worker.exitcode
    worker.kill()  # otherwise the tests would not end
    assert ended == 0  # any other status would be reported as a killed worker


def test_normalize_images() -> None:
    pixel = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = [(0 - 0.5) / 0.2, (0.2 - 0.4) / 0.25, (1 - 0.3) / 0.3]
    torch.testing.assert_close(normalize_images(pixel, MEAN, STD).flatten(), torch.tensor(expected))


def test_groups_hold_one_size_and_not_too_many_pixels(toy_images: TaggedImages) -> None:
    small = [replace(s, id=f"s{s.id}") for s in toy_images.samples]
    large = [replace(s, id=f"l{s.id}", size=(3000, 4000)) for s in toy_images.samples[:3]]
    mixed = [*small[:2], large[0], *small[2:], *large[1:]]
    groups = group_by_size(mixed, 5, 2**20)
    assert [len(group) for group in groups] == [5, 3, 1, 1, 1]
    assert sorted(s.id for group in groups for s in group) == sorted(s.id for s in mixed)
    assert all(len({s.size for s in group}) == 1 for group in groups)
    limited = group_by_size(small, 5, 3 * 40 * 48)
    assert [len(group) for group in limited] == [3, 3, 2]


def test_an_image_that_changes_its_size_during_a_run_gives_one_sentence(toy_images: TaggedImages) -> None:
    changed = tuple(replace(sample, size=(30, 20)) for sample in toy_images.samples)
    with pytest.raises(DataError, match=r"has changed while it was used \(from 20×30 to \d+×\d+ pixels\)"):
        list(load_image_batches([changed[:2]], Compute()))
    with pytest.raises(DataError, match="run the same command again"):
        make_training_set(replace(toy_images, samples=changed))[(0, 0)]


def test_packed_samples_equal_the_samples(toy_images: TaggedImages, tmp_path: Path) -> None:
    reviewed = ReviewedMask(PngMask(tmp_path / "mask.png"), "digest")
    samples = [*toy_images.samples, replace(toy_images.samples[0], saliency=tmp_path, reviewed=reviewed, tags=None)]
    packed = PackedSamples(samples)
    assert list(packed) == samples
    with pytest.raises(IndexError):
        packed[-1]


def test_a_spawned_worker_receives_no_sample_as_an_object(toy_images: TaggedImages) -> None:
    data = TrainingSet(toy_images, training_transform(RandomLongSide(30, 60), 32, MEAN, STD), 0)
    received = pickle.loads(pickle.dumps(data))
    assert received.images is None
    assert torch.equal(received[1, 3]["image"], data[1, 3]["image"])
    assert len(pickle.dumps(data)) < 10_000


def test_the_memory_of_a_worker_does_not_grow_with_the_number_of_images(toy_images: TaggedImages) -> None:
    """20,000 samples with 5 KB of polygons each are 100 MB in the main process."""
    if sys.platform != "linux":
        pytest.skip("reads the memory of a process from /proc")

    def private_memory(num_images: int) -> int:
        first = toy_images.samples[0]
        samples = tuple(
            replace(first, id=str(i), mask=CocoMask((40, 48), (CocoObject(1, False, (bytes([i % 251]) * 5000,)),)))
            for i in range(num_images)
        )

        class Fast(TrainingSet):
            def __getitem__(self, key: tuple[int, int]) -> dict[str, int]:
                gc.collect() if key[1] % 5000 == 0 else None
                return {"number": int(self._samples[key[1]].id)}

        data = Fast(replace(toy_images, samples=samples), lambda item: item, 0)
        batches = iter(training_loader(data, 1000, Compute(workers=1)))
        numbers = torch.cat([batch["number"] for batch in batches])
        assert len(numbers) == num_images
        [worker] = batches._workers  # type: ignore[attr-defined]
        rollup = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_")) // 1024  # MiB

    assert private_memory(20_000) < private_memory(1000) + 10


@pytest.mark.parametrize("num_images", [1, 50, 999, 12_345])
def test_windows_have_all_images_once_and_few_row_groups(num_images: int) -> None:
    order = shuffle_windows(num_images, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(num_images))
    assert not np.array_equal(order, np.arange(num_images)) or num_images == 1
    for start in range(0, num_images, 1000):
        assert len(set((order[start : start + 1000] // 50).tolist())) <= 21  # the last block can be incomplete


def test_a_process_with_twenty_row_groups_in_memory_reads_each_about_once() -> None:
    reads: list[int] = []
    kept: list[int] = []
    for block in (shuffle_windows(20_000, np.random.default_rng(0)) // 50).tolist():
        if block in kept:
            kept.remove(block)
        else:
            reads.append(block)
        kept = [*kept[-19:], block]
    assert 400 <= len(reads) < 700  # any order would read nearly all 20,000 times


def test_windows_do_not_depend_on_workers(toy_images: TaggedImages) -> None:
    data = make_training_set(toy_images)
    first, second = (list(training_loader(data, 2, Compute(workers=workers), windows=True)) for workers in (0, 2))
    assert are_equal(first, second)
