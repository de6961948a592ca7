"""Commands on a finished run: thresholds, scores, predict, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tagmask.cli.options import (
    COMPUTE_PANEL,
    DATA_PANEL,
    OUTPUT_PANEL,
    AsJson,
    ClassOptions,
    Competition,
    ComputeOptions,
    Device,
    EngineOption,
    OutputOptions,
    Quiet,
    RunFolderArgument,
    SkipBad,
    Workers,
    print_json,
)

if TYPE_CHECKING:
    from tagmask.base_predictor import BasePredictor
    from tagmask.results import Run


def thresholds(
    run_folder: RunFolderArgument,
    *,
    data: Annotated[
        str | None,
        typer.Option(
            help="The training images with ground truth, if the data of the run has none.", rich_help_panel=DATA_PANEL
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML page to write.", show_default="thresholds.html in the run folder")
    ] = None,
    options: ClassOptions,
    workers: Workers = None,
    output: OutputOptions,
) -> None:
    """Measure the response maps of a run at every threshold: print figures, and write their curves to one page."""
    from tagmask.api import load_run
    from tagmask.cli.tables import print_curves
    from tagmask.compute import is_main_process
    from tagmask.results import THRESHOLDS_FILE

    if data is None and options.non_default_flags():
        raise typer.BadParameter(f"{options.non_default_flags()[0]} describes the images of --data: add --data FOLDER")
    source = None if data is None else options.source(data)
    opened = load_run(run_folder, device="cpu", workers=workers)
    evaluation = opened.write_threshold_report(source, out=out, quiet=output.no_progress)
    if not is_main_process():
        return
    if output.as_json:
        print_json({"maps": evaluation.to_json()["maps"]})
    elif not output.quiet:
        print_curves(evaluation)
        print(f"curves  {out or run_folder / THRESHOLDS_FILE}")


def scores(
    run_folder: RunFolderArgument,
    *,
    sort: Annotated[str, typer.Option(help="The column to sort by, the images to look at first on top.")] = "doubt",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="The number of images to print.", show_default="20; all with --csv, --json"),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="The stage whose masks are scored.", show_default="the recommended one")
    ] = None,
    workers: Workers = None,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print the table as CSV.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    output: OutputOptions,
) -> None:
    """Score the mask of each training image without ground truth: which images to look at first.

    The table is also written to scores.csv in the run folder.
    """
    from tagmask.api import load_run
    from tagmask.cli.tables import print_image_scores
    from tagmask.compute import is_main_process
    from tagmask.image_scores import SCORES_FILE, format_csv, sort_scores

    opened = load_run(run_folder, device="cpu", workers=workers)
    rows = sort_scores(opened.scores(stage=stage, quiet=output.no_progress or as_csv), sort)
    if not is_main_process():
        return
    if output.as_json:
        print_json([score.to_json(opened.classes) for score in rows[:limit]])
    elif as_csv:
        print(format_csv(rows[:limit], opened.classes), end="")
    elif not output.quiet:
        print_image_scores(rows[: limit or 20], opened.classes)
        print(f"all {len(rows)} images  {run_folder / SCORES_FILE}")


def predict(
    network: Annotated[
        str,
        typer.Argument(
            help="A run folder; or an exported network: an ONNX file (.onnx), a folder of the format hub, or "
            "hf://owner/name on Hugging Face Hub."
        ),
    ],
    images: Annotated[
        list[str],
        typer.Argument(help="Image files, folders of images, or URLs; or the folder or URL of shards."),
    ],
    *,
    out: Annotated[
        str,
        typer.Option(
            help="The folder to write to; masks that exist in OUT/masks are kept. For shards: the folder or URL of the "
            "shards of masks, one for each shard of images."
        ),
    ],
    tags: Annotated[
        str | None,
        typer.Option(
            help="A table with the columns image and tags; only the tagged classes can then appear in an image.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Segment only the images of a list: a text file with one name per line, or in the layout voc its "
            "name, e.g. test.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Other formats to write, e.g. coco,overlays; `tagmask export --help` lists them."),
    ] = None,
    competition: Competition = "comp6",
    single_pass: Annotated[
        bool,
        typer.Option(
            "--single-pass",
            help="See each image once, at its own size: no other scales, no flips, no CRF. Faster and less exact; "
            "always so for ONNX files.",
        ),
    ] = False,
    regions: Annotated[
        bool,
        typer.Option(
            "--regions",
            help="Then let regions of the image vote on each mask, as the stage `regions` does at the end of the run: "
            "better outlines, and slower.",
        ),
    ] = False,
    redo: Annotated[
        bool,
        typer.Option(
            "--redo", help="Replace masks in --out that another network made, or that belong to other images or tags."
        ),
    ] = False,
    skip_bad: SkipBad = False,
    engine: EngineOption = "local",
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", rich_help_panel=COMPUTE_PANEL,
            help="Segment only every N-th shard, beginning with the I-th, e.g. 3/8: for array jobs.",
        ),
    ] = None,
    compute: ComputeOptions,
    output: OutputOptions,
) -> None:  # fmt: skip
    """Segment new images with the network of a run, or with an exported network.

    An ONNX file is computed by onnxruntime, without PyTorch.
    """
    from tagmask.compute import is_main_process
    from tagmask.data.shard_reader import holds_shards, may_hold_shards

    if len(images) == 1 and may_hold_shards(images[0]) and holds_shards(images[0]):
        for option, value in (("--tags", tags), ("--also", also)):
            if value:
                raise typer.BadParameter(f"{option} has no effect on shards: leave it out")
        _predict_shards(
            network, images[0], out, compute, output, split=split, part=shard, engine=engine, single_pass=single_pass,
            regions=regions, skip_bad=skip_bad, redo=redo,
        )  # fmt: skip
        return
    if engine != "local" or shard is not None:
        raise typer.BadParameter("--engine and --shard are for shards: make them with `tagmask shard`")
    formats = [name.strip() for names in also or () for name in names.split(",") if name.strip()]
    masks = _open_network(network, compute).predict_files(
        images, out, tags=tags, split=split, also=formats, competition=competition, single_pass=single_pass,
        regions=regions, skip_bad=skip_bad, redo=redo, quiet=output.no_progress,
    )  # fmt: skip
    if not is_main_process():
        return
    exported = {format: str(Path(out) / format) for format in formats}
    if output.as_json:
        print_json({"masks": {image_id: str(path) for image_id, path in masks.items()}, **exported})
    elif not output.quiet:
        print(f"{len(masks)} masks in {Path(out) / 'masks'}")
        for format, path in exported.items():
            print(f"{format} in {path}")


def _predict_shards(
    network: str,
    shards: str,
    out: str,
    compute: ComputeOptions,
    output: OutputOptions,
    *,
    part: str | None,
    **arguments: Any,
) -> None:
    """Segment shards, and print what has become of them; the exit status is 1 if some have no masks."""
    from tagmask.execution import parse_part
    from tagmask.predict_shards import predict_shards

    made = predict_shards(
        network, shards, out, part=parse_part(part), quiet=output.no_progress, **compute.run_arguments(), **arguments
    )
    if output.as_json:
        print_json(made.to_json())
    elif not output.quiet:
        kept = sum(outcome.kept for outcome in made.outcomes)
        done = len(made.outcomes) - len(made.failed)
        print(f"{made.num_images} masks in {done} shards{f' ({kept} of them kept)' if kept else ''} in {out}")
    made.check()


def _open_network(network: str, compute: ComputeOptions) -> Run | BasePredictor:
    """Return a run or an exported network, which have the method `predict_files`."""
    arguments = compute.run_arguments()
    if network.endswith(".onnx"):
        import tagmask

        if arguments.pop("precision") == "bfloat16":
            raise typer.BadParameter("an ONNX file computes in float32: leave out --precision")
        return tagmask.load_onnx(network, **arguments)
    from tagmask.api import load  # not for ONNX files: it needs packages that these do not need

    return load(network, **arguments)


def evaluate(
    run_or_masks: Annotated[
        str,
        typer.Argument(help="A run folder, a folder of masks named <id>.png, or the folder or URL of shards of masks."),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="The folder or URL of the images, in any layout that `tagmask run` reads.", rich_help_panel=DATA_PANEL
        ),
    ],
    options: ClassOptions,
    *,
    device: Device = "auto",
    workers: Workers = None,
    engine: EngineOption = "local",
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    boundary: Annotated[
        bool,
        typer.Option("--boundary/--no-boundary", help="Measure the boundary F-score, which takes most of the time."),
    ] = True,
) -> None:
    """Measure the network of a run, or any folder of masks, against ground truth: IoU, mIoU and boundary F-score.

    The network's masks of these images are kept in the run folder (held_out/).
    """
    from tagmask.api import evaluate_predictions
    from tagmask.cli.tables import print_scores
    from tagmask.compute import is_main_process

    source = options.source(data)
    classes, scores = evaluate_predictions(
        run_or_masks, source, device=device, workers=workers, engine=engine, quiet=as_json, boundary=boundary,
        skip_bad=skip_bad,
    )  # fmt: skip
    if is_main_process():
        print_json(scores.to_json(classes)) if as_json else print_scores(scores, classes)


def report(run_folder: RunFolderArgument, quiet: Quiet = False) -> None:
    """Measure a run again, and write its report again."""
    from tagmask.api import load_run
    from tagmask.compute import is_main_process

    opened = load_run(run_folder)
    opened.update_report(quiet=quiet)
    if is_main_process() and not quiet:
        print(opened.report)
