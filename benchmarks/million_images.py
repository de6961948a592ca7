"""Measure the time and memory of `tagmask check`, `predict` and `evaluate` on many small images.

    taskset -c 0 env OMP_NUM_THREADS=1 python benchmarks/million_images.py [--images N] [--files] [--out FOLDER]

The images have 32×32 pixels: noise, and a rectangle in the color of its class. They are written as shards of 1,000
images, with tags and ground-truth masks; with --files, the same images as files, and the masks in another folder. The
network is small and has random weights. Each command is a process of its own, with one worker. "CPU" is the time that
the process and its workers had on a core, in seconds and in microseconds per image, with the seconds that it takes
to import the libraries. "memory" is the largest resident memory of one of the processes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tagmask.data.shard_format import ShardIndex, ShardName
from tagmask.data.shard_writer import IMAGES_PER_SHARD, write_shard
from tagmask.label_map import encode_label_map
from tagmask.models.segmenter import Segmenter

COLORS = {"blue": (40, 40, 220), "green": (40, 220, 40), "red": (220, 40, 40)}
CLASSES = tuple(COLORS)
SIZE = 32  # pixels
STEPS = ("check", "predict", "evaluate")

# A process of its own, because the memory of a child process is at least that of its parent when it was started.
LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(status != 0)
"""


def make_image(index: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return an image [32, 32, 3] uint8, its mask [32, 32] uint8 and its tag, which depend on the index only."""
    rng = np.random.default_rng(index)
    image = rng.integers(80, 140, (SIZE, SIZE, 3), np.uint8)
    tag, top, left = (int(value) for value in rng.integers((1, 0, 0), (len(CLASSES) + 1, 16, 16)))
    height, width = (int(value) for value in rng.integers(8, 17, 2))
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[top : top + height, left : left + width] = tag
    image[labels == tag] = COLORS[CLASSES[tag - 1]]
    return image, labels, tag


def write_shards(folder: Path, num_images: int) -> None:
    """Write the images with their tags and masks as shards."""
    total = -(-num_images // IMAGES_PER_SHARD)
    for number in range(total):
        indexes = range(number * IMAGES_PER_SHARD, min(num_images, (number + 1) * IMAGES_PER_SHARD))
        ids, tags = [f"{i:07}" for i in indexes], list[int]()

        def rows(indexes: range = indexes, tags: list[int] = tags) -> Iterator[dict[str, object]]:
            for i in indexes:
                image, labels, tag = make_image(i)
                tags.append(tag)
                yield {
                    "id": f"{i:07}", "tags": [CLASSES[tag - 1]], "split": None,
                    "image": {"bytes": encode(image), "path": f"{i:07}.jpg"},
                    "mask": {"bytes": encode_label_map(labels), "path": f"{i:07}.png"},
                }  # fmt: skip

        def make_index(ids: list[str] = ids, tags: list[int] = tags, number: int = number) -> ShardIndex:
            return ShardIndex(
                kind="images", key=str(number), classes=CLASSES, ids=tuple(ids), suffixes=(".jpg",) * len(ids),
                tags=tuple((tag,) for tag in tags), has_mask="1" * len(ids),
            )  # fmt: skip

        write_shard(str(folder / str(ShardName("data", number, total))), "images", CLASSES, rows(), make_index)


def write_files(folder: Path, masks: Path, num_images: int) -> None:
    """Write the images as JPEG files in folders of 1,000, a table of the tags, and the masks as PNG files."""
    lines = ["image,tags"]
    for i in range(num_images):
        image, labels, tag = make_image(i)
        name = f"{i // 1000:04}/{i:07}"
        for path, content in ((folder / f"{name}.jpg", encode(image)),
                              (masks / f"{name}.png", encode_label_map(labels))):  # fmt: skip
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        lines.append(f"{name}.jpg,{CLASSES[tag - 1]}")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")


def encode(image: np.ndarray) -> bytes:
    """Return the content of a JPEG file."""
    from io import BytesIO

    content = BytesIO()
    Image.fromarray(image).save(content, "JPEG")
    return content.getvalue()


def measure(name: str, num_images: int, command: list[str]) -> None:
    """Run a command of tagmask, and print the time and the memory that it takes."""
    start = time.perf_counter()
    launcher = [sys.executable, "-S", "-c", LAUNCHER, sys.executable, "-m", "tagmask"]
    process = subprocess.run([*launcher, *command], stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise SystemExit(f"tagmask {name} has failed")
    seconds = time.perf_counter() - start
    cpu, kilobytes = map(float, process.stdout.split())
    print(
        f"{name:8} {num_images:9,} images: {seconds:7.1f} s ({num_images / seconds:6.0f} images/s), CPU {cpu:7.1f} s "
        f"({1e6 * cpu / num_images:5.0f} µs per image), memory {kilobytes / 1024:6.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--files", action="store_true", help="write files instead of shards")
    parser.add_argument("--out", type=Path, help="keep everything in this folder; what is there is used again")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        data, truth, network, masks = (out / name for name in ("data", "ground_truth", "network", "masks"))
        if not data.exists():
            start = time.process_time()
            if arguments.files:
                write_files(data, truth, arguments.images)
            else:
                write_shards(data, arguments.images)
            print(f"the images are written: CPU {time.process_time() - start:.1f} s", flush=True)
        torch.manual_seed(0)
        Segmenter("deeplabv2", "test_resnet", CLASSES).save(network, test={"scales": [1.0], "crf": None})
        given = [str(data), *(["--masks", str(truth)] if arguments.files else [])]
        predicted = masks / "masks" if arguments.files else masks
        commands = {
            "check": ["check", *given],
            "predict": ["predict", str(network), str(data), "--out", str(masks), "--single-pass", "--device", "cpu"],
            "evaluate": ["evaluate", str(predicted), "--no-boundary", "--device", "cpu", "--data", *given],
        }
        for name in arguments.steps:
            if name == "predict":
                shutil.rmtree(masks, ignore_errors=True)
            measure(name, arguments.images, [*commands[name], "--workers", "1"])


if __name__ == "__main__":
    main()
