"""Measure what the papers claim on generated scenes: the maps, masks and network of each method, over several seeds.

Run: python benchmarks/claims.py [--out claims] [--seeds 3] [--images 1000] [--methods "CAM;AMN"] [--workers 2]

python benchmarks/claims.py --ablations switches off the parts of each method, one at a time, as the papers' tables do.

Prints a Markdown table of the mean ± standard deviation, in % mIoU. One method and seed take five to ten minutes on two
cores. The same command resumes a measurement that was interrupted. Each seed also has its own scenes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import tagmask
from tagmask.artifacts import digest, read_json, write_json
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.data.scenes import write_scenes
from tagmask.data.verify import verify_images
from tagmask.evaluate import score_maps, score_masks, segment_held_out
from tagmask.pipeline import run_stages
from tagmask.progress import Reporter
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder

METHODS = {  # the stages that make the maps
    "CAM": ["cam"],
    "LayerCAM": ["cam", "layercam"],
    "infercam": ["cam", "infercam"],
    "infercam, one iteration": ["cam", "infercam_once"],
    "ReCAM": ["cam", "recam"],
    "ReCAM, keep_sign": ["cam", "recam_keep_sign"],
    "AMN": ["cam", "amn"],
    "ReCAM, AMN": ["cam", "recam_keep_sign", "amn"],
}
ABLATIONS = {
    "ReCAM (product of both weights)": ["cam", "recam"],
    "ReCAM, first weights": ["cam", "recam_first"],
    "ReCAM, second weights": ["cam", "recam_second"],
    "ReCAM, λ = 0.1": ["cam", "recam_weak"],
    "ReCAM, λ = 0, first weights": ["cam", "recam_without"],
    "infercam": ["cam", "infercam"],
    "infercam, no split": ["cam", "infercam_whole"],
    "infercam, one iteration": ["cam", "infercam_single"],
    "infercam, mean of the quadrants": ["cam", "infercam_mean"],
    "AMN": ["cam", "amn"],
    "AMN, no label conditioning": ["cam", "amn_unconditioned"],
    "AMN, no balancing": ["cam", "amn_unbalanced"],
    "AMN, no smoothing": ["cam", "amn_unsmoothed"],
    "AMN, none of the three": ["cam", "amn_plain"],
    "IRN (on CAM)": ["cam", "irn"],
    "IRN, no learned boundaries": ["cam", "irn_without"],
}
USUAL_THRESHOLD = 0.30  # for CAMs when nothing is known
IRN_THRESHOLD = 0.35
SEEDS = {"fg": 0.4, "bg": 0.2}  # around the threshold at which these maps are best after the CRF
SMALL = {"batch_size": 32, "crop_size": 96}
RECAM = {**SMALL, "epochs": 4, "long_side_range": (96, 112), "optimizer": "adamw", "lr": 1e-5, "head_lr": 1e-2}
SEGMENT = {
    **SMALL, "architecture": "Unet", "freeze_norm": False, "epochs": 10, "optimizer": "adamw", "lr": 5e-4,
    "head_lr": 1e-3, "scales": (1.0,),
}  # fmt: skip
AMN = {
    **SMALL, "seeds": SEEDS, "batch_size": 16, "output_stride": 8, "epochs": 5, "scale_range": (0.8, 1.3), "lr": 3e-4,
    "head_lr": 3e-3,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {  # for small images and training from scratch; all others are the papers'
    "cam": {
        "backbone": "resnet18", "weights": "none", "options": {"channels": [32, 64, 128, 256]}, "output_stride": 8,
        "frozen_stride": 0, "freeze_norm": False, "epochs": 16, "batch_size": 16, "crop_size": 96,
        "long_side_range": (96, 112), "optimizer": "adamw", "lr": 2e-3, "head_lr": 2e-3, "weight_decay": 0.01,
    },
    "layercam": {},
    "infercam": {},
    "infercam_once": {"method": "infercam", "iterations": 1, "scales": (0.75, 1.0, 1.25), "enlarge": 1.5},
    "recam": RECAM,
    "recam_keep_sign": {**RECAM, "method": "recam", "keep_sign": True},
    "amn": AMN,
    "pseudo_masks": {},
    "ignored_margin": {"method": "pseudo_masks", "margin": 0.2},
    "irn": {  # 16 steps, because the grid has only 24 × 24 cells: 256 steps would spread the maps over all of it
        **SMALL, "seeds": SEEDS, "epochs": 8, "output_stride": 8, "pair_radius": 5, "scale_range": (0.8, 1.3),
        "walk": {"steps": 16},
    },
    "irn_masks": {"method": "pseudo_masks", "threshold": IRN_THRESHOLD, "refine": "none"},
    "segment": SEGMENT,
    "activation_aware": SEGMENT,
}  # fmt: skip
ABLATION_SETTINGS: dict[str, dict[str, Any]] = {
    "recam_first": {**RECAM, "method": "recam", "map_weights": "first"},
    "recam_second": {**RECAM, "method": "recam", "map_weights": "second"},
    "recam_weak": {**RECAM, "method": "recam", "sce_weight": 0.1},
    "recam_without": {**RECAM, "method": "recam", "sce_weight": 0, "map_weights": "first"},
    "infercam_whole": {"method": "infercam", "split": False},
    "infercam_single": {"method": "infercam", "iterations": 1},
    "infercam_mean": {"method": "infercam", "merge": "mean"},
    "amn_unconditioned": {**AMN, "method": "amn", "label_conditioning": False},
    "amn_unbalanced": {**AMN, "method": "amn", "balance": False},
    "amn_unsmoothed": {**AMN, "method": "amn", "label_smoothing": 0},
    "amn_plain": {**AMN, "method": "amn", "label_conditioning": False, "balance": False, "label_smoothing": 0},
    "irn_without": {"method": "irn", "boundaries": "none", "walk": {"steps": 16}},
}
FIGURES: dict[tuple[str, ...], str] = {  # the stages that follow the maps, and the column of their figure
    ("pseudo_masks",): "CRF", ("irn", "irn_masks"): "IRN", ("pseudo_masks", "segment"): "network",
}  # fmt: skip
FIGURES_OF_ABLATIONS: dict[tuple[str, ...], str] = {("pseudo_masks",): "CRF"}
FIGURES_OF_CAM: dict[tuple[str, ...], str] = {
    ("pseudo_masks", "activation_aware"): "activation-aware network",
    ("ignored_margin", "segment"): "network, ignored margin",
    ("ignored_margin", "activation_aware"): "activation-aware network, ignored margin",
}
MAP_COLUMNS = ("best", "at", "at 0.30", "automatic", "width")
COLUMNS = (*MAP_COLUMNS, *FIGURES.values(), *FIGURES_OF_CAM.values())


@dataclass(frozen=True)
class Experiment:
    """The scenes of one seed, and where their stages are made.

    Attributes:
        folder: the run folder of all methods, which share stages.
        images: the training images.
        held_out: the images that are not trained on.
        seed: of the scenes and of all stages.
        compute: device and processes.
        reporter: prints messages and progress.
    """

    folder: RunFolder
    images: TaggedImages
    held_out: TaggedImages
    seed: int
    compute: Compute
    reporter: Reporter

    def measure(self, map_stages: Sequence[str], followers: dict[tuple[str, ...], str]) -> dict[str, float]:
        """Return the figures of one method by column.

        Args:
            map_stages: the stages that make the maps.
            followers: the stages that follow the maps, and the column of their figure.
        """
        figures = {column: self.score(map_stages, stages) for stages, column in followers.items()}
        maps = self.folder.stage("-".join(map_stages))
        curve, automatic_threshold, _ = score_maps(self.images, maps, self.compute, self.reporter)

        def miou_at(threshold: float) -> float:
            return float(curve.miou[np.abs(curve.thresholds - threshold).argmin()])

        return {
            "best": 100 * curve.best_miou,
            "at": curve.best_threshold,
            "at 0.30": 100 * miou_at(USUAL_THRESHOLD),
            "automatic": 100 * miou_at(automatic_threshold),
            "width": curve.width,
            **figures,
        }

    def score(self, map_stages: Sequence[str], followers: Sequence[str]) -> float:
        """Run the stages that make the maps, and those that follow; returns the mIoU of the last stage, in %.

        A network is measured on the held-out images, masks on the training images.
        """
        stages = name_stages(map_stages) | name_stages(followers, prefix="-".join(map_stages) + "-")
        recipe = tagmask.Recipe.model_validate({"seed": self.seed, "stages": stages})
        run_stages(recipe, self.images, self.folder, compute=self.compute, reporter=self.reporter)
        last = list(stages)[-1]
        masks: StageFolder = self.folder.stage(last)
        images = self.images
        if "segmenter" in recipe.stages[last].makes:
            images = self.held_out
            masks = segment_held_out(self.folder, last, images, self.compute, self.reporter)
        return 100 * score_masks(images, masks, self.compute, self.reporter).miou


def main() -> None:
    """Measure the methods that the command line names, and print the table."""
    arguments = parse_arguments()
    compute = Compute.detect("cpu", "auto", arguments.workers)
    reporter = Reporter.to_stderr()
    available = ABLATIONS if arguments.ablations else METHODS
    methods = arguments.methods.split(";") if arguments.methods else list(available)
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        folder = arguments.out / f"seed-{seed}"
        images, held_out = read_scenes(folder / "scenes", arguments.images, seed, compute, reporter)
        run_folder = RunFolder(folder / f"run-{digest([arguments.images, SETTINGS])}")
        experiment = Experiment(run_folder, images, held_out, seed, compute, reporter)
        for name in methods:
            followers = FIGURES_OF_ABLATIONS if arguments.ablations else FIGURES
            if name == "CAM":
                followers = followers | FIGURES_OF_CAM
            key = digest([available[name], USUAL_THRESHOLD, *followers.items()])
            file = run_folder.path / f"{name} {key}.json"
            if not file.exists():
                write_json(file, experiment.measure(available[name], followers))
            figures[name].append(read_json(file))
    print(f"\n{arguments.images} scenes, {arguments.seeds} seeds; mIoU in %, mean ± standard deviation\n")
    print(format_table(figures))


def name_stages(names: Sequence[str], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Return the stages of a recipe, each named after the names up to its own, so that methods share stages."""
    settings = SETTINGS | ABLATION_SETTINGS
    return {prefix + "-".join(names[: n + 1]): {"method": name, **settings[name]} for n, name in enumerate(names)}


