"""Measure stages with shards: two processes, which make a part each, against one.

Run: python benchmarks/parts.py [--images 120] [--size 320] [--images-per-shard 10]

Each process has one thread and no workers. It makes the parts 1/1, or 1/2 and 2/2 at the same time, of the response
maps (CAM of a MobileNetV2), of the pseudo-masks (dense CRF) and of the network's masks, all with weights that have
hardly learned. The loading of the libraries is not measured. Each time is the shorter one of two.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

import tagmask
from parts_at_once import seconds_of_parts
from tagmask import stage_shards
from tagmask.data.scenes import write_scenes
from tagmask.refine.dense_crf import compile_crf_kernels

SETTINGS = [
    "cam.weights=none", "cam.backbone=mobilenetv2_100", "cam.epochs=1", "cam.crop_size=64", "cam.lr=0.0001",
    "segment.steps=2", "segment.crop_size=64",
]  # fmt: skip
REPEATS = 2


def run(scenes: Path, out: Path, execution: tagmask.Execution) -> None:
    """Run the recipe `small` with one thread, as far as `execution` says."""
    torch.set_num_threads(1)
    source = tagmask.DataSource(root=str(scenes), split="train")
    with suppress(tagmask.RunPaused):
        tagmask.run(
            source, out, recipe="small", settings=SETTINGS, device="cpu", precision="float32", workers=0,
            execution=execution, quiet=True,
        )  # fmt: skip


def seconds_of_stage(scenes: Path, out: Path, num_processes: int) -> float:
    """Return the time that so many processes take for a stage that is ready, in a copy of the run folder."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(out, copy)
        return seconds_of_parts(lambda part: run(scenes, copy, tagmask.Execution(part=part)), num_processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--size", type=int, default=320, help="sides of the scenes in pixels")
    parser.add_argument("--images-per-shard", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compile_crf_kernels(print)
    stage_shards.IMAGES_PER_SHARD = arguments.images_per_shard  # the processes are forked
    with tempfile.TemporaryDirectory() as folder:
        scenes, shards = Path(folder) / "scenes", Path(folder) / "shards"
        write_scenes(scenes, num_train=arguments.images, num_val=0, size=arguments.size)
        for name in ("cam", "pseudo_masks", "segment"):
            run(scenes, shards, tagmask.Execution(prepare=True))
            one_process, two = (
                min(seconds_of_stage(scenes, shards, count) for _ in range(REPEATS)) for count in (1, 2)
            )
            rate = arguments.images / one_process
            print(
                f"{name}: one process {one_process:.1f} s ({rate:.1f} images/s), two {two:.1f} s "
                f"({one_process / two:.2f} times as fast)"
            )
            run(scenes, shards, tagmask.Execution(part=(1, 1)))


if __name__ == "__main__":
    main()
