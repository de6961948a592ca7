"""Commands on a finished run: predict, export, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli.options import (
    Annotations,
    Classes,
    ClassList,
    Device,
    Format,
    Json,
    Masks,
    PrecisionOption,
    Quiet,
    RunFolderArgument,
    SkipBad,
    Split,
    Tags,
    Workers,
    checked_precision,
    data_source,
    print_json,
)


def predict(
    run_folder: RunFolderArgument,
    images: Annotated[list[str], typer.Argument(help="Image files and folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    tags: Annotated[str | None, typer.Option(help="Table image,tags: only the known classes can then appear.")] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", help="Write this form too: coco, coco-polygons, overlays.")
    ] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Replace masks in --out that another network made.")] = False,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Segment new images with a run's network. Images that have a mask in --out already are skipped."""
    import tagmask
    from tagmask.outputs.folder import target_of

    opened = tagmask.load(run_folder, device=device, precision=checked_precision(precision), workers=workers)
    masks = opened.predict_files(
        images, out, tags=tags, skip_bad=skip_bad, redo=redo, also=also or (), quiet=quiet or as_json
    )
    if as_json:
        forms = {form: str(target_of(out, form)) for form in also or ()}
        print_json({"masks": {name: str(path) for name, path in masks.items()}, **forms})
    elif not quiet and opened.compute.is_main_process:
        print(f"{len(masks)} masks in {out / 'masks'}")
        for form in also or ():
            print(f"{form} in {target_of(out, form)}")


def export(
    run_folder: RunFolderArgument,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    format: Annotated[str, typer.Option(help="png, coco (RLE), coco-polygons or overlays.")] = "png",
    stage: Annotated[str | None, typer.Option(help="Which stage's masks.", show_default="the last")] = None,
) -> None:
    """Write a run's masks of its training images for other tools."""
    import tagmask

    print(tagmask.load(run_folder, device="cpu").export(out, format, stage=stage))


def evaluate(
    run_or_masks: Annotated[Path, typer.Argument(help="A run folder, or a folder of label maps <id>.png.")],
    data: Annotated[str, typer.Option(help="Folder of images with truth, in any layout that `run` reads.")],
    tags: Tags = None,
    format: Format = "auto",
    split: Split = None,
    annotations: Annotations = None,
    masks: Masks = None,
    class_list: ClassList = None,
    classes: Classes = None,
    device: Device = "auto",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Measure a run's network, or any folder of masks, against the truth: IoU, mIoU, boundary F."""
    from tagmask.api import score
    from tagmask.cli.tables import print_scores
    from tagmask.compute import is_main_process

    source = data_source(data, format, split, tags, annotations, masks, None, class_list, classes)
    names, scores = score(run_or_masks, source, device=device, workers=workers, quiet=as_json)
    if is_main_process():
        print_json(scores.to_json(names)) if as_json else print_scores(scores, names)


def report(run_folder: RunFolderArgument, quiet: Quiet = False) -> None:
    """Measure a run again and write its report anew."""
    import tagmask

    opened = tagmask.load(run_folder)
    opened.evaluate(quiet=quiet)
    if opened.compute.is_main_process:
        print(opened.report)
