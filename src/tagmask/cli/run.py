"""Commands that make a run: run, demo, recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tagmask.cli.options import (
    DATA,
    Annotations,
    Classes,
    ClassList,
    Device,
    Format,
    Images,
    Json,
    Masks,
    PrecisionOption,
    Quiet,
    Saliency,
    SkipBad,
    Split,
    Tags,
    Workers,
    checked_precision,
    data_source,
    held_out_source,
    print_json,
    show_rehearsal,
    show_run,
)


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all, and say what time, disk and memory it would take.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make masks and a network from tagged images. The same command goes on where it was stopped."""
    import tagmask

    source = data_source(images, format, split, tags, annotations, masks, saliency, class_list, classes)
    held_out = held_out_source(source, val, val_annotations)
    arguments: dict[str, Any] = {
        "held_out": held_out, "recipe": recipe, "settings": set_ or (), "seed": seed, "device": device,
        "precision": checked_precision(precision), "workers": workers, "skip_bad": skip_bad, "redo": redo,
        "quiet": quiet or as_json,
    }  # fmt: skip
    if dry_run:
        show_rehearsal(tagmask.dry_run(source, out, **arguments), out, as_json, quiet)
        return
    result = tagmask.run(source, out, **arguments)
    if result.compute.is_main_process:
        show_run(result, as_json, quiet)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the scenes and the run.")] = Path("demo"),
    images: Annotated[int, typer.Option(min=20, help="Training scenes to generate.")] = 900,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """The whole job on generated pictures, and three methods' maps: no data, no download, a few minutes."""
    import tagmask
    from tagmask.data.scenes import write_scenes

    scenes = out / f"scenes-{images}"
    print(f"generating {images} training scenes and 200 to measure on → {scenes}")
    write_scenes(scenes, num_train=images, num_val=200)
    source = tagmask.DataSource(root=str(scenes), split="train")
    held_out = source.model_copy(update={"split": "val"})
    result = tagmask.run(source, out / "run", held_out=held_out, recipe="demo", device=device, workers=workers)
    if result.compute.is_main_process:
        show_run(result, as_json=False, quiet=False)


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
        print_json(described)
    else:
        width = max(map(len, described))
        print("\n".join(f"{name:{width}}  {description}" for name, description in described.items()))
