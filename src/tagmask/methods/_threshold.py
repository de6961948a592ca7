"""The threshold that a stage cuts maps at: chosen over the whole run, and kept in the stage's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from tagmask.artifacts import read_json, write_json
from tagmask.maps import ResponseMaps
from tagmask.measure import ActivationHistogram
from tagmask.stage import StageContext, maps_path


def _check(*words: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value in words or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
            return value
        raise ValueError(f"{value!r} is no threshold; give {', '.join(words)} or a number from 0 to 1")

    return BeforeValidator(check)


Threshold = Annotated[float | Literal["auto", "per-image"], _check("auto", "per-image")]
OneThreshold = Annotated[float | Literal["auto"], _check("auto")]
THRESHOLD_FILE = "threshold.json"


def threshold_of_run(context: StageContext, setting: Threshold) -> float:
    """The threshold given, or Otsu's on the maps that the stage takes. It is kept in `threshold.json`.

    For "per-image" it is only what the images' own thresholds lie around, and the file says so.
    """
    tagged = context.compute.shard([sample for sample in context.images.samples if sample.tags])
    maps = (ResponseMaps.load(maps_path(context.inputs["maps"], sample)) for sample in tagged)
    return kept_threshold(context, setting, maps, len(tagged), THRESHOLD_FILE)


def kept_threshold(context: StageContext, setting: Threshold, maps: Iterable[ResponseMaps], n: int, name: str) -> float:
    """The threshold given, or Otsu's over the strongest activation of every pixel of the maps.

    It is written to the stage's folder, and read from there by a run that goes on.

    Args:
        maps: this process's n images'; gone through only where the threshold is to be chosen.
        name: of the file.
    """
    file = context.folder / name
    if file.exists():
        return float(read_json(file)["threshold"])
    threshold = setting
    if isinstance(threshold, str):
        activations = ActivationHistogram()
        with context.progress("choosing the threshold", n) as advance:
            for each in maps:
                activations.update(each.maps)
                advance(1)
        threshold = activations.otsu()  # summed over the processes
        what = "a threshold for each image, around" if setting == "per-image" else "threshold"
        context.info(f"{what} {threshold:.2f} (Otsu's on the activations)")
    context.compute.barrier()  # all have looked for the file before it is there
    if context.compute.is_main_process:
        write_json(file, {"threshold": threshold} | ({"per_image": True} if setting == "per-image" else {}))
    return float(threshold)


def read_threshold(stage: Path) -> float | None:
    """The one threshold that a stage cut all its maps at; None if it cut none, or each image's at its own."""
    file = stage / THRESHOLD_FILE
    if not file.exists():
        return None
    kept = read_json(file)
    return None if kept.get("per_image") else float(kept["threshold"])
