"""The section of the report on the training of the networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from tagmask.formatting import format_duration
from tagmask.report.charts import Axis, Series, line_chart
from tagmask.report.content import Report

_MIN_EPOCHS, _FALLING, _RISE = 3, 0.15, 1.1  # how the loss of a training is described
_NOT_A_LOSS = {"epoch", "lr", "seconds", "data_wait"}  # keys of a training history


class TrainingChart(NamedTuple):
    """The training curves of a stage.

    Attributes:
        stage: the name of the stage.
        losses: the names of the curves.
        chart: the losses of each epoch.
        caption: the number of epochs, the time and the last losses.
    """

    stage: str
    losses: list[str]
    chart: Markup
    caption: str


def training_charts(report: Report) -> list[TrainingChart]:
    """Return the training curves of each stage that trained a network."""
    charts = []
    for stage, history in report.histories.items():
        names = [name for name in dict.fromkeys(key for entry in history for key in entry) if name not in _NOT_A_LOSS]
        epochs = [entry["epoch"] for entry in history]
        lines = [Series(name, epochs, [_as_float(entry.get(name)) for entry in history]) for name in names]
        last = ", ".join(f"{line.name} {line.y[-1]:.3g}" for line in lines if line.y)
        chart = line_chart(
            lines,
            Axis("epoch", integers=True),
            Axis("loss", "{:.3g}".format),
            label=f"Training of {stage}. Last epoch: {last}",
        )
        if chart:
            charts.append(TrainingChart(stage, names, chart, _training_caption(history, last)))
    return charts


def _training_caption(history: Sequence[Mapping[str, Any]], last: str) -> str:
    seconds = sum(_as_float(entry.get("seconds", 0)) for entry in history)
    caption = f"{len(history)} epoch{'s' * (len(history) != 1)} in {format_duration(seconds)}"
    waits = [_as_float(entry["data_wait"]) for entry in history if "data_wait" in entry]
    if waits:
        caption += f", {100 * np.mean(waits):.0f} % of it waiting for data"
    return f"{caption}. Last epoch: {last}.{_describe_loss(history)}"


def _describe_loss(history: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence that says how the loss changed; empty for fewer than three epochs."""
    losses = [_as_float(entry.get("loss")) for entry in history]
    if len(losses) < _MIN_EPOCHS or not all(map(math.isfinite, losses)):
        return ""
    change = f" The loss went from {losses[0]:.3g} to {losses[-1]:.3g}"
    if is_loss_falling(history):
        return f"{change} and was still falling: a longer training may help."
    if losses[-1] > _RISE * min(losses):
        return f"{change}; it was lowest in epoch {losses.index(min(losses)) + 1}: a lower learning rate may help."
    return f"{change} and was level at the end."


def is_loss_falling(history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the loss fell in the last quarter of a training by more than 15 % of its whole decrease.

    Args:
        history: one entry per epoch, as `training.fit` writes them; False for fewer than three.
    """
    losses = [_as_float(entry.get("loss")) for entry in history]
    if len(losses) < _MIN_EPOCHS or not all(map(math.isfinite, losses)):
        return False
    before = losses[-1 - max(1, len(losses) // 4)]
    return losses[0] > losses[-1] and before - losses[-1] > _FALLING * (losses[0] - losses[-1])


def _as_float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