def read_scenes(
    folder: Path, num_images: int, seed: int, compute: Compute, reporter: Reporter
) -> tuple[TaggedImages, TaggedImages]:
    """Write the scenes of a seed if they are missing, and read the training images and 200 held-out images."""
    write_scenes(folder, num_train=num_images, num_val=200, seed=seed)

    def read_split(split: str) -> TaggedImages:
        images = tagmask.DataSource(root=str(folder), split=split).read()
        images = verify_images(images, skip_bad=False, workers=compute.workers, progress=reporter.progress)
        return replace(images, name=f"{split} {seed}")

    return read_split("train"), read_split("val")


def format_table(figures: dict[str, list[dict[str, float]]]) -> str:
    """Return the figures of each method, one dict per seed, as a Markdown table."""
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, seeds in figures.items():
        cells = [format_cell([values.get(column, np.nan) for values in seeds], column) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def format_cell(values: list[float], column: str) -> str:
    """Return the mean ± standard deviation of the values of all seeds; a dash if one is missing."""
    if np.isnan(values).any():
        return "–"
    digits = 2 if column in ("at", "width") else 1
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("claims"), help="folder of scenes, runs and figures")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed, to divide the seeds among several machines")
    parser.add_argument("--images", type=int, default=1000, help="number of training images")
    parser.add_argument("--ablations", action="store_true", help="switch off parts of the methods")
    parser.add_argument("--methods", help=f"separated by semicolons; of: {'; '.join(METHODS)}")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
