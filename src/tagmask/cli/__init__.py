"""The command line. Each command is one function that calls the Python API and prints the result."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from typing import NoReturn

from tagmask.compute import let_threads_sleep
from tagmask.errors import WORKER_KILLED, TagmaskError, message_of

STOPPED_STATUS = 130  # the exit status that shells give to a command that Ctrl-C ended

_IGNORED_WARNINGS = (
    "ignore:Image size",  # Pillow's warning of decompression bombs: tagmask checks the size itself
    "ignore::UserWarning:PIL.TiffImagePlugin",  # damaged EXIF data does not matter
)


MAIN_PROCESS_SECONDS = 5.0


def main() -> None:
    """Run the command line. An error that the user can fix is printed as one sentence; the exit status is then 1."""
    _prepare_environment()
    stopped = threading.Event()

    def stop(signum: int, frame: object) -> None:
        stopped.set()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # clusters send SIGTERM, also to the worker processes
            signal.signal(number, stop)
    try:
        from tagmask.cli.commands import app  # Typer: late, so that an early Ctrl-C is handled, too

        app()
    except TagmaskError as error:
        _let_main_process_speak()
        _exit_with(message_of(error))
    except OSError as error:
        if error.strerror is None:
            raise
        file = f"{error.filename}: " if error.filename else ""
        _exit_with(f"{file}{error.strerror}; fix this, then run the same command again.")
    except (SystemExit, KeyboardInterrupt, Exception) as error:
        # Typer turns Ctrl-C into SystemExit. If the signal also ended worker processes, any error may arrive here.
        if stopped.is_set():
            redo = ", with --redo," if "--redo" in sys.argv else ""
            _exit_with(f"stopped; run the same command again{redo} to resume.", STOPPED_STATUS)
        if isinstance(error, RuntimeError) and str(error).startswith(
            "DataLoader worker"
        ):  # PyTorch has no class for it
            _exit_with(f"loading images: {WORKER_KILLED}")
        if isinstance(error, ModuleNotFoundError) and not (error.name or "tagmask").startswith("tagmask"):
            _exit_with(f"the package {error.name} is missing: install everything with `pip install tagmask`.")
        raise


def _prepare_environment() -> None:
    """Set what this process and its worker processes read from the environment, before PyTorch is imported."""
    # Large tensors in pages of 2 MB: on CPUs, getting pages of 4 KB from Linux takes as long as the convolutions
    # (benchmarks/maps.py). PyTorch reads this variable at its first allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    let_threads_sleep()
    given = [text for text in os.environ.get("PYTHONWARNINGS", "").split(",") if text]
    missing = [text for text in _IGNORED_WARNINGS if text not in given]
    os.environ["PYTHONWARNINGS"] = ",".join([*missing, *given])  # for worker processes
    warnings.filterwarnings("ignore", message="Image size")
    warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


def _exit_with(message: str, status: int = 1) -> NoReturn:
    print(f"tagmask: {message}", file=sys.stderr)
    sys.exit(status)


def _let_main_process_speak() -> None:
    """Wait a little if this is not the main process, which prints the same error more often than not.

    torchrun ends all processes when one fails. The main process would then only say that it was stopped.
    """
    if int(os.environ.get("RANK") or 0):
        with suppress(KeyboardInterrupt):
            time.sleep(MAIN_PROCESS_SECONDS)
