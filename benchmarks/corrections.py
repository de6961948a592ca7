"""Measure how much a network gains when a part of its training masks is corrected, in several orders.

A run is made from tags. Then the masks of the first 1, 2, 5 and 10 % of the images are replaced by the ground truth, as
if a person had corrected them, in the order of the doubt of `tagmask scores` and in random orders. The network is
trained again each time, with the same seed, and measured on held-out images, whose tags it does not get. Classifier and
response maps are computed once. "training masks" is the mIoU of the network's masks of the training images before that,
with the corrected ones in them; this costs no training.

Run: python benchmarks/corrections.py DATA --out FOLDER --recipe scratch --images 200 --held-out 100 [--set KEY=VALUE]

FOLDER keeps what is finished, so that the same command resumes. The results are in FOLDER/results.json. A curve:
python benchmarks/corrections.py --plot corrections.svg "scenes=FOLDER" "photographs=OTHER"
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tagmask
from tagmask.artifacts import write_json, write_text
from tagmask.compute import Compute
from tagmask.data.samples import PngMask, ReviewedMask, TaggedImages
from tagmask.data.verify import verify_images
from tagmask.evaluate import read_ground_truth, score_masks
from tagmask.label_map import read_label_map
from tagmask.measure import confusion_matrix, iou, mean_iou
from tagmask.methods.segment import Segment
from tagmask.progress import Reporter
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder

FRACTIONS = (0.01, 0.02, 0.05, 0.1)
REPORTER = Reporter.to_stderr(quiet=True)


def train_and_measure(
    run: tagmask.Run, images: TaggedImages, held_out: TaggedImages, folder: Path, compute: Compute
) -> float:
    """Train the network of a run again with the reviewed masks of the images; return its mIoU on held-out images.

    This is what `tagmask run` does: reviewed masks replace the pseudo-masks in the training. Only the masks of the
    training images, which are not needed, are not made.
    """
    method = run.recipe.stages["segment"]
    assert isinstance(method, Segment)
    inputs = {kind: StageFolder(run.folder / name) for kind, name in method.inputs.items()}
    stage = StageFolder(folder)
    method.train(StageContext(stage, images, compute, REPORTER, inputs, run.recipe.seed))
    untagged = replace(held_out, samples=tuple(replace(sample, tags=None) for sample in held_out.samples))
    tagmask.Predictor.load(folder, compute).write_missing_masks(stage, untagged, REPORTER)
    miou = score_masks(held_out, stage, compute, REPORTER).miou
    shutil.rmtree(folder)
    return float(miou)


def correct(images: TaggedImages, ids: Sequence[str]) -> TaggedImages:
    """Return the images, of which some have their ground truth as reviewed mask."""
    chosen = set(ids)
    samples = []
    for sample in images.samples:
        assert isinstance(sample.mask, PngMask)
        samples.append(replace(sample, reviewed=ReviewedMask(sample.mask)) if sample.id in chosen else sample)
    return replace(images, samples=tuple(samples))


def miou_with_corrected(run: tagmask.Run, images: TaggedImages, ids: Sequence[str]) -> float:
    """Return the mIoU of the network's masks of the training images, some of which are replaced by the ground truth."""
    num_labels, chosen = len(images.classes) + 1, set(ids)
    total = np.zeros((num_labels, num_labels + 1), np.int64)
    for sample in images.samples:
        preds = read_label_map(run.folder / "segment" / "masks" / f"{sample.id}.png")
        target = read_ground_truth(sample, (preds.shape[0], preds.shape[1]))
        total += confusion_matrix(target if sample.id in chosen else preds, target, num_labels)
    return float(mean_iou(iou(total)))


def measure(arguments: argparse.Namespace) -> None:
    """Make the run, then measure one point after the other, and print a table."""
    classes = tuple(arguments.classes.split(",")) if arguments.classes else None
    source = tagmask.DataSource(root=arguments.data, split="train", classes=classes, limit=arguments.images)
    run = tagmask.run(
        source, arguments.out / "run", recipe=arguments.recipe, settings=arguments.settings, seed=arguments.seed,
        device="cpu", workers=0, precision="float32",
    )  # fmt: skip
    images, _ = run.read_and_verify_images(REPORTER)
    held_out_source = source.model_copy(update={"split": "val", "limit": arguments.held_out})
    held_out = verify_images(
        held_out_source.read().with_classes(images.classes), skip_bad=False, workers=1, progress=REPORTER.progress,
        remembered=arguments.out / "held_out.json",
    )  # fmt: skip
    scores = run.scores(stage="segment", quiet=True)
    miou_by_id = {score.image: score.miou for score in scores}
    orders = {"doubt": [score.image for score in scores]}
    for draw in range(1, arguments.random + 1):
        shuffled = np.random.default_rng(draw).permutation(sorted(miou_by_id))
        orders[f"random {draw}"] = shuffled.tolist()
    results_path = arguments.out / "results.json"
    results: dict[str, dict[str, Any]] = json.loads(results_path.read_text()) if results_path.exists() else {}
    points = [("none", 0.0), *((order, fraction) for fraction in FRACTIONS for order in orders)]
    for order, fraction in points:
        name = f"{order}, {100 * fraction:g} %"
        if name not in results:
            start = time.process_time()
            ids = orders.get(order, [])[: max(1, round(fraction * len(images)))] if fraction else []
            results[name] = {
                "order": order, "fraction": fraction, "images": len(ids),
                "mIoU before": float(np.mean([miou_by_id[i] for i in ids])) if ids else None,
                "training masks": miou_with_corrected(run, images, ids),
                "network": train_and_measure(
                    run, correct(images, ids), held_out, arguments.out / "point", run.compute
                ),
                "CPU seconds": round(time.process_time() - start),
            }  # fmt: skip
            write_json(results_path, results)
        point = results[name]
        before = "" if point["mIoU before"] is None else f"{100 * point['mIoU before']:.1f}"
        print(
            f"{name:16} {point['images']:4} images {before:>6} before  training masks "
            f"{100 * point['training masks']:5.1f}  network {100 * point['network']:5.1f}  {point['CPU seconds']:5} s",
            flush=True,
        )


