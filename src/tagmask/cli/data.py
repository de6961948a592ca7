"""Commands about data: check, shard, saliency, scenes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tagmask.cli.options import (
    AsJson,
    DataOptions,
    Device,
    ImageOptions,
    ImagesArgument,
    OutputOptions,
    SkipBad,
    Workers,
    print_json,
)
from tagmask.compute import default_workers
from tagmask.errors import RecipeError


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


def shard(
    images: ImagesArgument,
    out: Annotated[
        str, typer.Option(help="The folder or URL (s3://, gs://, az://, hf://) to write to; existing shards are kept.")
    ],
    data: DataOptions,
    *,
    images_per_shard: Annotated[int, typer.Option(min=1, help="The number of images per shard.")] = 1000,
    skip_bad: SkipBad = False,
    workers: Workers = None,
    output: OutputOptions,
) -> None:
    """Pack a data set into parquet shards: for object storage, and for more images than files are good for.

    The shards are also a valid Hugging Face data set. Every command that takes a folder of images also takes the folder
    or URL of shards.
    """
    from tagmask.data.shard_writer import pack_shards
    from tagmask.errors import DataError
    from tagmask.formatting import format_bytes
    from tagmask.progress import Reporter

    for option in ("saliency", "reviewed"):
        if getattr(data, option) is not None:
            raise DataError(f"shards hold no {option} files: leave out --{option} here, and give it to `tagmask run`.")
    packed = pack_shards(
        data.source(images).read(), out, split=data.split, images_per_shard=images_per_shard, skip_bad=skip_bad,
        workers=default_workers() if workers is None else workers,
        progress=Reporter.to_stderr(quiet=output.no_progress).progress,
    )  # fmt: skip
    if output.as_json:
        print_json(packed.to_json())
    elif not output.quiet:
        for problem in packed.problems:
            print(problem)
        kept = f", {packed.num_kept} of them kept" if packed.num_kept else ""
        print(
            f"{packed.num_images} images in {len(packed.urls)} shards ({format_bytes(packed.num_bytes)}{kept}) in {out}"
        )


def saliency(
    images: ImagesArgument,
    out: Annotated[Path, typer.Option(help="The folder for the saliency maps; existing maps are kept.")],
    data: ImageOptions,
    *,
    with_: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="MODEL",
            show_default="required",
            help="What makes the maps: rembg:<model>, e.g. rembg:birefnet-general-lite, or tokencut:<timm model>, e.g. "
            "tokencut:vit_small_patch8_224.dino.",
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="The weights of the model of tokencut: pretrained (downloaded by timm) or a file.")
    ] = "pretrained",
    tau: Annotated[
        float, typer.Option(min=-1, max=1, help="The cosine similarity above which two tokens of tokencut are alike.")
    ] = 0.2,
    crf: Annotated[bool, typer.Option("--crf", help="Refine the foreground of tokencut with the dense CRF.")] = False,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    workers: Workers = None,
    output: OutputOptions,
) -> None:
    """Make saliency maps with a network, for `tagmask run --saliency`."""
    if with_ is None:
        raise RecipeError(
            "tagmask saliency needs a model: give --with rembg:<model> or --with tokencut:<timm model> (the method "
            "without a network, which was the default, has been removed, because masks were not better with its maps)."
        )
    from tagmask.compute import Compute
    from tagmask.data.new_images import list_images
    from tagmask.data.saliency import write_missing_saliency_maps
    from tagmask.models.saliency import load_saliency_model
    from tagmask.models.weights_license import restriction_of_weights
    from tagmask.progress import Reporter

    reporter = Reporter.to_stderr(quiet=output.no_progress)
    kind, _, model = with_.partition(":")
    if kind == "rembg":
        reporter.info(
            "the networks of rembg learned from drawn masks: what is made with their maps is not made from tags alone."
        )
    elif kind == "tokencut" and weights == "pretrained" and (restriction := restriction_of_weights(model)):
        reporter.info(restriction)
    source = data.source(images)
    if out.is_dir():  # if it is in the folder of the images, the maps in it are not images
        source = source.model_copy(update={"saliency": str(out)})
    compute = Compute.detect(device, workers=workers)
    written = write_missing_saliency_maps(
        list_images(source), out, lambda: load_saliency_model(with_, compute, weights, tau, crf=crf),
        skip_bad=skip_bad, compute=compute, progress=reporter.progress,
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
