"""A run with photographs that the review page can be tried on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.artifacts import write_json, write_text
from tagmask.data.source import DataSource
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.recipe import Recipe
from tagmask.run_folder import RunFolder, RunSources
from tests.report.fake_run import write_stage_record

SIZE = (90, 122)  # pixels; the width is no multiple of 4
CLASSES = ("bird", "cat", "dog")
TAGS = {"extra": (1, 2), "pair": (1, 3), "solo": (2,)}
THRESHOLD = 0.4
COLORS = np.array([[110, 130, 110], [40, 90, 200], [220, 160, 40], [120, 60, 40]])


def response_maps(image_id: str) -> ResponseMaps:
    """Return smooth maps with one bump per tag, which overlap where there are two."""
    tags = tags_of(image_id)
    rng = np.random.default_rng(sum(map(ord, image_id)))
    rows, columns = np.mgrid[: grid_size(SIZE)[0], : grid_size(SIZE)[1]]
    centers = [(rng.uniform(7, 14), (n + 1) * rows.shape[1] / (len(tags) + 1)) for n in range(len(tags))]
    bumps = [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / rng.uniform(60, 90)) for y, x in centers]
    return ResponseMaps(np.array(tags, int), np.array(bumps, np.float32).reshape(-1, *rows.shape), SIZE)


def tags_of(image_id: str) -> tuple[int, ...]:
    return TAGS[image_id.split("/")[0]]


def write_small_run(folder: Path, image_ids: list[str]) -> Path:
    """Write images, and a finished run whose masks are the maps cut at `THRESHOLD`.

    Args:
        folder: for the images in data/ and the run in run/.
        image_ids: "solo/..." has the tag cat, "pair/..." the tags bird and dog, "extra/..." the tags bird and cat.

    Returns:
        The folder of the run.
    """
    lines = ["image,tags"]
    run = RunFolder(folder / "run")
    recipe = Recipe.model_validate({"stages": {"cam": {"method": "cam"}, "masks": {"method": "pseudo_masks"}}})
    for image_id in image_ids:
        maps = response_maps(image_id)
        labels = maps.label_map(THRESHOLD)
        noise = np.random.default_rng(0).normal(0, 6, (*SIZE, 3))
        photo = (COLORS[maps.label_map(0.55)] + noise).clip(0, 255).astype(np.uint8)
        path = folder / "data" / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)
        maps.save(run.stage("cam").maps_path(image_id))
        write_label_map(run.stage("masks").mask_path(image_id), labels)
        lines.append(f"{image_id}.png,{';'.join(CLASSES[tag - 1] for tag in tags_of(image_id))}")
    for name in recipe.stages:
        write_stage_record(run.stage(name), len(image_ids))
    write_json(run.stage("masks").threshold_path, {"threshold": THRESHOLD})
    (folder / "data" / "tags.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = DataSource(root=str(folder / "data"))
    run.write_record(RunSources(images=source), source.read().classes)
    write_text(run.recipe_path, recipe.to_yaml())
    return run.path
