"""Time and memory of large images: of response maps, pseudo-masks and prediction, and of a whole run.

    python benchmarks/large_images.py [--sizes 4000x3000 16000x1200 10000x10000] [--parts maps pseudo_masks predict run]

The part `run` is a run of the recipe `small` with few steps on one large image and some small ones, with ground truth
of all of them, and with the same images as held-out ones; it prints the memory of each of its phases.

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

PARTS = ("maps", "pseudo_masks", "predict", "run")
NUM_SMALL = 15  # further images of the part `run`
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
                for phase, (seconds, gigabytes) in _measure(part, Path(folder)).items():
                    print(f"{text:>12}  {phase:<32}  {seconds:7.0f} s  {gigabytes:5.2f} GB", flush=True)


def _write_image(path: Path, size: tuple[int, int]) -> None:
    """Write a picture with smooth regions and noise."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (size[0] // 50, size[1] // 50, 3), np.uint8))
    pixels = np.array(small.resize(size[::-1], Image.Resampling.BICUBIC))
    for rows in np.array_split(pixels, 50):
        rows += rng.integers(0, 8, rows.shape, np.uint8) - np.uint8(4) * (rows > 250)
    Image.fromarray(pixels).save(path, quality=90)


def _measure(part: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Return the seconds and the largest memory in GB of a part and its descendants, for each phase that it prints."""
    phases: dict[str, tuple[float, float]] = {}
    environment = {"OMP_NUM_THREADS": "2", "THP_MEM_ALLOC_ENABLE": "1", **os.environ}
    log = folder / f"{part}.log"
    with log.open("w") as file:
        command = [sys.executable, __file__, "--compute", part, str(folder)]
        process = subprocess.Popen(command, env=environment, stderr=file)
        before = time.monotonic()
        while process.poll() is None:
            gigabytes = sum(map(_proportional_set_size, _descendants(process.pid))) / 2**30
            time.sleep(SETTLE)
            phase = _phase(log.read_text()) or part
            seconds, largest = phases.get(phase, (0.0, 0.0))
            now = time.monotonic()
            phases[phase], before = (seconds + now - before, max(largest, gigabytes)), now
    if process.returncode:
        raise SystemExit(log.read_text())
    return phases


def _phase(log: str) -> str:
    """Return the last stage or loop that a log of tagmask names, e.g. "[2/3] pseudo_masks: masks"."""
    stage = loop = ""
    for line in log.splitlines():
        if "Warning: " in line or "warnings.warn(" in line:
            continue
        if not line.startswith(" "):
            stage, loop = line.partition(",")[0], ""
        elif ":" in line:
            loop = ": " + line.partition(":")[0].partition("(")[0].strip()
    return stage + loop


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
    if part == "run":
        _run(folder)
        return
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


def _run(folder: Path) -> None:
    """Carry out a run with the image of a folder and some small ones."""
    import tagmask
    from tagmask.data.images import image_size
    from tagmask.data.scenes import make_scene
    from tagmask.label_map import write_label_map

    photos = folder / "photos"
    photos.mkdir()
    (folder / "image.jpg").rename(photos / "large.jpg")
    height, width = image_size(photos / "large.jpg")
    labels = np.zeros((height, width), np.uint8)
    labels[height // 4 : height // 2, width // 4 :], labels[-height // 4 :, : width // 2] = TAGS
    write_label_map(folder / "masks" / "large.png", labels)
    del labels
    rows = [f"large.jpg,{CLASSES[0]};{CLASSES[1]}"]
    for i in range(NUM_SMALL):
        scene = make_scene(i, size=320)
        Image.fromarray(scene.image).save(photos / f"{i}.jpg")
        write_label_map(folder / "masks" / f"{i}.png", scene.mask)
        rows.append(f"{i}.jpg,{';'.join(CLASSES[k - 1] for k in np.unique(scene.mask).tolist() if k)}")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    (folder / "tags.csv").write_text("\n".join(["image,tags", *rows]))
    source = tagmask.DataSource(
        root=str(photos), tags=str(folder / "tags.csv"), masks=str(folder / "masks"),
        class_list=str(folder / "classes.txt"),
    )  # fmt: skip
    settings = ["cam.weights=none", "cam.epochs=1", "cam.batch_size=8", "segment.steps=3", "segment.batch_size=8"]
    run = tagmask.run(source, folder / "out", held_out=source, recipe="small", settings=settings, workers=2)
    run.predict_files([photos], folder / "predicted", also=["overlays"])


if __name__ == "__main__":
    main()
