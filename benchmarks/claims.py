"""What the papers claim, measured on generated scenes: every method's maps, pseudo-masks and network, over seeds.

Run: python benchmarks/claims.py [--out claims] [--seeds 3] [--images 1000] [--methods "CAM;AMN"] [--workers 2]

Prints a Markdown table of mean ± standard deviation in % mIoU. Five to ten minutes a method and seed on two cores;
stopped, the same command goes on. Each seed has scenes of its own, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import tagmask
from tagmask.artifacts import digest, read_json, write_json
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.data.scenes import write_scenes
from tagmask.data.verify import verify_images
from tagmask.evaluate import latest, score_maps, score_masks, segment_held_out
from tagmask.pipeline import run_stages
from tagmask.progress import Reporter
from tagmask.stage import mask_path

METHODS = {  # the stages that make the maps
    "CAM": ["cam"],
    "LayerCAM": ["cam", "layercam"],
    "infercam": ["cam", "infercam"],
    "conditional, one look": ["cam", "conditional_once"],
    "ReCAM": ["cam", "recam"],
    "ReCAM, sign kept": ["cam", "recam_signed"],
    "AMN": ["cam", "amn"],
    "ReCAM, AMN": ["cam", "recam_signed", "amn"],
}
DEFAULT = 0.30  # the threshold that the field takes on CAM where nothing is known
SEEDS = {"fg": 0.4, "bg": 0.2}  # around the threshold at which these maps are best after the CRF
SMALL = {"batch_size": 32, "crop_size": 96}
RECAM = {**SMALL, "epochs": 4, "long_side_range": (96, 112), "optimizer": "adamw", "lr": 1e-5, "head_lr": 1e-2}
SEGMENT = {
    **SMALL, "architecture": "Unet", "freeze_norm": False, "epochs": 10, "optimizer": "adamw", "lr": 5e-4,
    "head_factor": 2, "scales": (1.0,),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {  # for small pictures and from scratch; the rest is the papers'
    "cam": {
        "backbone": "resnet18", "weights": "none", "options": {"channels": [32, 64, 128, 256]}, "output_stride": 8,
        "frozen_stride": 0, "freeze_norm": False, "epochs": 16, "batch_size": 16, "crop_size": 96, "long_side_range": (96, 112),
        "optimizer": "adamw", "lr": 2e-3, "head_lr": 2e-3, "weight_decay": 0.01,
    },
    "layercam": {},
    "infercam": {},
    "conditional_once": {"method": "infercam", "iterations": 1, "scales": (0.75, 1.0, 1.25), "enlarge": 1.5},
    "recam": RECAM,
    "recam_signed": {**RECAM, "method": "recam", "keep_sign": True},
    "amn": {
        **SMALL, "seeds": SEEDS, "batch_size": 16, "output_stride": 8, "epochs": 5,
        "scale": (0.8, 1.3), "lr": 3e-4, "head_lr": 3e-3,
    },
    "crf": {},
    "unsure": {"method": "crf", "margin": 0.2},
    "irn": {  # steps: the grid of such pictures has 24 × 24 cells: 256 steps would spread everything over all of it
        **SMALL, "seeds": SEEDS, "epochs": 8, "output_stride": 8, "pair_radius": 5, "scale": (0.8, 1.3),
        "walk": {"steps": 16}, "threshold": 0.35,
    },
    "segment": SEGMENT,
    "activation_aware": SEGMENT,
}  # fmt: skip
FIGURES: dict[tuple[str, ...], str] = {  # the stages after the maps, and the column of their figure
    ("crf",): "CRF", ("irn",): "IRN", ("crf", "segment"): "network",
}  # fmt: skip
FIGURES_OF_CAM: dict[tuple[str, ...], str] = {
    ("crf", "activation_aware"): "aware network",
    ("unsure", "segment"): "network of unsure masks",
    ("unsure", "activation_aware"): "aware network of unsure masks",
}
COLUMNS = ("best", "at", "default", "auto", "width", *FIGURES.values(), *FIGURES_OF_CAM.values())


def main() -> None:
    arguments = _arguments()
    compute = Compute.detect("cpu", "auto", arguments.workers)
    reporter = Reporter(Console(stderr=True))
    chosen = arguments.methods.split(";") if arguments.methods else list(METHODS)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        folder = arguments.out / f"seed-{seed}"
        images, held_out = _scenes(folder / "scenes", arguments.images, seed, compute, reporter)
        for name in chosen:
            run = folder / f"run-{digest([arguments.images, SETTINGS])}"
            file = run / f"{name} {digest([METHODS[name], DEFAULT, *FIGURES.items(), *FIGURES_OF_CAM.items()])}.json"
            if not file.exists():
                write_json(file, measure(METHODS[name], run, images, held_out, seed, compute, reporter))
            found[name].append(read_json(file))
    print(f"\n{arguments.images} scenes, {arguments.seeds} seeds; mIoU in %, mean ± standard deviation\n")
    print(_table(found))


def measure(
    stages: list[str], folder: Path, images: TaggedImages, held_out: TaggedImages, seed: int, compute: Compute,
    reporter: Reporter,
) -> dict[str, float]:  # fmt: skip
    """One method's figures; stages that methods share are made once."""
    maps = _named(stages)
    last = "-".join(stages)

    def run(*names: str) -> tuple[Path, float]:
        """Make the maps, then these stages; returns the maps' folder and the mIoU of what the last stage makes."""
        more = _named(names, f"{last}-")
        recipe = tagmask.Recipe.model_validate({"seed": seed, "stages": {**maps, **more}})
        made = run_stages(recipe, images, folder, compute=compute, reporter=reporter)
        ground_truth, masks = images, list(made.values())[-1]
        if latest(recipe, "segmenter"):
            ground_truth, masks = (
                held_out,
                segment_held_out(recipe, folder, list(more)[-1], held_out, compute, reporter),
            )
        return made[last], 100 * score_masks(ground_truth, lambda s: mask_path(masks, s), compute, reporter).miou

    after = FIGURES | FIGURES_OF_CAM if stages == ["cam"] else FIGURES
    figures = {column: run(*names)[1] for names, column in after.items()}
    curve, auto, _ = score_maps(images, run("crf")[0], compute, reporter)

    def at(threshold: float) -> float:
        return float(curve.miou[np.abs(curve.thresholds - threshold).argmin()])

    return {
        "best": 100 * curve.best_miou, "at": curve.best_threshold, "default": 100 * at(DEFAULT),
        "auto": 100 * at(auto), "width": curve.width, **figures,
    }  # fmt: skip


def _named(stages: Sequence[str], before: str = "") -> dict[str, dict[str, Any]]:
    """The stages as in a recipe, each named after itself and those before it."""
    return {before + "-".join(stages[: n + 1]): {"method": name, **SETTINGS[name]} for n, name in enumerate(stages)}


def _scenes(folder: Path, n: int, seed: int, compute: Compute, reporter: Reporter) -> tuple[TaggedImages, TaggedImages]:
    write_scenes(folder, num_train=n, num_val=200, seed=seed)

    def read(split: str) -> TaggedImages:
        found = tagmask.DataSource(root=str(folder), split=split).read()
        return replace(
            verify_images(found, skip_bad=False, workers=compute.workers, progress=reporter.progress),
            name=f"{split} {seed}",
        )

    return read("train"), read("val")


def _table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, seeds in found.items():
        cells = [_cell([figures.get(column, np.nan) for figures in seeds], column) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], column: str) -> str:
    if np.isnan(values).any():
        return "–"
    digits = 2 if column in ("at", "width") else 1
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("claims"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed, to share the seeds out")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--methods", help=", ".join(METHODS).join(("of: ", "")))
    parser.add_argument("--workers", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
