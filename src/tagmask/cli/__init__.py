"""The command line: one function a command; no logic."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Annotated

import typer

from tagmask import __version__
from tagmask.cli import data, maps, results, run
from tagmask.errors import WORKER_KILLED, TagmaskError

STOPPED = 130  # the shell's status of a command that Ctrl-C ended

app = typer.Typer(
    name="tagmask",
    help="Tags in, masks out: pixel masks and a segmentation network from images with tags.",
    epilog="Begin with `tagmask demo`, then `tagmask run photos/ --tags tags.csv --out run/`.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    run.run, run.demo, data.check, run.recipes, maps.maps, maps.thresholds, results.predict, results.export,
    results.evaluate, results.report, data.saliency, data.scenes,
):  # fmt: skip
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(f"tagmask {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: an error that the user can mend is one sentence and exit status 1."""
    stopping = threading.Event()

    def stop(signum: int, frame: object) -> None:
        stopping.set()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # clusters send the latter, and to the loading processes, too
            signal.signal(number, stop)
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
    except (SystemExit, Exception) as end:
        # Ctrl-C comes from typer as an exit; of a process that lost its helpers to the same signal it may be any error.
        if stopping.is_set():
            print("tagmask: stopped; the same command goes on from here.", file=sys.stderr)
            raise SystemExit(STOPPED) from end
        lost_worker = isinstance(end, RuntimeError) and str(end).startswith("DataLoader worker")  # it has no class
        if not lost_worker:
            raise
        print(f"tagmask: loading images: {WORKER_KILLED}", file=sys.stderr)
        sys.exit(1)


def _sentence(error: TagmaskError) -> str:
    """What the error says; of one from a loading process, which comes with its traceback, the last line."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "\nOriginal Traceback" in text else text
