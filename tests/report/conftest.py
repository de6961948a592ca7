from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tagmask.evaluate import MapScores
from tagmask.measure import ActivationFigures, SegmentationReport, SegmentationScores, ThresholdCurve, ThresholdReport
from tagmask.report.page import Example, Report, StageSummary


def curve(n: int) -> ThresholdReport:
    """Of random maps of two classes."""
    rng = np.random.default_rng(0)
    measured = ThresholdCurve(n)
    ground_truth = np.repeat([[0, 1, 2]], 9, 0).repeat(3, 1).astype(np.uint8)
    maps = 0.7 * np.stack([ground_truth == 1, ground_truth == 2]) + 0.4 * rng.random((2, 9, 9))
    measured.update(maps.astype(np.float32), np.array([1, 2]), ground_truth)
    return measured.compute()


def scores(n: int, wrong: int) -> SegmentationReport:
    """Of a picture of classes 1 and 2 in which `wrong` rows are unsure."""
    measured = SegmentationScores(n)
    ground_truth = np.repeat([[0, 1, 2]], 9, 0).repeat(3, 1).astype(np.uint8)
    prediction = ground_truth.copy()
    prediction[:wrong] = 255
    measured.update(ground_truth, prediction)
    return measured.compute()


@pytest.fixture
def make_report() -> Callable[..., Report]:
    def make(classes: tuple[str, ...] = ("cat", "cow"), **changes: Any) -> Report:
        picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        mask = np.zeros((20, 30, 3), np.uint8)
        mask[5:9, 4:20] = 128, 0, 0
        n = len(classes)
        report = Report(
            title="photos",
            description="CAM, then a CRF",
            recipe="stages:\n  cam: {epochs: 5}\n",
            classes=classes,
            counts={"training images": 1464, "held-out images": 30},
            tags_per_class={name: 1000 - i for i, name in enumerate(classes)},
            stages=[StageSummary("cam", "Cam", 75.2, 1464, "done"), StageSummary("crf", "Crf", 400.0, 1464, "running")],
            histories={"cam": [{"epoch": i, "loss": 1 / i, "lr": 0.1, "seconds": 9.0} for i in (1, 2, 3)]},
            maps={"cam (train)": MapScores(curve(n), 0.4, ActivationFigures(3.25, 0.5, 0.125))},
            chosen={"cam (train)": 0.25},
            scores={"crf (train)": scores(n, 2), "segment (val)": scores(n, 1)},
            examples=[Example("a/1", "a note", {"truth": mask, "image": picture, "my own": picture})],
            worst=[Example("a/2", "mIoU 3 %", {"image": picture, "final": mask})],
            notes=["Seed 7."],
            places={"masks": "run/masks"},
        )
        return replace(report, **changes)

    return make
