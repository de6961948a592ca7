"""A report with known figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tagmask.evaluate import MapScores
from tagmask.measure import ActivationStats, SegmentationReport, ThresholdReport
from tagmask.measure.metrics import SegmentationMetric, ThresholdCurveMetric
from tagmask.report import drawing
from tagmask.report.content import Example, NextStep, Picture, Report, StageSummary

TARGET = np.repeat([[0, 1, 2]], 9, 0).repeat(3, 1).astype(np.uint8)  # [9, 9]: three columns of each label


def curve(num_classes: int) -> ThresholdReport:
    """Measure noisy maps of classes 1 and 2."""
    metric = ThresholdCurveMetric(num_classes + 1)
    noise = np.random.default_rng(0).random((2, 9, 9))
    maps = 0.7 * np.stack([TARGET == 1, TARGET == 2]) + 0.4 * noise
    metric.update(maps.astype(np.float32), np.array([1, 2]), TARGET)
    return metric.compute()


def scores(num_classes: int, num_ignored_rows: int) -> SegmentationReport:
    """Measure a mask that is correct except for some rows of ignored pixels."""
    metric = SegmentationMetric(num_classes + 1)
    preds = TARGET.copy()
    preds[:num_ignored_rows] = 255
    metric.update(preds, TARGET)
    return metric.compute()


@pytest.fixture(autouse=True)
def _pictures_of_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_WIDTH", 400)


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """Return a function that makes a report of these classes; keyword arguments replace its fields."""

    def make(classes: tuple[str, ...] = ("cat", "cow"), **changes: Any) -> Report:
        picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        mask = np.zeros((20, 30, 3), np.uint8)
        mask[5:9, 4:20] = 128, 0, 0
        num_classes, tags = len(classes), (1, 2)[: len(classes)]
        final = Picture(mask, file="m/a/2.png")
        report = Report(
            title="photos",
            description="CAM, then a CRF",
            classes=classes,
            recipe="stages:\n  cam: {epochs: 5}\n",
            counts={"training images": 1464, "held-out images": 30},
            images_per_class={name: 1000 - i for i, name in enumerate(classes)},
            stages=[
                StageSummary("cam", "cam", {}, 75.2, 1464, "done"),
                StageSummary("masks", "pseudo_masks", {"maps": "cam", "segmenter": "net"}, 400.0, 1464, "running"),
            ],
            histories={"cam": [{"epoch": i, "loss": 1 / i, "lr": 0.1, "seconds": 9.0} for i in (1, 2, 3)]},
            maps={"cam (train)": MapScores(curve(num_classes), 0.4, ActivationStats(3.25, 0.5, 0.125))},
            thresholds={"cam (train)": 0.25},
            scores={"masks (train)": scores(num_classes, 2), "segment (val)": scores(num_classes, 1)},
            columns={"image": "", "map": "maps of cam", "final": "masks of segment", "ground truth": "correct"},
            examples=[Example("a/1", "a note", {"ground truth": [Picture(mask)], "image": [Picture(picture)]}, tags)],
            worst=[Example("a/2", "mIoU 3.0 %", {"image": [Picture(picture)], "final": [final]}, tags[-1:])],
            notes=["Seed 7."],
            outputs={"Masks": "masks/of all"},
            training_set="train",
            next_steps=[NextStep("Do this:", "tagmask do --this")],
        )
        return replace(report, **changes)

    return make
