"""The functions on label maps in the browser, against NumPy, SciPy and tagmask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from tagmask.label_map import label_boundaries
from tagmask.maps import ResponseMaps, grid_size
from tests.review.browser.conftest import Server


@pytest.fixture(scope="module")
def call(chromium: Any, server: Server) -> Any:
    """Return a function that evaluates JavaScript with `map`, the module label_map.js, and `a`, the arguments."""
    page = chromium.new_page()
    page.goto(server.url)
    module = "const map = await import('/static/js/label_map.js');"
    return lambda code, **arguments: page.evaluate(f"async (a) => {{ {module} return {code}; }}", arguments)


CUT = """String.fromCharCode(...map.cutMaps(a.maps.map((values, n) => (
    { classId: a.classes[n], map: new Float32Array(values), threshold: a.thresholds[n] })), a.width, a.height))"""


def cut(call: Any, maps: ResponseMaps, thresholds: list[float]) -> np.ndarray:
    height, width = maps.size
    labels = call(
        CUT, maps=maps.maps.reshape(len(maps.maps), -1).tolist(), classes=maps.classes.tolist(), thresholds=thresholds,
        width=width, height=height,
    )  # fmt: skip
    return np.frombuffer(labels.encode("latin-1"), np.uint8).reshape(maps.size)


@pytest.mark.parametrize("size", [(96, 128), (61, 83), (1, 7)])
@pytest.mark.parametrize("seed", [0, 1])
def test_cut_equals_the_label_map_of_tagmask(call: Any, size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((4, *grid_size(size)))
    values[:, : values.shape[1] // 2] = np.round(values[:, : values.shape[1] // 2] * 4) / 4  # ties and plateaus
    maps = ResponseMaps(np.array([2, 3, 5, 9]), values.astype(np.float16).astype(np.float32), size)
    for threshold in (0.0, 0.25, 0.3, 0.61, 1.0):
        same = cut(call, maps, [threshold] * 4) == maps.label_map(threshold)
        assert same.mean() >= 0.9999
    thresholds = [0.2, 0.5, 0.35, 0.8]
    margins = maps.full_size().astype(np.float64) - np.float32(thresholds)[:, None, None]
    expected = np.where(margins.max(0) > 0, maps.classes[margins.argmax(0)], 0)
    assert (cut(call, maps, thresholds) == expected).mean() >= 0.9999
    assert (cut(call, maps, thresholds) == maps.label_map(thresholds)).mean() >= 0.9999


def test_connected_pixels_and_outlines(call: Any) -> None:
    labels = np.random.default_rng(3).integers(0, 3, (20, 31)).astype(np.uint8)
    arguments = {"labels": labels.ravel().tolist(), "width": 31, "height": 20}
    for y, x in [(0, 0), (10, 15), (19, 30)]:
        code = f"map.connectedPixels(new Uint8Array(a.labels), a.width, a.height, {x}, {y})"
        regions, _ = ndimage.label(labels == labels[y, x])
        assert sorted(call(code, **arguments)) == np.flatnonzero(regions == regions[y, x]).tolist()
    lines = np.array(call("map.outlines(new Uint8Array(a.labels), a.width, a.height)", **arguments)).reshape(-1, 4)
    near = np.zeros(labels.shape, bool)
    for x0, y0, x1, y1 in lines:
        if y0 == y1:
            near[y0 - 1 : y0 + 1, x0:x1] = True
        else:
            near[y0:y1, x0 - 1 : x0 + 1] = True
    np.testing.assert_array_equal(near, label_boundaries(labels))


@pytest.mark.parametrize("diameter", [1, 2, 7.5])
def test_a_stroke_covers_the_pixels_near_the_line(call: Any, diameter: float) -> None:
    (x0, y0), (x1, y1) = (3.5, -4.0), (40.2, 17.3)
    code = """(() => {
        const mask = { labels: new Uint8Array(600), painted: new Uint8Array(600), width: 30, height: 20 };
        map.paintStroke(mask, a.start, a.end, a.diameter, 7, map.paintRule(7, 7, false));
        return Array.from(mask.labels);
    })()"""
    found = np.array(call(code, start=[x0, y0], end=[x1, y1], diameter=diameter)).reshape(20, 30)
    if diameter == 1:
        x0, y0, x1, y1 = (np.floor(value) + 0.5 for value in (x0, y0, x1, y1))
    rows, columns = np.mgrid[:20, :30] + 0.5
    along = np.clip(((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
    distance = np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0))
    np.testing.assert_array_equal(found == 7, distance <= diameter / 2)


def test_segments_and_runs(call: Any) -> None:
    rng = np.random.default_rng(5)
    segments = rng.integers(0, 40, 500)
    code = "a.numbers.map((n) => Array.from(map.pixelsBySegment(new Uint32Array(a.segments))(n)))"
    numbers = sorted(set(segments.tolist()))
    found = call(code, segments=segments.tolist(), numbers=numbers)
    assert found == [np.flatnonzero(segments == number).tolist() for number in numbers]
    labels = np.repeat(rng.integers(0, 256, 60), rng.integers(1, 50, 60)).tolist()
    code = "Array.from(map.decodeRuns(map.encodeRuns(new Uint8Array(a.labels)), a.labels.length))"
    assert call(code, labels=labels) == labels
    assert call("map.decodeRuns('1:5,0:3', 9)") is None
    assert call("map.decodeRuns('1:5,0:-3', 2)") is None


def test_changed_rectangles_can_be_put_back(call: Any) -> None:
    rng = np.random.default_rng(6)
    before = rng.integers(0, 9, (12, 17))
    after = before.copy()
    after[3:7, 5:11] += 1
    code = """(() => {
        const [before, after] = [new Uint8Array(a.before), new Uint8Array(a.after)];
        const rectangle = map.changedRectangle(before, after, 17);
        map.pasteRectangle(after, 17, rectangle, map.copyRectangle(before, 17, rectangle));
        return [rectangle, Array.from(after), map.changedRectangle(before, after, 17)];
    })()"""
    rectangle, restored, rest = call(code, before=before.ravel().tolist(), after=after.ravel().tolist())
    assert rectangle == {"left": 5, "top": 3, "right": 11, "bottom": 7}
    assert restored == before.ravel().tolist()
    assert rest is None
