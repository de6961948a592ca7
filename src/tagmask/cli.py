"""The command line: one function a command; no logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagmask import __version__
from tagmask.errors import TagmaskError

if TYPE_CHECKING:
    from tagmask.data.source import DataSource

app = typer.Typer(
    name="tagmask",
    help="Tags in, masks out: pixel masks and a segmentation network from images with tags.",
    epilog="Begin with `tagmask demo`, then `tagmask run photos/ --tags tags.csv --out run/`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
RunFolder = Annotated[Path, typer.Argument(help="A folder that `tagmask run --out` made.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"tagmask {__version__}")
        raise typer.Exit


@app.command()
def run(
    images: Images,
    out: Annotated[Path, typer.Option(help="The run folder to make, or to go on with.")],
    tags: Tags = None,
    recipe: Annotated[
        str, typer.Option(help="A shipped recipe, or a YAML file; auto: cam with a GPU, else small.")
    ] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="STAGE.KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    val: Annotated[
        str | None, typer.Option(help="Measure the network on this split (or folder) too.", rich_help_panel=DATA)
    ] = None,
    format: Format = "auto",
    split: Split = None,
    annotations: Annotations = None,
    val_annotations: Annotated[
        str | None, typer.Option(help="COCO instances JSON of --val.", rich_help_panel=DATA)
    ] = None,
    masks: Masks = None,
    saliency: Saliency = None,
    class_list: ClassList = None,
    classes: Classes = None,
    skip_bad: SkipBad = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random.", show_default="the recipe's")] = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    workers: Workers = None,
    redo: Annotated[bool, typer.Option("--redo", help="Make stages anew whose settings or inputs changed.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make masks and a network from tagged images. The same command goes on where it was stopped."""
    import tagmask

    source = _source(images, format, split, tags, annotations, masks, saliency, class_list, classes)
    held_out = _held_out(source, val, val_annotations)
    result = tagmask.run(
        source, out, held_out=held_out, recipe=recipe, settings=set_ or (), seed=seed, device=device,
        precision=_precision(precision), workers=workers, skip_bad=skip_bad, redo=redo, quiet=quiet or as_json,
    )  # fmt: skip
    if result.compute.main:
        _show_run(result, as_json, quiet)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the scenes and the run.")] = Path("demo"),
    images: Annotated[int, typer.Option(min=20, help="Training scenes to generate.")] = 1000,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """The whole job on generated pictures: no data, no download, a few minutes."""
    import tagmask
    from tagmask.data.scenes import write_scenes

    scenes = out / f"scenes-{images}"
    print(f"generating {images} training scenes and 200 to measure on → {scenes}")
    write_scenes(scenes, n_train=images, n_val=200)
    source = tagmask.DataSource(root=str(scenes), split="train")
    held_out = source.model_copy(update={"split": "val"})
    result = tagmask.run(source, out / "run", held_out=held_out, recipe="scratch", device=device, workers=workers)
    if result.compute.main:
        _show_run(result, as_json=False, quiet=False)


@app.command()
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
    from tagmask.compute import Compute
    from tagmask.data.check import check as check_data
    from tagmask.tables import print_check

    source = _source(images, format, split, tags, annotations, masks, saliency, class_list, classes)
    shown = _shown(as_json)
    found = check_data(source.read(), workers=Compute.detect("cpu", "auto", workers).workers, progress=shown.progress)
    _print_json(found.to_json()) if as_json else print_check(found)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one, with its comments.")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or print one."""
    from tagmask.recipe import load_recipe, recipe_names, recipe_text

    if name:
        print(json.dumps(load_recipe(name).model_dump(mode="json"), indent=2) if as_json else recipe_text(name), end="")
        return
    described = {name: load_recipe(name).description for name in recipe_names()}
    if as_json:
        _print_json(described)
    else:
        width = max(map(len, described))
        print("\n".join(f"{name:{width}}  {description}" for name, description in described.items()))


@app.command()
def predict(
    run_folder: RunFolder,
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

    opened = tagmask.load(run_folder, device=device, precision=_precision(precision), workers=workers)
    masks = opened.predict_files(
        images, out, tags=tags, skip_bad=skip_bad, redo=redo, also=also or (), quiet=quiet or as_json
    )
    if as_json:
        _print_json({"masks": {name: str(path) for name, path in masks.items()}})
    elif not quiet and opened.compute.main:
        print(f"{len(masks)} masks in {out / 'masks'}")


@app.command()
def export(
    run_folder: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    format: Annotated[str, typer.Option(help="png, coco (RLE), coco-polygons or overlays.")] = "png",
    stage: Annotated[str | None, typer.Option(help="Which stage's masks.", show_default="the last")] = None,
) -> None:
    """Write a run's masks of its training images for other tools."""
    import tagmask

    print(tagmask.load(run_folder, device="cpu").export(out, format, stage=stage))


@app.command()
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
    from tagmask.compute import is_main
    from tagmask.tables import print_scores

    source = _source(data, format, split, tags, annotations, masks, None, class_list, classes)
    names, scores = score(run_or_masks, source, device=device, workers=workers, quiet=as_json)
    if is_main():
        _print_json(scores.to_json(names)) if as_json else print_scores(scores, names)


@app.command()
def report(run_folder: RunFolder, quiet: Quiet = False) -> None:
    """Measure a run again and write its report anew."""
    import tagmask

    opened = tagmask.load(run_folder)
    opened.evaluate(quiet=quiet)
    if opened.compute.main:
        print(opened.report)


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write to, in VOC's layout.")],
    train: Annotated[int, typer.Option(min=1, help="Training scenes.")] = 2000,
    val: Annotated[int, typer.Option(min=0, help="Held-out scenes.")] = 400,
    size: Annotated[int, typer.Option(min=32, help="Pixels a side.")] = 96,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Generate the demo's pictures, with tags, exact masks and simulated saliency."""
    from tagmask.data.scenes import write_scenes

    with _shown(False).progress("scenes", train + val) as advance:
        write_scenes(out, n_train=train, n_val=val, size=size, seed=seed, progress=advance)
    print(out)


def main() -> None:
    """Entry point: an error that the user can mend is one sentence and exit status 1."""
    try:
        app()
    except TagmaskError as error:
        print(f"tagmask: {_sentence(error)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"tagmask: {where}{error.strerror}; see to it, then give the same command again.", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("tagmask: stopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)


def _sentence(error: TagmaskError) -> str:
    """What the error says; of one from a loading process, which comes with its traceback, the last line."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "\nOriginal Traceback" in text else text


def _source(
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


def _held_out(source: DataSource, val: str | None, annotations: str | None) -> DataSource | None:
    if val is None:
        return source.model_copy(update={"annotations": annotations}) if annotations else None
    if Path(val).is_dir():
        return source.model_copy(update={"root": val, "annotations": annotations, "split": None})
    return source.model_copy(update={"split": val, "annotations": annotations or source.annotations})


def _precision(name: str) -> Any:
    if name not in ("auto", "float32", "bfloat16"):
        raise typer.BadParameter(f"--precision {name}: give auto, float32 or bfloat16")
    return name


def _shown(quiet: bool) -> Any:
    from rich.console import Console

    from tagmask.progress import Shown

    return Shown(None if quiet else Console(stderr=True))


def _show_run(result: Any, as_json: bool, quiet: bool) -> None:
    from tagmask.tables import print_run, run_json

    if as_json:
        _print_json(run_json(result))
    elif not quiet:
        print_run(result)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
