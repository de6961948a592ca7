"""The threshold that a stage cuts its maps at: chosen over the whole run, and kept in the stage's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator

from tagmask.artifacts import read_json, write_json
from tagmask.maps import ResponseMaps
from tagmask.measure import ActivationHistogram
from tagmask.stage import Work, maps_file

_Word = Literal["auto", "per-image"]


def _check(value: object) -> object:
    if value in get_args(_Word) or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
        return value
    raise ValueError(f"{value!r} is no threshold; give auto, per-image or a number from 0 to 1")


Threshold = Annotated[float | _Word, BeforeValidator(_check)]
THRESHOLD_FILE = "threshold.json"


def threshold_of_run(work: Work, setting: Threshold) -> float:
    """The threshold given, or Otsu's over the strongest activation of every pixel of the run.

    It is written to the stage's folder, and read from there by a run that goes on. For "per-image" it is only what the
    images' own thresholds lie around, and the file says so.
    """
    file = work.folder / THRESHOLD_FILE
    if file.exists():
        return float(read_json(file)["threshold"])
    threshold = setting
    if isinstance(threshold, str):
        activations = ActivationHistogram()
        tagged = work.compute.share([sample for sample in work.images.samples if sample.tags])
        with work.progress("choosing the threshold", len(tagged)) as advance:
            for sample in tagged:
                activations.update(ResponseMaps.load(maps_file(work.inputs["maps"], sample)).maps)
                advance(1)
        threshold = activations.otsu()  # summed over the processes
        each = "a threshold for each image, around" if setting == "per-image" else "threshold"
        work.say(f"{each} {threshold:.2f} (Otsu's on the activations)")
    work.compute.barrier()  # all have looked for the file before it is there
    if work.compute.main:
        write_json(file, {"threshold": threshold} | ({"per_image": True} if setting == "per-image" else {}))
    return float(threshold)


def read_threshold(stage: Path) -> float | None:
    """The one threshold that a stage cut all its maps at; None if it cut none, or each image's at its own."""
    file = stage / THRESHOLD_FILE
    if not file.exists():
        return None
    kept = read_json(file)
    return None if kept.get("per_image") else float(kept["threshold"])
