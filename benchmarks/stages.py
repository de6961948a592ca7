"""Each stage of a whole run on generated scenes: images a second, the share of waiting for data, disk per image.

python benchmarks/stages.py [--images 400] [--recipe scratch] [--set cam.epochs=4]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import tagmask
from tagmask.data.scenes import write_scenes
from tagmask.training import read_history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, default=96)
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
        print(f"{arguments.images} scenes of {arguments.size}x{arguments.size}, recipe {arguments.recipe}")
        for name in run.recipe.stages:
            _print_stage(name, out / name, arguments.images)


def _print_stage(name: str, stage: Path, num_images: int) -> None:
    seconds = json.loads((stage / "stage.json").read_text())["seconds"]
    history = read_history(stage)
    training = sum(epoch["seconds"] for epoch in history)
    parts = []
    if history:
        waited = sum(epoch["seconds"] * epoch["data_wait"] for epoch in history)
        rate = num_images * len(history) / training
        parts.append(f"training {rate:.1f} images/s, of which waiting for data {100 * waited / training:.1f} %")
    parts.append(
        f"its maps or masks {num_images / max(seconds - training, 1e-3):.1f} images/s (loading of code included)"
    )
    files = [f for kind in ("maps", "masks") for f in (stage / kind).rglob("*") if f.is_file()]
    parts.append(f"{sum(f.stat().st_size for f in files) / num_images / 1e6:.4f} MB an image")
    print(f"  {name:8} {'; '.join(parts)}")


if __name__ == "__main__":
    main()
