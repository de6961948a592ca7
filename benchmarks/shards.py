"""Measure the time of reading many small images as files and from shards, and of prediction with one and two processes.

    python benchmarks/shards.py [--images N] [--size PIXELS] [--predict N]

The images are JPEG files of noise and gradients. Reading is what `tagmask check` does: each image is decoded once, with
two threads; then all are read again one by one in random order. Prediction is `tagmask predict` with a small network of
random weights, one thread per process, as `--shard 1/1`, and as `--shard 1/2` and `--shard 2/2` at the same time. The
loading of the libraries is not measured. Each time is the shortest of three; of prediction, the shortest of two.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from parts_at_once import Part, seconds_of_parts
from tagmask.data.shard_writer import pack_shards
from tagmask.data.source import DataSource
from tagmask.data.verify import verify_images
from tagmask.models.segmenter import Segmenter
from tagmask.predict_shards import predict_shards
from tagmask.progress import Reporter

NO_PROGRESS = Reporter().progress
REPEATS = 3


def write_images(folder: Path, num_images: int, size: int) -> None:
    """Write JPEG files, in folders of 500."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, size)[:, None, None]
    for i in range(num_images):
        path = folder / f"class {i // 500}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ramp + rng.integers(0, 56, (size, size, 3))).astype(np.uint8)).save(path)


def seconds(action: Callable[[Path], object], root: Path) -> float:
    """Return the time of an action on a data set."""
    start = time.perf_counter()
    action(root)
    return time.perf_counter() - start


def list_images(root: Path) -> None:
    """Read the ids and tags of a data set."""
    DataSource(root=str(root)).read()


def read_in_random_order(root: Path) -> None:
    """Decode each image of a data set once, in random order."""
    images = DataSource(root=str(root)).read()
    for i in np.random.default_rng(0).permutation(len(images)).tolist():
        images.samples[i].read_image()


def check(root: Path) -> None:
    """Decode each image of a data set once, in order, with two threads."""
    verify_images(DataSource(root=str(root)).read(), skip_bad=False, workers=2, progress=NO_PROGRESS)


def predict(network: Path, shards: Path, num_processes: int) -> float:
    """Return the time in seconds that so many processes take, with one thread each, without starting them."""
    with tempfile.TemporaryDirectory() as out:

        def predict_part(part: Part) -> None:
            torch.set_num_threads(1)
            predict_shards(
                network, shards, Path(out), part=part, device="cpu", precision="float32", workers=0, quiet=True
            ).check()

        return seconds_of_parts(predict_part, num_processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--size", type=int, default=96, help="the width and height in pixels")
    parser.add_argument("--predict", type=int, default=600, help="the number of images of the prediction; 0: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files, shards, network = (Path(folder) / name for name in ("files", "shards", "network"))
        write_images(files, arguments.images, arguments.size)
        images = DataSource(root=str(files)).read()
        start = time.perf_counter()
        pack_shards(images, str(shards), workers=2, progress=NO_PROGRESS)
        print(f"packing {arguments.images} images: {time.perf_counter() - start:.2f} s")
        times: dict[str, list[float]] = {}
        for _ in range(REPEATS):  # in turns, so that other work on the machine slows down both
            for name, root in (("files", files), ("shards", shards)):
                for action in (list_images, check, read_in_random_order):
                    times.setdefault(f"{action.__name__}: {name}", []).append(seconds(action, root))
        for name, values in times.items():
            print(f"{name} {min(values):.2f} s")
        if not arguments.predict:
            return
        few = Path(folder) / "few"
        pack_shards(DataSource(root=str(files), limit=arguments.predict).read(), str(few),
                    images_per_shard=max(1, arguments.predict // 8), progress=NO_PROGRESS)  # fmt: skip
        Segmenter("Unet", "test_resnet", images.classes).save(network, test={"scales": [1.0], "crf": None})
        one, two = (min(predict(network, few, n) for _ in range(2)) for n in (1, 2))
        print(f"prediction of {arguments.predict} images: one process {one:.2f} s, two {two:.2f} s ({one / two:.2f} ×)")


if __name__ == "__main__":
    main()
