"""The Typer application with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from tagmask import __version__
from tagmask.cli import data, exchange, finished_run, review, run
from tagmask.cli.options import with_option_groups
from tagmask.method_modules import import_method_module

app = typer.Typer(
    name="tagmask",
    help="Tags in, masks out: pixel masks and a segmentation network from images with tags.",
    epilog="Start with `tagmask demo`, then `tagmask run photos/ --tags tags.csv --out run/`.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    run.run, run.resume, run.demo, data.check, run.recipes, run.add_stage, finished_run.thresholds, finished_run.scores,
    finished_run.predict, review.review, exchange.export, exchange.import_, finished_run.evaluate,
    finished_run.report, data.shard, data.saliency, data.scenes,
):  # fmt: skip
    app.command(_command.__name__.rstrip("_").replace("_", "-"))(with_option_groups(_command))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    import_: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE",
            help="Import a module of your own that defines a method, so that recipes can use it; can be given several "
            "times, before the command.",
        ),
    ] = None,
) -> None:  # fmt: skip
    if version:
        print(f"tagmask {__version__}")
        raise typer.Exit
    for module in import_ or ():
        import_method_module(module)
