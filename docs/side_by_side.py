"""Draw the results of several stages side by side, one row per image. The pictures in these docs are made with it.

    python docs/side_by_side.py DATA STAGE ... [--images 4] [--first 0] [--tags] [--out side-by-side.webp]

STAGE is a stage folder of a run, or TITLE=FOLDER. Response maps are drawn as heat over the image, masks as colors over
the image. If DATA has ground-truth masks, they are the last column.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import tagmask
from tagmask.data.samples import Sample
from tagmask.label_map import read_label_map
from tagmask.outputs.overlays import overlay
from tagmask.stage_folder import StageFolder

GAP, LINE = 4, 22  # pixels: between cells; height of a line of text


class Row(NamedTuple):
    """One image: the text below its first cell, and its cells, each [H, W, 3] uint8."""

    caption: str
    cells: list[np.ndarray]


def main() -> None:
    """Draw the picture that the command line describes."""
    arguments = parse_arguments()
    images = tagmask.DataSource(root=arguments.data, split=arguments.split).read()
    stages = dict(map(split_title, arguments.stages))
    samples = images.samples[arguments.first :: arguments.step][: arguments.images]
    rows = []
    for sample in samples:
        tags = ", ".join(images.classes[class_id - 1] for class_id in sample.tags or ())
        cells = draw_cells(sample, [StageFolder(Path(folder)) for folder in stages.values()], arguments.ground_truth)
        rows.append(Row(tags or "no tags", cells))
    titles = ["image", *stages, "ground truth"][: len(rows[0].cells)]
    draw_sheet(titles, rows, arguments.side, arguments.tags).save(arguments.out, quality=85)


def draw_cells(sample: Sample, stages: Sequence[StageFolder], with_ground_truth: bool) -> list[np.ndarray]:
    """Return the image, each stage's maps or masks over it and, if wanted and known, the ground truth."""
    image = tagmask.read_image(sample.image)
    cells = [image]
    for stage in stages:
        if (maps_path := stage.maps_path(sample.id)).exists():
            cells.append(np.array(tagmask.ResponseMaps.load(maps_path).figure(image)))
        else:
            cells.append(overlay(image, read_label_map(stage.mask_path(sample.id)), opacity=0.75))
    if with_ground_truth and sample.mask:
        cells.append(overlay(image, sample.mask.read(), opacity=0.75))
    return cells


def draw_sheet(titles: Sequence[str], rows: Sequence[Row], side: int, with_captions: bool) -> Image.Image:
    """Return the rows below the titles of their columns.

    Args:
        titles: One per column.
        rows: One per image.
        side: Width and height of a cell in pixels.
        with_captions: Whether the captions are written below the images.
    """
    row_height = side + GAP + with_captions * LINE
    size = (len(titles) * (side + GAP) - GAP, LINE + len(rows) * row_height - GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((column * (side + GAP) + side // 2, LINE // 2), title, "black", font, anchor="mm")
    for number, row in enumerate(rows):
        top = LINE + number * row_height
        for column, cell in enumerate(row.cells):
            picture = Image.fromarray(cell).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (column * (side + GAP), top))
        if with_captions:
            draw.text((side // 2, top + side + LINE // 2), row.caption, "black", font, anchor="mm")
    return sheet


def split_title(text: str) -> tuple[str, str]:
    """Return title and folder of TITLE=FOLDER; without a title it is the folder's name."""
    title, _, folder = text.rpartition("=")
    return title or Path(folder).name, folder


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set in VOC's layout")
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=4, help="number of rows")
    parser.add_argument("--first", type=int, default=0, help="number of the first image")
    parser.add_argument("--step", type=int, default=1, help="show every n-th image")
    parser.add_argument("--side", type=int, default=128, help="width and height of a cell in pixels")
    parser.add_argument("--tags", action="store_true", help="write the tags below each image")
    parser.add_argument("--no-ground-truth", dest="ground_truth", action="store_false", help="leave out its column")
    parser.add_argument("--out", default="side-by-side.webp")
    return parser.parse_args()


if __name__ == "__main__":
    main()
