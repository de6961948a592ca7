"""Commands about response maps: maps, thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli.options import (
    DATA,
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


def maps(
    run_or_images: Annotated[str, typer.Argument(help="A run folder; with --classifier, a folder of images.")],
    method: Annotated[
        str | None, typer.Option(help="conditional, layercam, recam, amn, or another that makes maps.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the stage's folder.", show_default="the method's")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Instead of a run: a timm classifier as it is, e.g. resnet50.")
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="KEY=VALUE", help="A setting of --classifier, e.g. weights=FILE; may be repeated."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --classifier: the run folder to make.")] = None,
    tags: Tags = None,
    format: Format = "auto",
    split: Split = None,
    annotations: Annotations = None,
    masks: Masks = None,
    class_list: ClassList = None,
    classes: Classes = None,
    skip_bad: SkipBad = False,
    redo: Annotated[bool, typer.Option("--redo", help="Make them anew, if made with other settings.")] = False,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make other response maps of a finished run, or the maps of a ready classifier."""
    import tagmask
    from tagmask.cli.tables import maps_json, print_maps
    from tagmask.recipe import find_method, ready_classifier

    place = {"device": device, "precision": checked_precision(precision), "workers": workers}
    if set_ and method is None:
        raise typer.BadParameter("--set is of --method: name one, or say --with for --classifier")
    if method is not None and "maps" not in find_method(method).makes:
        raise typer.BadParameter(f"the method {method!r} makes no maps")
    if classifier is None:
        if method is None:
            raise typer.BadParameter("say which: --method conditional, or --classifier NAME")
        data = {"--with": with_, "--out": out, "--tags": tags, "--split": split, "--annotations": annotations,
                "--masks": masks, "--class-list": class_list, "--classes": classes, "--skip-bad": skip_bad}  # fmt: skip
        if useless := [option for option, value in data.items() if value]:
            raise typer.BadParameter(f"{useless[0]} goes with --classifier; a run has its data already")
        result = tagmask.load(run_or_images, **place)
    else:
        if out is None:
            raise typer.BadParameter("--classifier needs --out, the run folder to make")
        source = data_source(run_or_images, format, split, tags, annotations, masks, None, class_list, classes)
        recipe = ready_classifier(classifier, with_ or ())
        result = tagmask.run(source, out, recipe=recipe, skip_bad=skip_bad, redo=redo, quiet=quiet or as_json, **place)
    if method is not None:
        result = result.add(method, set_ or (), name=name, redo=redo, quiet=quiet or as_json)
    if result.compute.is_main_process:
        if as_json:
            print_json(maps_json(result))
        elif not quiet:
            print_maps(result)


def thresholds(
    run_folder: RunFolderArgument,
    data: Annotated[
        str | None,
        typer.Option(
            help="The training images with their truth, where the run's own data has none.", rich_help_panel=DATA
        ),
    ] = None,
    tags: Tags = None,
    format: Format = "auto",
    split: Split = None,
    annotations: Annotations = None,
    masks: Masks = None,
    class_list: ClassList = None,
    classes: Classes = None,
    out: Annotated[Path | None, typer.Option(help="The page.", show_default="thresholds.html in the run")] = None,
    workers: Workers = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a run's response maps at every threshold: figures, and their curves on one page."""
    import tagmask
    from tagmask.api import THRESHOLDS
    from tagmask.cli.tables import print_curves

    beside = {"--tags": tags, "--split": split, "--annotations": annotations, "--masks": masks}
    if data is None and (useless := [option for option, value in beside.items() if value]):
        raise typer.BadParameter(f"{useless[0]} goes with --data: name the folder of the images, too")
    opened = tagmask.load(run_folder, device="cpu", workers=workers)
    source = data_source(data, format, split, tags, annotations, masks, None, class_list, classes) if data else None
    found = opened.thresholds(source, out=out, quiet=quiet or as_json)
    if opened.compute.is_main_process:
        if as_json:
            print_json({"maps": found.to_json()["maps"]})
        elif not quiet:
            print_curves(found.to_json())
            print(f"curves  {out or run_folder / THRESHOLDS}")
