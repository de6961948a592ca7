"""The sections of the report on the classes: IoU, confusions, numbers of images, colors and the filter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tagmask.formatting import format_percent
from tagmask.label_map import IGNORE_INDEX
from tagmask.report.colors import css_color
from tagmask.report.content import Report
from tagmask.report.sections import headline_entries

MAX_ROWS = 30  # of a table of classes; further rows are folded away
MAX_CONFUSION_LABELS = 21  # of a confusion matrix that is shown as a table
MAX_CONFUSIONS, MIN_CONFUSION = 5, 0.02  # number of confusions that are listed, and the smallest fraction of a class


class ClassRow(NamedTuple):
    """A class, and its IoU in each entry of `Report.scores`: 0..1 or NaN."""

    color: str
    name: str
    iou: list[float]


def class_rows(report: Report) -> list[ClassRow]:
    """Return the classes and the background that occur somewhere, by ascending IoU in the first headline scores."""
    if not report.scores:
        return []
    order = list(report.scores).index(headline_entries(report)[0])
    table = np.stack([scores.iou for scores in report.scores.values()], axis=1)
    rows = [ClassRow(css_color(k), name, table[k].tolist()) for k, name in enumerate(("background", *report.classes))]
    measured = [row for row in rows if not all(map(math.isnan, row.iou))]
    return sorted(measured, key=lambda row: (math.isnan(row.iou[order]), row.iou[order]))


class TagRow(NamedTuple):
    """A class, the number of its images, and this number divided by that of the most frequent class."""

    color: str
    name: str
    num_images: int
    fraction: float


def tag_rows(report: Report) -> list[TagRow]:
    """Return the classes by descending number of images."""
    class_ids = {name: class_id for class_id, name in enumerate(report.classes, 1)}
    most = max(report.images_per_class.values(), default=0) or 1
    rows = [TagRow(css_color(class_ids[name]), name, n, n / most) for name, n in report.images_per_class.items()]
    return sorted(rows, key=lambda row: -row.num_images)


class ConfusionRow(NamedTuple):
    """A row of a confusion matrix: a label, its name, and the fractions of its pixels that got each label."""

    label: int
    name: str
    fractions: list[float]


def confusion_rows(report: Report) -> list[ConfusionRow]:
    """Return the confusion matrix of the headline scores, one row per label of the ground truth that occurs.

    The fractions of a row sum to 1; the last one is that of ignored pixels. Empty without scores, and for more than
    `MAX_CONFUSION_LABELS` labels.
    """
    entries = headline_entries(report)
    if not entries or len(report.classes) >= MAX_CONFUSION_LABELS:
        return []
    names = ("background", *report.classes)
    return [
        ConfusionRow(label, names[label], (row / row.sum()).tolist())
        for label, row in enumerate(report.scores[entries[0]].confusion)
        if row.sum()
    ]


def confusion_sentences(report: Report) -> list[str]:
    """Return the most frequent confusions of the headline scores, as sentences; none below 2 % of a class."""
    entries = headline_entries(report)
    if not entries:
        return []
    names = ("background", *report.classes)
    confusions = []
    for label, row in enumerate(report.scores[entries[0]].confusion[:, :-1]):
        if row.sum():
            fractions = row / row.sum()
            confusions += [(fractions[other], label, other) for other in range(len(names)) if other != label]
    confusions.sort(reverse=True)
    return [
        f"{format_percent(fraction)} of the pixels of {names[label]} are labeled as {names[other]}."
        for fraction, label, other in confusions[:MAX_CONFUSIONS]
        if fraction >= MIN_CONFUSION
    ]


class NamedColor(NamedTuple):
    """A label: its color as CSS, and its name."""

    color: str
    name: str


def named_color(classes: Sequence[str], class_id: int) -> NamedColor:
    """Return the color and the name of a class."""
    return NamedColor(css_color(class_id), classes[class_id - 1])


def color_legend(classes: Sequence[str]) -> list[NamedColor]:
    """Return the color and the name of each label that a label map can hold, apart from the background."""
    labels = [*enumerate(classes, 1), (IGNORE_INDEX, "ignored")]
    return [NamedColor(css_color(label), name) for label, name in labels]


def class_filter(report: Report) -> list[tuple[int, str]]:
    """Return the id and name of each class of the examples, for the filter; empty if there is only one."""
    shown = {tag for example in (*report.examples, *report.worst) for tag in example.tags or ()}
    return [(k, name) for k, name in enumerate(report.classes, 1) if k in shown] if len(shown) > 1 else []
