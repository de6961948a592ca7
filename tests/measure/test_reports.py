import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagmask.measure import (
    ActivationStats,
    SegmentationReport,
    ThresholdReport,
    json_number,
    number_from_json,
)
from tagmask.measure.metrics import SegmentationMetric, ThresholdCurveMetric

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def through_json(data: object) -> dict[str, object]:
    """Write strict JSON, and read it."""
    return json.loads(json.dumps(data, allow_nan=False))


def assert_equal(actual: tuple[object, ...], expected: tuple[object, ...]) -> None:
    """Compare two reports of one type field by field, exactly; nan equals nan."""
    assert type(actual) is type(expected)
    for name, value, other in zip(actual._fields, actual, expected, strict=True):
        assert type(value) is type(other), name
        assert np.asarray(value).dtype == np.asarray(other).dtype, name
        np.testing.assert_array_equal(value, other, err_msg=name)


def class_names(num_labels: int) -> list[str]:
    return [f"class {k}" for k in range(1, num_labels)]


@given(FLOATS)
def test_numbers_survive_json(value: float) -> None:
    encoded = json.loads(json.dumps(json_number(value), allow_nan=False))
    assert number_from_json(encoded) == value or math.isnan(value)
    assert math.isnan(number_from_json(encoded)) == math.isnan(value)


@given(FLOATS, FLOATS, FLOATS)
def test_activation_stats_survive_json(imbalance: float, variation: float, gap: float) -> None:
    stats = ActivationStats(imbalance, variation, gap)
    assert_equal(ActivationStats.from_json(through_json(stats.to_json())), stats)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_segmentation_report_survives_json(seed: int, num_labels: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.append(rng.choice(num_labels, rng.integers(0, num_labels + 1)), 255)  # sometimes 255 alone: all nan
    metric = SegmentationMetric(num_labels)
    for shape in rng.integers(1, 20, (3, 2)):
        metric.update(rng.choice(values, shape), rng.choice(values, shape))
    report = metric.compute()
    assert_equal(SegmentationReport.from_json(through_json(report.to_json(class_names(num_labels)))), report)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(2, 6), st.sampled_from([None, [0.3], [-0.5, 0.1, 0.7]]))
def test_threshold_report_survives_json(seed: int, num_labels: int, thresholds: list[float] | None) -> None:
    rng = np.random.default_rng(seed)
    metric = ThresholdCurveMetric(num_labels, thresholds)
    for shape in rng.integers(1, 20, (3, 2)):
        classes = 1 + rng.permutation(num_labels - 1)[: rng.integers(0, num_labels)]
        target = rng.choice([0, *classes, 255], shape)
        target[0, 0] = 0  # at least one pixel counts
        metric.update(rng.random((len(classes), *shape)), classes, target)
    report = metric.compute()
    assert_equal(ThresholdReport.from_json(through_json(report.to_json(class_names(num_labels)))), report)


def test_classes_must_be_as_many_as_in_the_report() -> None:
    metric = ThresholdCurveMetric(num_labels=3)
    metric.update(np.zeros((0, 1, 1)), [], np.zeros((1, 1), np.uint8))
    with pytest.raises(ValueError, match="got 3 class names for 2 classes"):
        metric.compute().to_json(["cat", "dog", "cow"])
