"""What the page reads: the run, its images, masks, maps, photographs and superpixels."""

from __future__ import annotations

import hashlib

import numpy as np
from starlette.testclient import TestClient

from tests.review.conftest import Tab


def test_the_run(client: TestClient) -> None:
    run = client.get("/api/run").json()
    assert run["name"] == "run"
    assert run["stage"] == "segment"
    assert [(entry["id"], entry["name"]) for entry in run["classes"]] == [(1, "blue"), (2, "green"), (3, "red")]
    assert all(entry["color"].startswith("#") for entry in run["classes"])
    assert (run["threshold"], run["has_maps"], run["num_images"], run["states"]) == (0.4, True, 8, {"open": 8})


def test_one_row_per_image(client: TestClient) -> None:
    answer = client.get("/api/images").json()
    rows = [dict(zip(answer["columns"], row, strict=True)) for row in answer["images"]]
    assert [row["id"] for row in rows] == [str(number) for number in range(8)]
    assert rows[3]["key"] == hashlib.sha256(b"3").hexdigest()[:16]
    assert (rows[3]["width"], rows[3]["height"], rows[3]["tags"]) == (48, 40, [2, 3])
    assert [rows[3][name] for name in ("state", "doubt", "version", "corrected_tags")] == ["open", None, 0, None]


def test_masks_and_maps(tab: Tab) -> None:
    expected = np.zeros((40, 48))
    expected[:, :13] = 2
    np.testing.assert_array_equal(tab.mask(), expected)
    description = tab.get().json()
    assert description["maps"] == {"classes": [2, 3], "grid": [10, 12], "background": False}
    maps = np.frombuffer(tab.get("/maps").content, "<f4").reshape(2, 10, 12)
    np.testing.assert_array_equal(maps[0, :, :4], 0.75)
    assert maps[0, :, 4:].max() == maps[1].max() == 0
