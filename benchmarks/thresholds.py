"""Threshold curve in one pass against loops over 101 thresholds: images/s on 375×500 with 2 tags, 20 classes.

Run: python benchmarks/thresholds.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from tagmask.measure import confusion_at_thresholds
from tagmask.measure.metrics import ThresholdCurveMetric

NUM_LABELS = 21  # 20 classes and background
THRESHOLDS = np.arange(101) / 100
SHAPE = (375, 500)
CLASSES = np.array([3, 7])


def image(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two smooth maps [2, H, W] float32, as bilinear upsampling makes them, and ground truth with ignored borders."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((2, 24, 32)) ** 2
    maps = ndimage.zoom(coarse, (1, SHAPE[0] / 24, SHAPE[1] / 32), order=1).astype(np.float32)
    maps /= maps.max(axis=(1, 2), keepdims=True)
    ground_truth = np.where(maps.max(axis=0) > 0.4, CLASSES[maps.argmax(axis=0)], 0).astype(np.uint8)
    ground_truth[np.abs(maps.max(axis=0) - 0.4) < 0.02] = 255
    return maps, ground_truth


def plain_loop(maps: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """As the public implementations do: a label map and its confusion matrix at each threshold."""
    labels = np.concatenate([[0], CLASSES]).astype(np.uint8)
    return np.stack(
        [
            count(labels[np.concatenate([np.full((1, *SHAPE), t, np.float32), maps]).argmax(axis=0)], ground_truth)
            for t in THRESHOLDS
        ]
    )


def careful_loop(maps: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """A loop with all that does not depend on the threshold taken out of it."""
    known = ground_truth != 255
    best, label = maps.max(axis=0)[known], CLASSES[maps.argmax(axis=0)][known]
    size = NUM_LABELS
    row = ground_truth[known].astype(np.int64) * size
    return np.stack(
        [np.bincount(row + label * (best > np.float32(t)), minlength=size**2).reshape(size, size) for t in THRESHOLDS]
    )


def count(prediction: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """Confusion matrix [NUM_LABELS, NUM_LABELS]; ground truth 255 is left out."""
    size, known = NUM_LABELS, ground_truth != 255
    pairs = ground_truth[known].astype(np.int64) * size + prediction[known]
    return np.bincount(pairs, minlength=size**2).reshape(size, size)


def one_pass(maps: np.ndarray, ground_truth: np.ndarray) -> np.ndarray:
    """Return the confusion matrices at all thresholds that `ThresholdCurveMetric` counts on one image."""
    curve = ThresholdCurveMetric(NUM_LABELS, THRESHOLDS)
    curve.update(maps, CLASSES, ground_truth)
    return confusion_at_thresholds(curve.joint.numpy())


def seconds(function: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    maps, ground_truth = image(0)
    start = time.perf_counter()
    confusion = one_pass(maps, ground_truth)
    first = time.perf_counter() - start
    for loop in (plain_loop, careful_loop):
        if not np.array_equal(loop(maps, ground_truth), confusion):
            raise SystemExit(f"{loop.__name__} and ThresholdCurveMetric differ")

    curve = ThresholdCurveMetric(NUM_LABELS, THRESHOLDS)
    update = seconds(lambda: curve.update(maps, CLASSES, ground_truth), 200)
    print(f"{SHAPE[0]}×{SHAPE[1]}, 2 tags, {NUM_LABELS - 1} classes, {len(THRESHOLDS)} thresholds, one thread")
    print(f"ThresholdCurveMetric.update  {1 / update:8.1f} images/s   {update * 1e3:7.2f} ms")
    for name, loop in (("plain loop", plain_loop), ("loop, argmax hoisted", careful_loop)):
        took = seconds(lambda loop=loop: loop(maps, ground_truth), 7)  # type: ignore[misc]
        print(f"{name:27}  {1 / took:8.1f} images/s   {took * 1e3:7.2f} ms   {took / update:6.0f}×")
    state = sum(tensor.nbytes for tensor in (curve.joint, curve.image_best, curve.oracle))
    report = seconds(lambda: fresh(curve), 5)
    print(
        f"report {report * 1e3:.1f} ms; state {state / 1e6:.2f} MB; first image {first:.2f} s (compiled or from cache)"
    )


def fresh(curve: ThresholdCurveMetric) -> object:
    """The report, computed and not from torchmetrics' cache."""
    curve._computed = None
    return curve.compute()


if __name__ == "__main__":
    main()
