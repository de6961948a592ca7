"""The scores of the images, computed in another process so that the page answers meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tagmask.compute import exit_with_parent
from tagmask.errors import TagmaskError
from tagmask.progress import LoopUnit, Reporter
from tagmask.recipe import Recipe
from tagmask.text import shorten

_NICENESS = 10  # of the process: the page comes first


class Doubt:
    """The scores of the images of a run without ground truth (`tagmask.image_scores`).

    Args:
        folder: the run folder.
        stage: the stage whose masks are scored.
        recipe: of the run; the scoring process imports the same modules.

    Attributes:
        scores: the scores by image id, as JSON values; empty until they are computed.
        progress: 0..1 while they are being computed, else None.
        error: why there are none, in one sentence.
    """

    def __init__(self, folder: Path, stage: str, recipe: Recipe) -> None:
        self.scores: dict[str, dict[str, Any]] = {}
        self.progress: float | None = None
        self.error: str | None = None
        own = {type(method).__module__ for method in recipe.stages.values()}
        modules = sorted(name for name in own if not name.startswith("tagmask.methods."))
        self._command = [sys.executable, "-m", "tagmask.review.doubt", str(folder), stage, *modules]
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Begin to compute the scores, or to read them if nothing has changed since they were computed."""
        self.progress = 0.0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            env=environment, start_new_session=True,  # Ctrl-C is for the server, which calls `stop`
        )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process, errors), name="doubt", daemon=True).start()

    def stop(self) -> None:
        """End the process."""
        self._is_stopped = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM) if hasattr(os, "killpg") else self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)

    def _read(self, process: subprocess.Popen[str], errors: IO[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if "progress" in message:
                self.progress = message["progress"]
            elif "scores" in message:
                self.scores = {score["image"]: score for score in message["scores"]}
            else:
                self.error = message["error"]
        if process.wait() and not self._is_stopped:
            errors.seek(0)
            reason = shorten((errors.read().splitlines() or [f"status {process.returncode}"])[-1])
            self.error = f"the process that scores the masks has ended early ({reason})."
        errors.close()
        if self.error:
            print(f"warning: the images cannot be sorted by doubt: {self.error}", file=sys.stderr)
        self.progress = None


class _JsonReporter(Reporter):
    """Prints the progress of scoring as JSON lines."""

    @contextmanager
    def progress(self, description: str, total: int, unit: LoopUnit = "images") -> Iterator[Any]:
        done = printed = 0

        def advance(step: int) -> None:
            nonlocal done, printed
            done += step
            if done * 100 // total > printed:
                printed = done * 100 // total
                _print({"progress": printed / 100})

        yield advance if description == "scoring the masks" else lambda step: None


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def print_scores(folder: str, stage: str, *modules: str) -> None:
    """Score the masks of a run, and print JSON lines: {"progress": 0..1}, then {"scores": [...]} or {"error": ...}.

    Images that cannot be read are left out.

    Args:
        folder: the run folder.
        stage: the stage whose masks are scored.
        modules: the modules of the recipe's methods that are not tagmask's; they are imported.
    """
    from tagmask.api import load_run
    from tagmask.image_scores import update_image_scores
    from tagmask.method_modules import import_method_module
    from tagmask.run_folder import RunFolder

    reporter = _JsonReporter()
    try:
        for module in modules:
            import_method_module(module)
        run = load_run(folder, device="cpu")
        images, _ = run.read_and_verify_images(reporter, skip_bad=True)
        scores = update_image_scores(run.recipe, RunFolder(Path(folder)), images, run.compute, reporter, stage=stage)
        _print({"scores": [score.to_json(images.classes) for score in scores]})
    except TagmaskError as error:
        _print({"error": str(error)})


if __name__ == "__main__":
    exit_with_parent(os.getppid())
    with suppress(OSError, AttributeError):
        os.nice(_NICENESS)
    print_scores(*sys.argv[1:])
