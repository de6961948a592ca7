"""The threshold at which a stage cuts response maps, the same for a whole run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from tagmask.artifacts import write_json
from tagmask.measure.metrics import ActivationHistogram
from tagmask.stage import StageContext
from tagmask.stage_folder import StageFolder, ThresholdRecord
from tagmask.training_curves import read_history

PLAUSIBLE_THRESHOLDS = (0.03, 0.97)  # a threshold outside says more about the network than about the images
HARDLY_FALLEN = 0.95  # the loss of the last epoch, as a part of that of the first one


def _number_from_0_to_1_or(*words: str) -> BeforeValidator:
    def check(value: object) -> object:
        if value in words or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
            return value
        raise ValueError(f"{value!r} is not a threshold; give {', '.join(words)} or a number from 0 to 1")

    return BeforeValidator(check)


Threshold = Annotated[float | Literal["auto", "per-image"], _number_from_0_to_1_or("auto", "per-image")]
GlobalThreshold = Annotated[float | Literal["auto"], _number_from_0_to_1_or("auto")]


def doubt_about(threshold: float, maps: StageFolder) -> str | None:
    """Return a warning if a chosen threshold shows that the network behind the maps has hardly learned; else None.

    Args:
        threshold: Otsu's threshold of the maps, 0..1.
        maps: the folder of the stage that made the maps, perhaps with the curve of its training.
    """
    advice = f"train longer (e.g. --set {maps.path.name}.epochs=...), and look at the response maps in the report."
    low, high = PLAUSIBLE_THRESHOLDS
    if not low <= threshold <= high:
        return (
            f"the threshold {threshold:.2f} lies at the border of its range, so the maps hardly separate objects from "
            f"background: {advice}"
        )
    record = maps.read_record_if_any()
    is_cam = record is not None and record.key.get("method") == "tagmask.methods.cam"  # others go on from a classifier
    losses = [epoch["loss"] for epoch in read_history(maps)] if is_cam else []
    if len(losses) > 1 and losses[-1] > HARDLY_FALLEN * losses[0]:
        return (
            f"the training loss of {maps.path.name} has hardly fallen (from {losses[0]:.3g} to {losses[-1]:.3g}): "
            f"{advice}"
        )
    return None


def record_threshold(context: StageContext, setting: Threshold, maps: StageFolder) -> float:
    """Choose the threshold of a stage, and write it to the stage's `threshold.json`.

    "auto" and "per-image" choose Otsu's threshold of the strongest activation of every pixel of all tagged images;
    with "per-image" it is the threshold near which each image's own one lies. A resumed stage reads the file.

    Args:
        context: of the stage.
        setting: a number, "auto" or "per-image".
        maps: the folder of the response maps.
    """
    if (recorded := context.folder.read_threshold_if_any()) is not None:
        return recorded.threshold
    if isinstance(setting, str):
        context.require_all_images("chooses a threshold")
        histogram = ActivationHistogram()
        samples = context.compute.shard([sample for sample in context.images.samples if sample.tags])
        with context.reporter.progress("choosing the threshold", len(samples)) as advance:
            for sample in samples:
                histogram.update(maps.read_maps(sample.id, size=sample.size).maps)
                advance(1)
        threshold = histogram.otsu()  # over all processes
        scope = "one threshold per image, near" if setting == "per-image" else "threshold"
        context.reporter.info(f"  {scope} {threshold:.2f} (Otsu's threshold of the activations)")
        if warning := doubt_about(threshold, maps):
            context.reporter.info(f"  warning: {warning}")
    else:
        threshold = setting
    context.compute.barrier()  # every process has looked for the file before the main process writes it
    if context.compute.is_main_process:
        record = ThresholdRecord(threshold=threshold, per_image=setting == "per-image")
        write_json(context.folder.threshold_path, record.model_dump())
    return float(threshold)
