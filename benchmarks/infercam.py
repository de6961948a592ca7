"""Class-conditional inference against a plain loop over pieces and scales at batch 1: seconds a batch of images.

The sides run one after the other with the same threads, each in a process of its own, the loop's with PyTorch's default
allocation; their results are compared as well. On a machine that others use too, OMP_WAIT_POLICY=passive keeps threads
from spinning while they wait for one another.

Run: python benchmarks/conditional.py [--threads 2]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from tagmask.compute import Compute, Precision
from tagmask.data.scenes import make_scene
from tagmask.methods.infercam import infercam_maps
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.inference import make_inference_only

T = TypeVar("T")
Case = tuple[str, int, int, int]
SCALES = (1.0, 0.5, 1.5, 2.0)
CASES = [  # backbone, output stride, picture side, pictures: a demo's, a CPU's and the papers' scale
    ("resnet18", 8, 96, 4),
    ("mobilenetv2_100", 16, 320, 2),
    ("resnet50", 16, 320, 2),
]


@torch.inference_mode()
def plain_loop(
    activations: Callable[[Tensor], Tensor],
    image: Tensor,
    tags: Sequence[int],
    scales: Sequence[float] = SCALES,
    *,
    stride: int = 16,
    split: bool = True,
) -> np.ndarray:
    """Methods, section 3, piece by piece and view by view: image [3, H, W] → maps [K, H, W] at full size."""
    height, width = image.shape[1:]
    boxes = [(0, height, 0, width)]
    if split and len(tags) < 3:
        buffer = (10, 20)[len(tags) - 1]
        centres = [ndimage.center_of_mass(m) for m in multi_scale(activations, image, tags, scales, stride).numpy()]
        low_y, low_x = (min(int(c[axis]) for c in centres) - buffer for axis in (0, 1))
        high_y, high_x = (max(int(c[axis]) for c in centres) + buffer for axis in (0, 1))
        rows = [(0, min(high_y, height)), (max(low_y, 0), height)]
        columns = [(0, min(high_x, width)), (max(low_x, 0), width)]
        boxes = [(*r, *c) for r in rows for c in columns]
    merged = np.zeros((len(tags), height, width), np.float32)
    for top, bottom, left, right in boxes:
        piece = image[:, top:bottom, left:right].clone()
        running = torch.zeros(len(tags), *piece.shape[1:])
        count = 0
        for _ in range(5):
            running = running.maximum(multi_scale(activations, piece, tags, scales, stride))
            found = running.amax(0) >= 0.7
            grown, count = int(found.sum()) - count, int(found.sum())
            if grown < 0.02 * found.numel():
                break
            for channel in range(3):
                piece[channel][found] = image[channel].mean()
        merged[:, top:bottom, left:right] = np.maximum(merged[:, top:bottom, left:right], running.numpy())
    return merged


def multi_scale(
    activations: Callable[[Tensor], Tensor], piece: Tensor, tags: Sequence[int], scales: Sequence[float], stride: int
) -> Tensor:
    height, width = piece.shape[1:]
    cells = [stride * math.ceil(side / stride) for side in (height, width)]
    summed = torch.zeros(len(tags), height, width)
    for scale in scales:
        side = [max(1, math.floor(n * scale + 0.5)) for n in (height, width)]
        view = F.interpolate(piece[None], side, mode="bilinear", antialias=scale < 1) if scale != 1 else piece[None]
        both = activations(view)[0] + activations(view.flip(3))[0].flip(2)
        chosen = both[[t - 1 for t in tags]][None]
        summed += F.interpolate(chosen, cells, mode="bilinear", align_corners=False)[0, :, :height, :width]
    return summed / (summed.amax((1, 2), keepdim=True) + 1e-5)


def on_grid(maps: np.ndarray) -> np.ndarray:
    """The four pixels around the centre of each 4×4 cell, averaged; sides must be multiples of 4."""
    return (maps[:, 1::4, 1::4] + maps[:, 2::4, 1::4] + maps[:, 1::4, 2::4] + maps[:, 2::4, 2::4]) / 4


def setting(name: str, stride: int, side: int, n: int) -> tuple[Classifier, Tensor, list[tuple[int, ...]]]:
    """A classifier with random weights, n scenes with one or two tags and these tags: the same in every process."""
    torch.manual_seed(0)
    classifier = Classifier(Backbone(name, "none", stride), tuple("abcdef")).eval()
    scenes = [s for s in (make_scene(i, size=side) for i in range(4 * n)) if len(s.tags) < 3][:n]
    images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in scenes]) / 127.5 - 1
    return classifier, images, [s.tags for s in scenes]


def timed_loop(case: Case, threads: int, repeats: int) -> tuple[float, list[np.ndarray]]:
    """Seconds, and the maps [K, h, w] of each image."""
    torch.set_num_threads(threads)
    classifier, images, tags = setting(*case)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        maps = [plain_loop(classifier.activations, x, t, stride=case[1]) for x, t in zip(images, tags, strict=True)]
        seconds.append(time.perf_counter() - start)
    return min(seconds), [on_grid(m) for m in maps]


def timed(case: Case, threads: int, repeats: int, precision: Precision) -> tuple[float, list[np.ndarray], str]:
    """The same of tagmask's own, as a run does it, and its number format."""
    torch.set_num_threads(threads)
    classifier, images, tags = setting(*case)
    compute = Compute(precision=precision)
    autocast_dtype = str(compute.autocast_dtype(classifier)).removeprefix("torch.")
    classifier = make_inference_only(classifier, compute)
    seconds = []
    for _ in range(repeats):
        with compute.autocast(classifier):
            start = time.perf_counter()
            maps = infercam_maps(classifier.activations, images, tags, SCALES)
            seconds.append(time.perf_counter() - start)
    return min(seconds), [m.maps for m in maps], autocast_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, torch {torch.__version__}; random weights, scenes with one or two tags")
    for case in CASES:
        given = (case, arguments.threads, arguments.repeats)
        loop, slow = in_own_process(timed_loop, *given, huge_pages=False)
        exact, same, _ = in_own_process(timed, *given, "float32")
        ours, _, autocast_dtype = in_own_process(timed, *given, "auto")
        difference = max(float(np.abs(a - b).max()) for a, b in zip(slow, same, strict=True))
        name, _, side, n = case
        print(
            f"{name} {side}×{side}, {n} images: loop {loop:.2f} s, batched {exact:.2f} s, {loop / exact:.1f} times, "
            f"largest difference {difference:.1e}; as a run does it, in {autocast_dtype}, {ours:.2f} s, "
            f"{loop / ours:.1f} times",
            flush=True,
        )


def in_own_process(function: Callable[..., T], *arguments: Any, huge_pages: bool = True) -> T:
    os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(huge_pages))  # as tagmask sets it where it is imported before torch
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
