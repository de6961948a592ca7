"""What stages of a run made of the same images, side by side: the pictures of these pages.

    python docs/side_by_side.py DATA STAGE ... [--images 4] [--first 0] [--out side-by-side.webp]

A STAGE is a folder of a run, or TITLE=folder: its maps are shown as heat, or else its masks over the image. The last
column is the truth, where DATA has masks.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import tagmask
from tagmask.data.images import read_image
from tagmask.data.samples import Sample
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.outputs.overlays import overlay
from tagmask.stage import maps_path, mask_path

GAP, TITLE = 4, 22  # pixels


def main() -> None:
    arguments = _arguments()
    images = tagmask.DataSource(root=arguments.data, split=arguments.split).read()
    stages = {title: Path(folder) for title, folder in map(_titled, arguments.stages)}
    samples = images.samples[arguments.first :: arguments.step][: arguments.images]
    rows = [row(sample, list(stages.values())) for sample in samples]
    sheet(["image", *stages, "truth"][: len(rows[0])], rows, arguments.side).save(arguments.out, quality=85)


def row(sample: Sample, stages: Sequence[Path]) -> list[np.ndarray]:
    """The image, each stage's maps or masks over it, and the truth, if known: each [H, W, 3] uint8."""
    image = read_image(sample.image)
    cells = [image]
    for stage in stages:
        if maps_path(stage, sample).exists():
            cells.append(np.array(ResponseMaps.load(maps_path(stage, sample)).figure(image)))
        else:
            cells.append(overlay(image, read_label_map(mask_path(stage, sample)), opacity=0.75))
    return [*cells, overlay(image, sample.mask.read(), opacity=0.75)] if sample.mask else cells


def sheet(titles: Sequence[str], rows: Sequence[Sequence[np.ndarray]], side: int) -> Image.Image:
    """The rows under their columns' titles, every cell of `side` pixels."""
    picture = Image.new("RGB", (len(titles) * (side + GAP) - GAP, TITLE + len(rows) * (side + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((column * (side + GAP) + side // 2, TITLE // 2), title, "black", font, anchor="mm")
    for r, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            place = (column * (side + GAP), TITLE + r * (side + GAP))
            picture.paste(Image.fromarray(cell).resize((side, side), Image.Resampling.LANCZOS), place)
    return picture


def _titled(text: str) -> tuple[str, str]:
    title, _, folder = text.rpartition("=")
    return title or Path(folder).name, folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="number of the first image")
    parser.add_argument("--step", type=int, default=1, help="show each n-th image")
    parser.add_argument("--side", type=int, default=128, help="of a picture, in pixels")
    parser.add_argument("--out", default="side-by-side.webp")
    return parser.parse_args()


if __name__ == "__main__":
    main()
