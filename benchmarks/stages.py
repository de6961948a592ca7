"""Measure each stage of a run on generated scenes: its speed, its share of waiting for data, and its disk space.

Run: python benchmarks/stages.py [--images 400] [--size 96] [--recipe scratch] [--set cam.epochs=4] [--workers 2]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import tagmask
from tagmask.data.scenes import write_scenes
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=96, help="sides of the scenes in pixels")
    parser.add_argument("--recipe", default="scratch")
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes, out = Path(folder) / "scenes", Path(folder) / "run"
        write_scenes(scenes, num_train=arguments.images, num_val=0, size=arguments.size)
        source = tagmask.DataSource(root=str(scenes), split="train")
        run = tagmask.run(
            source, out, recipe=arguments.recipe, settings=arguments.settings, workers=arguments.workers, quiet=True
        )
        print(f"{arguments.images} scenes of {arguments.size}×{arguments.size} pixels, recipe {arguments.recipe}")
        for name in run.recipe.stages:
            _print_stage(StageFolder(out / name), arguments.images)


def _print_stage(stage: StageFolder, num_images: int) -> None:
    record = stage.read_record_if_any()
    seconds = record.seconds if record else 0
    history = read_history(stage)
    training = sum(epoch["seconds"] for epoch in history)
    parts = []
    if history:
        waiting = sum(epoch["seconds"] * epoch["data_wait"] for epoch in history)
        rate = num_images * len(history) / training
        parts.append(f"training {rate:.1f} images/s, {100 * waiting / training:.1f} % of it waiting for data")
    rate = num_images / max(seconds - training, 1e-3)
    parts.append(f"maps or masks {rate:.1f} images/s (with the time to import modules)")
    files = [f for kind in ("maps", "masks") for f in (stage.path / kind).rglob("*") if f.is_file()]
    parts.append(f"{sum(f.stat().st_size for f in files) / num_images / 1e6:.4f} MB per image on disk")
    print(f"  {stage.name:8} {'; '.join(parts)}")


if __name__ == "__main__":
    main()