def plot(folders: dict[str, Path], path: Path) -> None:
    """Draw the mIoU of the network against the corrected fraction, one panel per data set, as an SVG file."""
    width, height, left, top, gap = 330, 220, 50, 46, 70
    parts = []
    for number, (title, folder) in enumerate(folders.items()):
        results = list(json.loads((folder / "results.json").read_text()).values())
        values = [100 * point["network"] for point in results]
        low, high = np.floor(min(values) - 1), np.ceil(max(values) + 1)
        x0 = left + number * (width + gap)

        def at(fraction: float, value: float, x0: int = x0, low: float = low, high: float = high) -> str:
            y = top + height * (high - value) / (high - low)
            return f"{x0 + width * fraction / FRACTIONS[-1]:.1f},{y:.1f}"

        parts.append(f'<text x="{x0}" y="{top - 24}" class="title">{title}</text>')
        parts.append(f'<text x="{x0}" y="{top - 8}">mIoU of the network on held-out images, %</text>')
        step = max(1, round((high - low) / 6))
        for value in np.arange(low, high + 0.1, step):
            y = float(at(0, value).split(",")[1])
            parts.append(f'<path d="M{x0} {y}h{width}" class="grid"/>')
            parts.append(f'<text x="{x0 - 6}" y="{y + 4}" text-anchor="end">{value:g}</text>')
        for fraction in (0.0, *FRACTIONS):
            x = at(fraction, low).split(",")[0]
            label = f"{100 * fraction:g}"
            parts.append(f'<text x="{x}" y="{top + height + 18}" text-anchor="middle">{label}</text>')
        caption = "corrected training masks, %"
        parts.append(f'<text x="{x0 + width}" y="{top + height + 36}" text-anchor="end">{caption}</text>')
        start = next(point for point in results if point["order"] == "none")
        for order in dict.fromkeys(point["order"] for point in results if point["order"] != "none"):
            line = [start, *(point for point in results if point["order"] == order)]
            points = [at(point["fraction"], 100 * point["network"]) for point in line]
            style = "doubt" if order == "doubt" else "random"
            parts.append(f'<polyline points="{" ".join(points)}" class="{style}"/>')
            parts += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" class="{style}"/>' for p in points]
    total = max(left + len(folders) * (width + gap), 520)  # the width of the legend
    legend = [
        f'<path d="M{left} {top + height + 54}h24" class="doubt"/>',
        f'<text x="{left + 30}" y="{top + height + 58}">in the order of doubt</text>',
        f'<path d="M{left + 190} {top + height + 54}h24" class="random"/>',
        f'<text x="{left + 220}" y="{top + height + 58}">in random order (each line is one order)</text>',
    ]
    style = (
        "text{font:13px sans-serif;fill:#333}.title{font-weight:bold;font-size:15px}.grid{stroke:#ddd}"
        "polyline,path{fill:none}.doubt{stroke:#1f5fa8;stroke-width:2.5}.random{stroke:#c66a12;stroke-width:1.5}"
        "circle.doubt{fill:#1f5fa8}circle.random{fill:#c66a12}"
    )
    bottom = top + height + 72
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {bottom}" width="{total}" height="{bottom}">',
        f"<style>{style}</style>",
        '<rect width="100%" height="100%" fill="#fff"/>',
        *parts,
        *legend,
        "</svg>",
    ]
    write_text(path, "\n".join(lines) + "\n")


def main() -> None:
    """Measure, or draw the curves of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="data in the layout of VOC with splits train and val; or TITLE=FOLDER")
    parser.add_argument("--out", type=Path, help="folder for the run and the results")
    parser.add_argument("--classes", help="class names, separated by commas")
    parser.add_argument("--images", type=int, default=200, help="training images")
    parser.add_argument("--held-out", type=int, default=100, help="held-out images")
    parser.add_argument("--recipe", default="scratch")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", type=int, default=2, help="number of random orders")
    parser.add_argument("--plot", type=Path, help="draw the curves of the folders TITLE=FOLDER to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.plot:
        pairs = (text.partition("=") for text in arguments.data)
        plot({title: Path(folder) for title, _, folder in pairs}, arguments.plot)
        return
    [arguments.data] = arguments.data
    if arguments.out is None:
        parser.error("give --out")
    measure(arguments)


if __name__ == "__main__":
    main()
