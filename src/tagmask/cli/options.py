"""The options that several commands share, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tagmask.data.source import DataSource

DATA = "The images"
PLACE = "Where and how"
Images = Annotated[
    str, typer.Argument(help="Folder of images: VOC layout, COCO images, any folder, a folder per class.")
]
Tags = Annotated[
    str | None,
    typer.Option(help="Table image,tags (CSV, TSV, JSON Lines); for VOC also: xml, masks.", rich_help_panel=DATA),
]
Format = Annotated[str, typer.Option(help="auto, voc, coco, table or folders.", rich_help_panel=DATA)]
Split = Annotated[
    str | None, typer.Option(help="A split's name, or a file that lists the images.", rich_help_panel=DATA)
]
Annotations = Annotated[str | None, typer.Option(help="COCO instances JSON.", rich_help_panel=DATA)]
Masks = Annotated[str | None, typer.Option(help="Folder of true masks (for measuring only).", rich_help_panel=DATA)]
Saliency = Annotated[str | None, typer.Option(help="Folder of grey saliency PNGs.", rich_help_panel=DATA)]
ClassList = Annotated[str | None, typer.Option(help="File with one class name a line.", rich_help_panel=DATA)]
Classes = Annotated[str | None, typer.Option(help="Only these classes: cat,cow,...", rich_help_panel=DATA)]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.", rich_help_panel=DATA)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=PLACE)]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, float32 or bfloat16.", rich_help_panel=PLACE)]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes for loading and CRF.", show_default="one a core", rich_help_panel=PLACE),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
RunFolderArgument = Annotated[Path, typer.Argument(help="A folder that `tagmask run --out` made.")]


def data_source(
    root: str, format: str, split: str | None, tags: str | None, annotations: str | None, masks: str | None,
    saliency: str | None, class_list: str | None, classes: str | None,
) -> DataSource:  # fmt: skip
    from pydantic import ValidationError

    from tagmask.data.source import DataSource

    kept = tuple(name.strip() for name in classes.split(",") if name.strip()) if classes else None
    try:
        return DataSource(
            root=root, format=format, split=split, tags=tags, annotations=annotations, masks=masks,
            saliency=saliency, class_list=class_list, classes=kept,
        )  # fmt: skip
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"--{first['loc'][0]}: {first['msg']}") from error


def held_out_source(source: DataSource, val: str | None, annotations: str | None) -> DataSource | None:
    if val is None:
        return source.model_copy(update={"annotations": annotations}) if annotations else None
    if Path(val).is_dir():
        return source.model_copy(update={"root": val, "annotations": annotations, "split": None})
    return source.model_copy(update={"split": val, "annotations": annotations or source.annotations})


def checked_precision(name: str) -> Any:
    if name not in ("auto", "float32", "bfloat16"):
        raise typer.BadParameter(f"--precision {name}: give auto, float32 or bfloat16")
    return name


def reporter(quiet: bool) -> Any:
    from rich.console import Console

    from tagmask.progress import Reporter

    return Reporter(None if quiet else Console(stderr=True))


def show_run(result: Any, as_json: bool, quiet: bool) -> None:
    from tagmask.cli.tables import print_run, run_json

    if as_json:
        print_json(run_json(result))
    elif not quiet:
        print_run(result)


def show_rehearsal(found: Any, out: Path, as_json: bool, quiet: bool) -> None:
    from tagmask.cli.tables import print_rehearsal

    if as_json:
        print_json(found.to_json())
    elif not quiet:
        print_rehearsal(found)
    found.check(out)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
