"""What the page changes: drafts, states, tags, undo, and two tabs on one image."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import tagmask
from tagmask.artifacts import atomic_write
from tagmask.label_map import read_label_map
from tagmask.review.app import create_app
from tagmask.review.images import image_key
from tagmask.review.security import Access
from tagmask.review.session import ReviewSession
from tagmask.review_folder import ReviewFolder
from tests.review.conftest import ORIGIN, Tab


@pytest.fixture
def review(folder: Path) -> ReviewFolder:
    return ReviewFolder(folder / "review")


def labels(value: int, columns: int = 20) -> np.ndarray:
    mask = np.zeros((40, 48), np.uint8)
    mask[:, :columns] = value
    return mask


def test_a_draft_is_kept_and_is_no_ground_truth(tab: Tab, review: ReviewFolder) -> None:
    assert tab.put_mask(labels(255), 0).json() == {"version": 1, "state": "draft", "tags": None}
    np.testing.assert_array_equal(tab.mask(), labels(255))
    np.testing.assert_array_equal(tab.mask("run"), labels(2, 13))
    assert tab.get("/mask").headers["x-version"] == "1"
    np.testing.assert_array_equal(review.read_mask("3"), labels(255))
    assert review.read_ground_truth() == {}
    assert review.read_states()["3"].source == "review page"


def test_the_editor_goes_on_with_painted_pixels_and_thresholds(tab: Tab, review: ReviewFolder) -> None:
    painted = labels(1, 5) > 0
    tab.put_mask(labels(1), 0, painted=painted, **{"X-Thresholds": '{"2": 0.25, "3": 0.5}'})
    assert tab.get().json()["thresholds"] == {"2": 0.25, "3": 0.5}
    np.testing.assert_array_equal(np.frombuffer(tab.get("/painted").content, bool).reshape(40, 48), painted)
    tab.post("/state", state="accept", base=1)  # the same mask
    assert tab.get().json()["thresholds"] == {"2": 0.25, "3": 0.5}
    tab.put_mask(labels(3), 2)  # by a program that does not say what was painted
    assert tab.get().json()["thresholds"] is None
    assert not any(tab.get("/painted").content)
    tab.post("/restore", number=1, base=3)
    assert tab.get().json()["thresholds"] == {"2": 0.25, "3": 0.5}
    [file] = (review.path / ".edits").iterdir()
    for damaged in (b"", b"no PNG", file.read_bytes()[:-30]):
        file.write_bytes(damaged)
        assert tab.get().json()["thresholds"] is None


def test_thresholds_that_are_none_are_refused(tab: Tab, review: ReviewFolder) -> None:
    for text in ("", "[1]", '{"0": 0.5}', '{"255": 0.5}', '{"1": NaN}', '{"1": 2}', '{"1": "a"}'):
        answer = tab.put_mask(labels(1), 0, painted=labels(1), **{"X-Thresholds": text})
        assert answer.status_code == 400, text
        assert "X-Thresholds is not valid" in answer.json()["error"]
    assert review.read_states() == {}


@pytest.mark.parametrize(("columns", "state"), [(13, "accepted"), (14, "corrected")])
def test_an_accepted_mask_is_corrected_if_it_differs_from_that_of_the_run(
    tab: Tab, review: ReviewFolder, columns: int, state: str
) -> None:
    saved = tab.put_mask(labels(2, columns), 0, "accept").json()
    assert saved == {"version": 1, "state": state, "tags": None}
    assert review.read_ground_truth()["3"].state == state
    np.testing.assert_array_equal(review.read_mask("3"), labels(2, columns))


def test_accepting_without_a_mask_accepts_the_newest_one(tab: Tab, review: ReviewFolder) -> None:
    assert tab.post("/state", state="accept", base=0).json()["state"] == "accepted"
    np.testing.assert_array_equal(review.read_mask("3"), labels(2, 13))
    tab.put_mask(labels(3), 1)
    assert tab.post("/state", state="accept", base=2).json() == {"version": 3, "state": "corrected", "tags": None}
    np.testing.assert_array_equal(review.read_mask("3"), labels(3))


def test_rejecting_and_reopening_remove_the_mask(tab: Tab, review: ReviewFolder) -> None:
    tab.put_mask(labels(3), 0)
    assert tab.post("/state", state="reject", base=1).json() == {"version": 2, "state": "rejected", "tags": None}
    assert not review.mask_path("3").exists()
    np.testing.assert_array_equal(tab.mask(), labels(2, 13))
    assert tab.post("/state", state="open", base=2).json()["state"] == "open"
    assert review.read_states() == {}


def test_tags(tab: Tab, review: ReviewFolder) -> None:
    """The classes are blue, green and red; the data set gives image 3 the tags green and red."""
    assert tab.post("/state", state="tags", tags=[3, 1], base=0).json() == {
        "version": 1,
        "state": "open",
        "tags": [1, 3],
    }
    description = tab.get().json()
    assert (description["tags"], description["data_tags"]) == ([1, 3], [2, 3])
    assert tab.put_mask(labels(1), 1).json()["tags"] == [1, 3], "a mask without tags leaves them as they are"
    saved = tab.put_mask(labels(1), 2, "accept", **{"X-Tags": "[1]"}).json()
    assert saved == {"version": 3, "state": "corrected", "tags": [1]}
    assert review.read_ground_truth()["3"].tags == ("blue",)
    saved = tab.post("/state", state="tags", tags=[2, 3], base=3).json()
    assert saved == {"version": 4, "state": "corrected", "tags": None}, "the tags of the data set are no correction"
    np.testing.assert_array_equal(review.read_mask("3"), labels(1))
    assert tab.post("/state", state="reject", tags=[], base=4).json()["tags"] == []
    assert tab.get().json()["tags"] == []


def test_an_accepted_mask_adds_its_classes_to_the_tags(tab: Tab) -> None:
    both = np.maximum(labels(1, 30), labels(2))
    assert tab.put_mask(both, 0).json()["tags"] is None
    assert tab.put_mask(both, 1, "accept").json()["tags"] == [1, 2, 3]


def test_a_change_that_changes_nothing_is_not_recorded(tab: Tab, review: ReviewFolder) -> None:
    for content in (labels(2), labels(2), labels(2)):
        assert tab.put_mask(content, min(1, len(review.history("3")))).json()["version"] == 1
    assert tab.post("/state", state="tags", tags=[2, 3], base=1).json()["version"] == 1
    assert tab.put_mask(labels(2), 0).status_code == 409
    assert tab.post("/state", state="open", base=1).json()["version"] == 2
    assert tab.post("/state", state="open", base=2).json()["version"] == 2


@pytest.mark.parametrize(
    "write",
    [
        lambda tab: tab.put_mask(labels(1), 0),
        lambda tab: tab.put_mask(labels(1), 0, "accept"),
        lambda tab: tab.post("/state", state="accept", base=0),
        lambda tab: tab.post("/state", state="reject", base=0),
        lambda tab: tab.post("/state", state="open", base=2),
        lambda tab: tab.post("/state", state="tags", tags=[1], base=0),
        lambda tab: tab.post("/restore", number=-1, base=0),
    ],
)
def test_a_tab_that_has_not_seen_the_newest_change_changes_nothing(
    tab: Tab, review: ReviewFolder, write: Callable[[Tab], Any]
) -> None:
    review.record("3", "corrected", labels(3), source="import of x.zip (png)")
    before = {path: path.read_bytes() for path in review.path.rglob("*") if path.is_file()}
    refused = write(tab)
    assert refused.status_code == 409
    assert refused.json()["version"] == 1
    assert "load it again" in refused.json()["error"]
    assert {path: path.read_bytes() for path in review.path.rglob("*") if path.is_file()} == before


def test_of_many_tabs_that_write_at_the_same_time_one_wins_each_round(
    folder: Path, session: ReviewSession, access: Access, static: Path, review: ReviewFolder
) -> None:
    """Two servers on the same run, and three tabs of each: no change is lost, and none is overwritten unseen."""
    other = ReviewSession(tagmask.load(folder, device="cpu"))
    apps = [create_app(session, access, static), create_app(other, access, static)]
    tabs = [
        Tab(TestClient(apps[n % 2], base_url=ORIGIN, cookies={access.cookie_name: access.cookie}), "3")
        for n in range(6)
    ]
    rounds = 4
    barrier = threading.Barrier(len(tabs))
    answers: list[tuple[int, int, int]] = []

    def write(number: int) -> None:
        for base in range(rounds):
            barrier.wait()
            content = labels(1 + number % 3, 1 + 7 * number + base)
            answers.append((base, number, tabs[number].put_mask(content, base).status_code))
            barrier.wait()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(tabs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = {base: number for base, number, status in answers if status == 200}
    assert sorted(status for _, _, status in answers) == [200] * rounds + [409] * rounds * (len(tabs) - 1)
    assert sorted(winners) == list(range(rounds))
    events = review.history("3")
    assert len(events) == rounds
    for base, event in enumerate(events[1:]):
        kept = read_label_map(review.path / "history" / str(event.before))
        np.testing.assert_array_equal(kept, labels(1 + winners[base] % 3, 1 + 7 * winners[base] + base))


def test_undo_and_redo(tab: Tab, review: ReviewFolder) -> None:
    tab.put_mask(labels(1), 0)
    tab.put_mask(labels(3), 1, "accept", **{"X-Tags": "[3]"})
    tab.post("/state", state="reject", base=2)
    history = tab.get("/history").json()
    assert [(entry["number"], entry["state"], entry["tags"]) for entry in history] == [
        (0, "draft", None), (1, "corrected", [3]), (2, "rejected", [3])]  # fmt: skip
    assert set(history[0]) == {"number", "time", "user", "state", "source", "tags"}
    assert tab.post("/restore", number=0, base=3).json() == {"version": 4, "state": "draft", "tags": None}
    np.testing.assert_array_equal(tab.mask(), labels(1))
    assert tab.post("/restore", number=1, base=4).json() == {"version": 5, "state": "corrected", "tags": [3]}
    np.testing.assert_array_equal(review.read_mask("3"), labels(3))
    assert tab.post("/restore", number=-1, base=5).json() == {"version": 6, "state": "open", "tags": None}
    assert review.read_states() == {}
    for number in (6, 99, -2):
        assert tab.post("/restore", number=number, base=6).status_code == 400
    assert tab.get().json()["version"] == 6


def test_the_feed_tells_other_tabs_and_imports(client: TestClient, tab: Tab, review: ReviewFolder) -> None:
    assert client.get("/api/changes").json() == {"next": 0, "changes": []}
    tab.put_mask(labels(1), 0)
    review.record("5", "accepted", labels(1), source="import", tags=("blue",))
    review.record("gone", "accepted", labels(1), source="an image that the data set does not have any longer")
    tab.post("/state", state="reject", base=1)
    feed = client.get("/api/changes", params={"since": 0}).json()
    assert feed["next"] == 4
    assert feed["changes"] == [
        {"key": image_key("3"), "version": 2, "state": "rejected", "tags": None},
        {"key": image_key("5"), "version": 1, "state": "accepted", "tags": [1]},
    ]
    assert client.get("/api/changes", params={"since": 4}).json() == {"next": 4, "changes": []}
    assert len(client.get("/api/changes", params={"since": 3}).json()["changes"]) == 1
    assert len(client.get("/api/changes", params={"since": 99}).json()["changes"]) == 2, "the log was replaced"
    assert client.get("/api/run").json()["states"] == {"open": 6, "rejected": 1, "accepted": 1}


def test_a_log_that_is_torn_edited_or_removed(client: TestClient, tab: Tab, review: ReviewFolder) -> None:
    tab.put_mask(labels(1), 0)
    line = review.log_path.read_bytes()
    with review.log_path.open("ab") as log:
        log.write(line[:40])  # a power cut, or another process that has not finished
    assert client.get("/api/changes").json()["next"] == 1
    assert tab.put_mask(labels(2), 1).json()["version"] == 2
    with review.log_path.open("ab") as log:
        log.write(line[:-1])  # whole, but without its end
    assert client.get("/api/changes").json()["next"] == 3
    assert tab.put_mask(labels(3), 3).json()["version"] == 4
    with atomic_write(review.log_path) as temporary:  # as an editor does it
        temporary.write_bytes(line)
    assert tab.get().json()["version"] == 1
    with review.log_path.open("ab") as log:
        log.write(b'{"image": "3", "state": "perfect"}\n')
    for _ in range(2):
        damaged = client.get("/api/changes")
        assert damaged.status_code == 500
        assert "log.jsonl, line 2 is damaged" in damaged.json()["error"]
    review.log_path.unlink()
    assert tab.get().json()["version"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the mask has 0 bytes, but the image has 48×40 pixels."),
        (bytes(40 * 48 + 1), "1921 bytes"),
        (bytes(40 * 48 - 1) + b"\x04", "the value 4, but the run has 3 classes."),
        (b"\xfe" * 40 * 48, "the value 254"),
    ],
)
def test_masks_that_do_not_fit(tab: Tab, review: ReviewFolder, content: bytes, message: str) -> None:
    refused = tab.put_mask(np.frombuffer(content, np.uint8), 0)
    assert refused.status_code == 400
    assert message in refused.json()["error"]
    assert not review.path.exists()


@pytest.mark.parametrize("tags", ["", "[4]", "[0]", "[-1]", '["red"]', "{}", "[1.5]", "[true]", "null", "[" * 9999])
def test_tags_that_do_not_exist(tab: Tab, review: ReviewFolder, tags: str) -> None:
    refused = tab.put_mask(labels(1), 0, **{"X-Tags": tags})
    assert refused.status_code == 400
    assert refused.json()["error"].endswith(".")
    assert not review.path.exists()


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("/state", {}), ("/state", {"state": "accept"}), ("/state", {"state": "perfect", "base": 0}),
        ("/state", {"state": "accept", "base": -1}), ("/state", {"state": "accept", "base": "0"}),
        ("/state", {"state": "accept", "base": 0, "user": "root"}), ("/state", {"state": "tags", "base": 0}),
        ("/state", {"state": "tags", "base": 0, "tags": [9]}), ("/state", {"state": "accept", "base": 0, "tags": "1"}),
        ("/restore", {"number": "x", "base": 0}), ("/restore", {"number": 0.5, "base": 0}), ("/restore", {}),
    ],
)  # fmt: skip
def test_requests_that_are_not_valid(tab: Tab, review: ReviewFolder, what: str, content: dict[str, Any]) -> None:
    refused = tab.post(what, **content)
    assert refused.status_code == 400
    assert refused.json()["error"].endswith(".")
    assert not review.path.exists()


def test_a_version_that_is_no_number(tab: Tab) -> None:
    for base in ("", "-1", "x", "1e3", "²", "9" * 99):
        assert tab.put_mask(labels(1), base).status_code == 400  # type: ignore[arg-type]


def test_a_full_disk_is_told_and_changes_nothing(
    tab: Tab, review: ReviewFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab.put_mask(labels(1), 0)

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tagmask.artifacts.os, "replace", fail)
    refused = tab.put_mask(labels(2), 1)
    assert refused.status_code == 500
    assert "No space left on device" in json.loads(refused.content)["error"]
    np.testing.assert_array_equal(tab.mask(), labels(1))
    assert tab.get().json()["version"] == 1
