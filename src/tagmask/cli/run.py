"""Commands that make a run: run, resume, demo, recipes, add-stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagmask.cli.options import (
    AsJson,
    ComputeOptions,
    Device,
    ExecutionOptions,
    ImagesArgument,
    OutputOptions,
    RecipeOptions,
    RunDataOptions,
    RunFolderArgument,
    Workers,
    print_json,
)

if TYPE_CHECKING:
    from tagmask.results import Run

Redo = Annotated[bool, typer.Option("--redo", help="Run the stages again whose settings or inputs have changed.")]


def run(
    images: ImagesArgument,
    *,
    out: Annotated[Path, typer.Option(help="The run folder to write, or to resume.")],
    data: RunDataOptions,
    recipe: RecipeOptions,
    redo: Redo = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything and estimate the time, disk space and memory; write nothing."),
    ] = False,
    execution: ExecutionOptions,
    compute: ComputeOptions,
    output: OutputOptions,
) -> None:
    """Make masks and a segmentation network from tagged images. Run the same command again to resume."""
    import tagmask
    from tagmask.cli.tables import print_dry_run

    source = data.source(images)
    arguments: dict[str, Any] = {
        "held_out": data.held_out_source(source), "skip_bad": data.skip_bad, "redo": redo,
        "quiet": output.no_progress, **recipe.run_arguments(), **compute.run_arguments(),
    }  # fmt: skip
    if dry_run:
        estimate = tagmask.dry_run(source, out, **arguments)
        if output.as_json:
            print_json(estimate.to_json())
        elif not output.quiet:
            print_dry_run(estimate)
        estimate.check_disk_space(out)
        return
    divided = execution.execution(compute.workers)
    _run_and_print(lambda: tagmask.run(source, out, execution=divided, **arguments), output)


def resume(
    run_folder: RunFolderArgument,
    *,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.KEY=VALUE",
            help="Change a setting of the run, e.g. segment.steps=2000; can be given several times.",
        ),
    ] = None,
    redo: Redo = False,
    execution: ExecutionOptions,
    compute: ComputeOptions,
    output: OutputOptions,
) -> None:
    """Resume a stopped run, or learn from masks reviewed since; the images and the recipe are those of the folder."""
    import tagmask

    arguments: dict[str, Any] = {
        "settings": set_ or (), "redo": redo, "quiet": output.no_progress, **compute.run_arguments(),
        "execution": execution.execution(compute.workers),
    }  # fmt: skip
    _run_and_print(lambda: tagmask.resume(run_folder, **arguments), output)


def demo(
    out: Annotated[Path, typer.Option(help="The folder for the images and the run.")] = Path("demo"),
    images: Annotated[int, typer.Option(min=20, help="The number of training images to generate.")] = 900,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Generate images and run the demo recipe on them: no data, no downloads, a few minutes."""
    import tagmask
    from tagmask.cli.tables import print_run
    from tagmask.compute import is_main_process
    from tagmask.data.scenes import write_scenes

    scenes = out / f"scenes-{images}"
    print(f"generating {images} training images and 200 held-out images in {scenes}")
    write_scenes(scenes, num_train=images, num_val=200)
    source = tagmask.DataSource(root=str(scenes), split="train")
    held_out = source.model_copy(update={"split": "val"})
    result = tagmask.run(source, out / "run", held_out=held_out, recipe="demo", device=device, workers=workers)
    if is_main_process():
        print_run(result)


def recipes(
    name: Annotated[str | None, typer.Argument(help="The recipe to print; without it, all are listed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with tagmask, or print one of them."""
    from tagmask.recipe import load_recipe, recipe_descriptions, recipe_text

    if name is not None:
        print_json(load_recipe(name).model_dump(mode="json")) if as_json else print(recipe_text(name), end="")
        return
    descriptions = recipe_descriptions()
    if as_json:
        print_json(descriptions)
    else:
        width = max(map(len, descriptions))
        print("\n".join(f"{recipe:{width}}  {description}" for recipe, description in descriptions.items()))


def add_stage(
    run_folder: RunFolderArgument,
    method: Annotated[
        str, typer.Argument(help="The method of the stage, e.g. infercam, layercam, amn or pseudo_masks.")
    ],
    *,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a setting of the method, e.g. iterations=2; can be given several times.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The name of the stage and its folder.", show_default="that of the method")
    ] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Replace the stage if it exists with other settings.")] = False,
    compute: ComputeOptions,
    output: OutputOptions,
) -> None:
    """Run one more stage on the results of a finished run, e.g. to make response maps with another method."""
    from tagmask.api import load_run
    from tagmask.recipe import find_method

    opened = load_run(run_folder, **compute.run_arguments())
    result = opened.run_stage(method, set_ or (), name=name, redo=redo, quiet=output.no_progress)
    _print_result(result, output, is_of_maps="maps" in find_method(method).makes)


def _run_and_print(run: Callable[[], Run], output: OutputOptions) -> None:
    """Print what a run has made, or how to continue it if it was told to stop early."""
    from tagmask.compute import is_main_process
    from tagmask.errors import RunPaused

    try:
        _print_result(run(), output)
    except RunPaused as paused:
        if is_main_process() and output.as_json:
            print_json({"paused": str(paused)})
        elif is_main_process() and not output.quiet:
            print(paused)


def _print_result(result: Run, output: OutputOptions, *, is_of_maps: bool = False) -> None:
    """Print what a command has made, in the main process."""
    from tagmask.cli.tables import print_maps, print_run, run_json
    from tagmask.compute import is_main_process

    if not is_main_process():
        return
    if output.as_json:
        print_json(run_json(result))
    elif not output.quiet:
        print_maps(result) if is_of_maps else print_run(result)
