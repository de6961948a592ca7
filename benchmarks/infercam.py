"""Time class-conditional inference against a plain loop over pieces and scales with batch size 1.

Both run one after the other with the same number of threads, each in its own process, the loop with PyTorch's default
memory allocation. Their results are compared, too. If other programs use the machine at the same time, set
OMP_WAIT_POLICY=passive, so that waiting threads do not spin.

Run: python benchmarks/infercam.py [--threads 2]
"""

from __future__ import annotations

import argparse
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
from tagmask.methods.infercam import InferCam, infercam_maps
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.inference import prepare_for_inference_inplace

T = TypeVar("T")
Case = tuple[str, int, int, int]
"""Backbone, output stride, side of the images in pixels, number of images."""

SCALES = (1.0, 0.5, 1.5, 2.0)
CASES: list[Case] = [  # the sizes of the demo, of runs on a CPU, and of the papers
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
    split: bool = True,
) -> np.ndarray:
    """Compute the maps of one image, piece by piece and view by view.

    Args:
        activations: maps images [B, 3, H, W] to activations [B, K, h, w].
        image: [3, H, W] normalized.
        tags: class ids.
        scales: factors by which pieces are resized.
        split: whether the image is divided into quadrants.

    Returns:
        [K, H, W] float32.
    """
    height, width = image.shape[1:]
    boxes = [(0, height, 0, width)]
    if split and len(tags) < 3:
        buffer = (10, 20)[len(tags) - 1]
        centers = [ndimage.center_of_mass(m) for m in multi_scale(activations, image, tags, scales).numpy()]
        low_y, low_x = (min(int(c[axis]) for c in centers) - buffer for axis in (0, 1))
        high_y, high_x = (max(int(c[axis]) for c in centers) + buffer for axis in (0, 1))
        rows = [(0, min(high_y, height)), (max(low_y, 0), height)]
        columns = [(0, min(high_x, width)), (max(low_x, 0), width)]
        boxes = [(*r, *c) for r in rows for c in columns]
    merged = np.zeros((len(tags), height, width), np.float32)
    for top, bottom, left, right in boxes:
        piece = image[:, top:bottom, left:right].clone()
        mean = piece.mean((1, 2))
        running = torch.zeros(len(tags), *piece.shape[1:])
        count = 0
        for _ in range(5):
            running = running.maximum(multi_scale(activations, piece, tags, scales))
            found = running.amax(0) >= 0.7
            grown, count = int(found.sum()) - count, int(found.sum())
            if grown < 0.02 * found.numel():
                break
            for channel in range(3):
                piece[channel][found] = mean[channel]
        merged[:, top:bottom, left:right] = np.maximum(merged[:, top:bottom, left:right], running.numpy())
    return merged


def multi_scale(
    activations: Callable[[Tensor], Tensor], piece: Tensor, tags: Sequence[int], scales: Sequence[float]
) -> Tensor:
    """Compute multi-scale CAMs with horizontal flips of a piece [3, h, w]: [K, h, w], with 1 as their maxima."""
    height, width = piece.shape[1:]
    summed = torch.zeros(len(tags), height, width)
    for scale in scales:
        side = [max(1, round(n * scale)) for n in (height, width)]
        view = F.interpolate(piece[None], side, mode="bilinear", antialias=scale < 1) if scale != 1 else piece[None]
        both = activations(view)[0] + activations(view.flip(3))[0].flip(2)
        chosen = both[[t - 1 for t in tags]][None]
        summed += F.interpolate(chosen, (height, width), mode="bilinear", align_corners=False)[0]
    return summed / (summed.amax((1, 2), keepdim=True) + 1e-5)


def on_grid(maps: np.ndarray) -> np.ndarray:
    """Average the four pixels around the center of each 4×4 cell of maps [K, H, W]; H and W are multiples of 4."""
    return (maps[:, 1::4, 1::4] + maps[:, 2::4, 1::4] + maps[:, 1::4, 2::4] + maps[:, 2::4, 2::4]) / 4


def make_inputs(name: str, stride: int, side: int, num_images: int) -> tuple[Classifier, Tensor, list[tuple[int, ...]]]:
    """Return a random classifier, scenes with one or two tags, and their tags: the same in every process."""
    torch.manual_seed(0)
    classifier = Classifier(Backbone(name, "none", stride), tuple("abcdef")).eval()
    scenes = [s for s in (make_scene(i, size=side) for i in range(4 * num_images)) if len(s.tags) < 3][:num_images]
    images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in scenes]) / 127.5 - 1
    return classifier, images, [s.tags for s in scenes]


def time_loop(case: Case, threads: int, repeats: int) -> tuple[float, list[np.ndarray]]:
    """Return the seconds of the plain loop (the shortest of `repeats` runs), and the maps [K, h, w] of each image."""
    torch.set_num_threads(threads)
    classifier, images, tags = make_inputs(*case)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        maps = [plain_loop(classifier.activations, x, t) for x, t in zip(images, tags, strict=True)]
        seconds.append(time.perf_counter() - start)
    return min(seconds), [on_grid(m) for m in maps]


def time_tagmask(case: Case, threads: int, repeats: int, precision: Precision) -> tuple[float, list[np.ndarray], str]:
    """Return the seconds of tagmask's own inference, the maps of each image, and the dtype of the network."""
    torch.set_num_threads(threads)
    classifier, images, tags = make_inputs(*case)
    compute = Compute(precision=precision)
    autocast_dtype = str(compute.autocast_dtype(classifier)).removeprefix("torch.")
    classifier = prepare_for_inference_inplace(classifier, compute)
    settings = InferCam(scales=SCALES)
    seconds = []
    for _ in range(repeats):
        with compute.autocast(classifier):
            start = time.perf_counter()
            maps = infercam_maps(classifier.activations, images, tags, settings)
            seconds.append(time.perf_counter() - start)
    return min(seconds), [m.maps for m in maps], autocast_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, torch {torch.__version__}; random weights, scenes with one or two tags")
    for case in CASES:
        common = (case, arguments.threads, arguments.repeats)
        loop, loop_maps = call_in_new_process(time_loop, *common, huge_pages=False)
        float32, float32_maps, _ = call_in_new_process(time_tagmask, *common, "float32")
        auto, _, dtype = call_in_new_process(time_tagmask, *common, "auto")
        difference = max(float(np.abs(a - b).max()) for a, b in zip(loop_maps, float32_maps, strict=True))
        name, _, side, num_images = case
        print(
            f"{name} {side}×{side}, {num_images} images: loop {loop:.2f} s, tagmask in float32 {float32:.2f} s "
            f"({loop / float32:.1f} times as fast, largest difference {difference:.1e}), with the default precision "
            f"({dtype}) {auto:.2f} s ({loop / auto:.1f} times as fast)",
            flush=True,
        )


def call_in_new_process(function: Callable[..., T], *arguments: Any, huge_pages: bool = True) -> T:
    """Call a function in a new process, with or without transparent huge pages."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = str(int(huge_pages))  # tagmask sets it if it is imported before torch
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    main()
