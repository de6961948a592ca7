"""Commands about data: check, saliency, scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli.options import (
    Annotations,
    Classes,
    ClassList,
    Format,
    Images,
    Json,
    Masks,
    Quiet,
    Saliency,
    SkipBad,
    Split,
    Tags,
    Workers,
    data_source,
    print_json,
    reporter,
)


def check(
    images: Images,
    tags: Tags = None,
    format: Format = "auto",
    split: Split = None,
    annotations: Annotations = None,
    masks: Masks = None,
    saliency: Saliency = None,
    class_list: ClassList = None,
    classes: Classes = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what is in a data set and what is wrong with it. Exit status 1 if something is."""
    from tagmask.cli.tables import print_check
    from tagmask.compute import Compute
    from tagmask.data.check import check as check_data

    source = data_source(images, format, split, tags, annotations, masks, saliency, class_list, classes)
    progress = reporter(as_json).progress
    found = check_data(source.read(), workers=Compute.detect("cpu", "auto", workers).workers, progress=progress)
    print_json(found.to_json()) if as_json else print_check(found)
    if not found.ok:
        raise typer.Exit(1)


def saliency(
    images: Images,
    out: Annotated[Path, typer.Option(help="Folder for the saliency maps; images that have one there are skipped.")],
    tags: Tags = None,
    format: Format = "auto",
    split: Split = None,
    annotations: Annotations = None,
    masks: Masks = None,
    class_list: ClassList = None,
    skip_bad: SkipBad = False,
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make weak saliency maps without a network (robust background detection), for `run --saliency`."""
    from tagmask.compute import Compute
    from tagmask.data.new_images import list_images
    from tagmask.data.saliency import write_saliency

    beside = str(out) if out.is_dir() else None  # in the images' folder, what is there already is no image
    source = data_source(images, format, split, tags, annotations, masks, beside, class_list, None)
    number = Compute.detect("cpu", "auto", workers).workers
    progress = reporter(quiet or as_json).progress
    made = write_saliency(list_images(source), out, skip_bad=skip_bad, workers=number, progress=progress)
    if as_json:
        print_json({"saliency": {s.id: str(s.saliency) for s in made.samples}, "problems": [*map(str, made.problems)]})
    elif not quiet:
        print(f"{len(made)} saliency maps in {out}")


def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write to, in VOC's layout.")],
    train: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 2000,
    val: Annotated[int, typer.Option(min=0, help="Held-out scenes.")] = 400,
    size: Annotated[int, typer.Option(min=32, help="Pixels a side.")] = 96,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Generate the demo's pictures, with tags, exact masks and simulated saliency."""
    from tagmask.data.scenes import write_scenes

    with reporter(False).progress("scenes", train + val) as advance:
        write_scenes(out, num_train=train, num_val=val, size=size, seed=seed, progress=advance)
    print(out)
