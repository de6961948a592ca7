"""Response maps: images a second of the pipeline's stage, of a plain loop, and of the bare forward passes.

    python benchmarks/maps.py [--backbone resnet50] [--images 16] [--threads 2]

The plain loop is what one writes first: batch 1, float32, one scale and one mirror image at a time, every class
resized, in a process with PyTorch's default allocation. The bare forward passes are the network alone on the very
batches of the stage (all scales, mirrored, same number format, norms folded into its convolutions likewise). All three
run in turn, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (375, 500)
TAGS, CLASSES = 2, 20


def main() -> None:
    arguments = _arguments()
    if arguments.side:
        print(json.dumps(_SIDES[arguments.side](arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_images(Path(folder), arguments.images)
        command = [sys.executable, __file__, "--folder", folder, "--images", str(arguments.images)]
        command += ["--backbone", arguments.backbone, "--threads", str(arguments.threads)]
        found = {}
        for side in _SIDES:
            environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
            if side == "plain loop":
                environment["THP_MEM_ALLOC_ENABLE"] = "0"
            run = subprocess.run(
                [*command, "--side", side], env=environment, capture_output=True, text=True, check=True
            )
            found[side] = json.loads(run.stdout.splitlines()[-1])
    print(f"{arguments.backbone}, {SIZE[1]}x{SIZE[0]}, {TAGS} tags, 4 scales + mirror, {arguments.threads} threads")
    for side, figures in found.items():
        print(f"  {side:14} {figures.pop('rate'):6.2f} images/s   " + ", ".join(f"{k} {v}" for k, v in figures.items()))


def stage(arguments: argparse.Namespace) -> dict[str, float | str]:
    """The pipeline's own stage, from files to files."""
    from tagmask.compute import Compute
    from tagmask.methods.cam import make_maps
    from tagmask.progress import no_progress
    from tagmask.stage import StageContext

    classifier, images = _classifier(arguments), _samples(arguments)
    compute = Compute(workers=1)
    with tempfile.TemporaryDirectory() as out:
        warm = StageContext(Path(out) / "warm", images, {}, 0, compute, no_progress, print)
        make_maps(classifier, warm)
        context = StageContext(Path(out) / "maps", images, {}, 0, compute, no_progress, print)
        started = time.perf_counter()
        make_maps(classifier, context)
        seconds = time.perf_counter() - started
        size = sum(f.stat().st_size for f in Path(out, "maps").rglob("*.safetensors")) / len(images)
        return {
            "rate": len(images) / seconds,
            "number format": str(compute.autocast_dtype(classifier)).removeprefix("torch."),
            "MB on disk an image": round(size / 1e6, 3),
            "waiting for data": f"{100 * _loading_share(images, compute, seconds):.1f} %",
        }


def bare(arguments: argparse.Namespace) -> dict[str, float]:
    """The network alone, on the batches of the stage."""
    import torch

    from tagmask.compute import Compute
    from tagmask.methods.cam import SCALES
    from tagmask.models.inference import prepare_for_inference, scaled

    compute = Compute()
    classifier = prepare_for_inference(_classifier(arguments), compute)
    together = max(1, compute.batch_pixels // (SIZE[0] * SIZE[1]))
    group_by_size = [torch.randn(2 * together, 3, *scaled(SIZE, scale)) for scale in SCALES]
    group_by_size = [batch.contiguous(memory_format=torch.channels_last) for batch in group_by_size]
    rounds = -(-arguments.images // together)
    with torch.inference_mode(), compute.autocast(classifier):
        for batch in group_by_size:
            classifier.activations(batch)
        started = time.perf_counter()
        for _ in range(rounds):  # as long as the stage takes, which is measured once, too
            for batch in group_by_size:
                classifier.activations(batch)
    return {"rate": rounds * together / (time.perf_counter() - started)}


def plain_loop(arguments: argparse.Namespace) -> dict[str, float]:
    """Batch 1, float32, one view at a time."""
    import torch
    import torch.nn.functional as F

    from tagmask.methods.cam import SCALES
    from tagmask.models.inference import scaled

    classifier, images = _classifier(arguments), _samples(arguments)
    classifier = classifier.to(memory_format=torch.contiguous_format)
    mean, std = torch.tensor(classifier.backbone.mean), torch.tensor(classifier.backbone.std)
    grid = (-(-SIZE[0] // 4), -(-SIZE[1] // 4))

    def one(sample: object) -> None:
        pixels = torch.from_numpy(np.array(Image.open(sample.image).convert("RGB")))  # type: ignore[attr-defined]
        image = ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
        total = torch.zeros(CLASSES, *grid)
        for scale in SCALES:
            view = F.interpolate(image, scaled(SIZE, scale), mode="bilinear")
            for mirrored in (False, True):
                maps = classifier.activations(view.flip(3) if mirrored else view)
                total += F.interpolate(maps.flip(3) if mirrored else maps, grid, mode="bilinear")[0]
        total /= total.amax((1, 2), keepdim=True) + 1e-5
        np.save(Path(arguments.folder) / "loop.npy", total.numpy())

    with torch.inference_mode():
        one(images.samples[0])
        started = time.perf_counter()
        for sample in images.samples:
            one(sample)
    return {"rate": len(images) / (time.perf_counter() - started)}


def _loading_share(images: object, compute: object, seconds: float) -> float:
    """The seconds to load the same batches with nothing else to do, of the stage's."""
    from tagmask.data.loading import whole_images
    from tagmask.stage import group_by_size

    started = time.perf_counter()
    for _ in whole_images(group_by_size(images.samples, 16, compute.batch_pixels), compute):  # type: ignore[attr-defined, arg-type]
        pass
    return (time.perf_counter() - started) / seconds


def _classifier(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]
    import torch

    from tagmask.models.backbone import Backbone
    from tagmask.models.classifier import Classifier

    torch.manual_seed(0)
    return Classifier(Backbone(arguments.backbone), tuple(map(str, range(CLASSES)))).eval()


def _samples(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]
    from tagmask.data.samples import Sample, TaggedImages

    files = sorted(Path(arguments.folder).glob("*.jpg"))
    samples = (Sample(f.stem, str(f), tuple(range(1, TAGS + 1)), size=SIZE) for f in files)
    return TaggedImages(tuple(map(str, range(CLASSES))), tuple(samples))


def _write_images(folder: Path, n: int) -> None:
    for i in range(n):
        noise = np.random.default_rng(i).integers(0, 255, (24, 32, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser.parse_args()


_SIDES = {"stage": stage, "plain loop": plain_loop, "bare forward": bare}

if __name__ == "__main__":
    main()
