"""A toy data set and a toy run, for tests of whole runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import tagmask
from tagmask.data.samples import Sample
from tagmask.label_map import read_label_map

COLORS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}
RECIPE = "scratch"
SETTINGS = [
    "cam.backbone=test_resnet", "cam.epochs=2", "cam.batch_size=4", "cam.crop_size=32", "cam.long_side_range=[40,48]",
    "cam.scales=[1.0]", "segment.epochs=2", "segment.batch_size=4", "segment.crop_size=32", "segment.crf.steps=2",
]  # fmt: skip
TAGS = ["red", "green", "blue", "red;green", "green;blue", "", "red;green;blue", "blue"]


def write_toy(folder: Path, names: dict[str, str] | None = None, masks: bool = True) -> Path:
    """Write eight images of 48×40 pixels with colored squares, tags.csv, and ground-truth masks in masks/.

    Args:
        folder: where to write.
        names: new class names by color.
        masks: whether to write the masks.
    """
    names = names or {}
    lines = ["image,tags"]
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for i, tags in enumerate(TAGS):
        rng = np.random.default_rng(i)
        image = rng.integers(90, 130, (40, 48, 3)).astype(np.uint8)
        labels = np.zeros((40, 48), np.uint8)
        for name in filter(None, tags.split(";")):
            tag = sorted(names.get(color, color) for color in COLORS).index(names.get(name, name)) + 1
            y, x = int(rng.integers(0, 26)), 1 + 16 * list(COLORS).index(name)
            image[y : y + 13, x : x + 13] = COLORS[name]
            labels[y : y + 13, x : x + 13] = tag
        Image.fromarray(image).save(folder / f"{i}.png")
        if masks:
            Image.fromarray(labels).save(folder / "masks" / f"{i}.png")
        lines.append(f"{i}.png,{';'.join(names.get(tag, tag) for tag in tags.split(';'))}")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def toy_run(data: Path, out: Path, settings: list[str] | None = None, **arguments: Any) -> tagmask.Run:
    """Run the recipe "scratch" at toy size on the data of `write_toy`, in this process alone.

    The `arguments` are those of `tagmask.run`, or `source` for another source of the images.
    """
    import torch

    torch.set_num_threads(1)
    source = arguments.pop("source", None) or tagmask.DataSource(root=str(data), masks="masks")
    changes = {"recipe": RECIPE, "device": "cpu", "workers": 0, "quiet": True, **arguments}
    return tagmask.run(source, out, settings=[*SETTINGS, *(settings or [])], **changes)


def reading(path: Callable[[str], Path]) -> Callable[[Sample], np.ndarray]:
    """Return a function that reads the label map of a sample from the path of its id."""
    return lambda sample: read_label_map(path(sample.id), size=sample.size)


def contents(folder: Path) -> dict[str, Any]:
    """Return the contents of a run's files by name, without times, the report and hidden caches."""
    by_name: dict[str, Any] = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(".")):
        name = str(file.relative_to(folder))
        if file.name in ("stage.json", "history.json"):
            by_name[name] = _without_times(json.loads(file.read_text()))
        elif file.name != "report.html":
            by_name[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return by_name


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in ("seconds", "data_wait")}
    return value
