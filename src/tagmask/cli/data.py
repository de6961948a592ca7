"""Commands about data: check, saliency, scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli.options import (
    AsJson,
    DataOptions,
    ImageOptions,
    ImagesArgument,
    OutputOptions,
    SkipBad,
    Workers,
    print_json,
)
from tagmask.compute import default_workers


def check(images: ImagesArgument, data: DataOptions, workers: Workers = None, as_json: AsJson = False) -> None:
    """Print what a data set contains and what is wrong with it. The exit status is 1 if images cannot be used."""
    from tagmask.cli.check_tables import print_check
    from tagmask.data.check import check_images
    from tagmask.progress import Reporter

    reporter = Reporter.to_stderr(quiet=as_json)
    num_workers = default_workers() if workers is None else workers
    report = check_images(data.source(images).read(), workers=num_workers, progress=reporter.progress)
    print_json(report.to_json()) if as_json else print_check(report)
    if not report.ok:
        raise typer.Exit(1)


def saliency(
    images: ImagesArgument,
    out: Annotated[Path, typer.Option(help="The folder for the saliency maps; existing maps are kept.")],
    data: ImageOptions,
    *,
    skip_bad: SkipBad = False,
    workers: Workers = None,
    output: OutputOptions,
) -> None:
    """Compute weak saliency maps without a network (robust background detection), for `tagmask run --saliency`."""
    from tagmask.data.background_detection import write_missing_saliency_maps
    from tagmask.data.new_images import list_images
    from tagmask.progress import Reporter

    source = data.source(images)
    if out.is_dir():  # if it is in the folder of the images, the maps in it are not images
        source = source.model_copy(update={"saliency": str(out)})
    written = write_missing_saliency_maps(
        list_images(source), out, skip_bad=skip_bad, workers=default_workers() if workers is None else workers,
        progress=Reporter.to_stderr(quiet=output.no_progress).progress,
    )  # fmt: skip
    if output.as_json:
        paths = {sample.id: str(sample.saliency) for sample in written.samples}
        print_json({"saliency": paths, "problems": [str(problem) for problem in written.problems]})
    elif not output.quiet:
        print(f"{len(written)} saliency maps in {out}")


def scenes(
    out: Annotated[Path, typer.Argument(help="The folder to write, in the layout of VOC.")],
    train: Annotated[int, typer.Option(min=1, help="The number of training images.")] = 2000,
    val: Annotated[int, typer.Option(min=0, help="The number of held-out images.")] = 400,
    size: Annotated[int, typer.Option(min=32, help="The width and height of the images in pixels.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="The random seed; the same seed gives the same images.")] = 0,
) -> None:
    """Generate the images of the demo, with tags, exact masks and simulated saliency maps."""
    from tagmask.data.scenes import write_scenes
    from tagmask.progress import Reporter

    with Reporter.to_stderr().progress("scenes", train + val) as advance:
        write_scenes(out, num_train=train, num_val=val, size=size, seed=seed, advance=advance)
    print(out)
