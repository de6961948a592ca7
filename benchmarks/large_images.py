"""Time and memory of large images: response maps, pseudo-masks, and a segmentation network with its dense CRF.

    python benchmarks/large_images.py [--sizes 4000x3000 16000x1200 10000x10000] [--parts maps pseudo_masks predict]

Each part runs in a process of its own with the networks of the recipe `small` (random weights, 20 classes, two of them
tagged), with two threads and two workers. The memory is the largest sum over this process and its workers of the
proportional set size (memory that processes share counts once), measured every 0.2 seconds. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = ("maps", "pseudo_masks", "predict")
SETTLE = 0.2  # seconds between two measurements
CLASSES = tuple("abcdefghijklmnopqrst")
TAGS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["4000x3000", "16000x1200", "10000x10000"])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--compute", nargs=2, help=argparse.SUPPRESS)  # a part, and its folder
    arguments = parser.parse_args()
    if arguments.compute:
        _compute(arguments.compute[0], Path(arguments.compute[1]))
        return
    for text in arguments.sizes:
        width, height = map(int, text.split("x"))
        with tempfile.TemporaryDirectory() as folder:
            _write_image(Path(folder) / "image.jpg", (height, width))
            for part in arguments.parts:
                seconds, gigabytes = _measure([sys.executable, __file__, "--compute", part, folder])
                print(f"{text:>12}  {part:<12}  {seconds:7.0f} s  {gigabytes:5.2f} GB", flush=True)


def _write_image(path: Path, size: tuple[int, int]) -> None:
    """Write a picture with smooth regions and noise."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (size[0] // 50, size[1] // 50, 3), np.uint8))
    pixels = np.array(small.resize(size[::-1], Image.Resampling.BICUBIC))
    for rows in np.array_split(pixels, 50):
        rows += rng.integers(0, 8, rows.shape, np.uint8) - np.uint8(4) * (rows > 250)
    Image.fromarray(pixels).save(path, quality=90)


def _measure(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the largest memory in GB of a command and its descendants."""
    start, largest = time.monotonic(), 0
    environment = {"OMP_NUM_THREADS": "2", "THP_MEM_ALLOC_ENABLE": "1", **os.environ}
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None:
        largest = max(largest, sum(map(_proportional_set_size, _descendants(process.pid))))
        time.sleep(SETTLE)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.monotonic() - start, largest / 2**30


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # the process has ended
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, pending = [], [pid]
    while pending:
        found.append(pending.pop())
        pending += children.get(found[-1], [])
    return found


def _proportional_set_size(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def _compute(part: str, folder: Path) -> None:
    import torch

    from tagmask.compute import Compute
    from tagmask.data.images import image_size
    from tagmask.data.samples import Sample, TaggedImages
    from tagmask.methods.cam import make_missing_maps
    from tagmask.methods.pseudo_masks import PseudoMasks
    from tagmask.methods.segment import write_missing_masks
    from tagmask.models.backbone import Backbone
    from tagmask.models.classifier import Classifier
    from tagmask.models.inference import prepare_for_inference_inplace
    from tagmask.models.segmenter import InferenceConfig, Segmenter
    from tagmask.progress import Reporter
    from tagmask.recipe import load_recipe
    from tagmask.refine.settings import NETWORK_CRF
    from tagmask.stage import StageContext
    from tagmask.stage_folder import StageFolder

    torch.manual_seed(0)
    image = folder / "image.jpg"
    tags = None if part == "predict" else TAGS
    samples = tuple(Sample(str(i), str(image), tags, size=image_size(image)) for i in range(1 if tags is None else 2))
    maps = StageFolder(folder / "maps")
    context = StageContext(
        StageFolder(folder / part), TaggedImages(CLASSES, samples), Compute(workers=2), Reporter(), {"maps": maps}, 0
    )
    if part == "maps":
        classifier = Classifier(Backbone("mobilenetv2_100"), CLASSES)
        make_missing_maps(classifier, context, load_recipe("small", ()).stages["cam"])  # type: ignore[arg-type]
    elif part == "pseudo_masks":
        PseudoMasks(threshold=0.5).run(context)
    else:
        network = Segmenter("DeepLabV3Plus", "mobilenetv2_100", CLASSES)
        prepare_for_inference_inplace(network, context.compute)
        write_missing_masks(network, context, InferenceConfig(scales=(1.0,), crf=NETWORK_CRF), batch_size=8)


if __name__ == "__main__":
    main()
