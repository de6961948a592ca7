"""Damaged records of a run folder: each is refused in one sentence that says what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tagmask.artifacts import MAX_JSON_BYTES, read_json
from tagmask.data.source import DataSource
from tagmask.errors import RunError
from tagmask.run_folder import RunFolder, RunSources
from tagmask.stage_folder import StageFolder

RUN_RECORD: dict[str, Any] = {
    "format": 2, "tagmask": "0.2.0", "classes": ["cat"], "finished": None,
    "sources": {"images": {"root": "photos"}, "held_out": None, "skip_bad": False},
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "\x00", '{"a": 1', "[" * 100_000, '{"a":' * 100_000, "1" * 5_000, "\ufeff{}", '["\\ud800"]',
        '{"\\uDFFF": 1}', b"\xff\xfe", "{} {}", "[" * 51 + "]" * 51,
    ],
    ids=lambda text: repr(text[:8]),
)  # fmt: skip
def test_what_is_not_json_is_one_short_sentence(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        RunError, match=r"a\.json is not JSON \(.*\): remove it, then run the same command again\.$"
    ) as e:
        read_json(path)
    assert len(str(e.value)) < len(str(path)) + 200
    assert "\n" not in str(e.value)


def test_a_character_outside_of_the_basic_plane_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(r'["\ud83d\ude00"]')
    assert read_json(tmp_path / "a.json") == ["😀"]


def test_other_things_than_files_are_refused_without_reading_them(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    os.mkfifo(tmp_path / "pipe")
    for name, sentence in (("folder", "is not a file"), ("huge", "has 67,108,865 bytes"), ("pipe", "is not a file")):
        with pytest.raises(RunError, match=sentence):
            read_json(tmp_path / name)


def test_the_run_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    sources = RunSources(images=DataSource(root="photos", classes=("cat",)), held_out=DataSource(root="other"))
    RunFolder(tmp_path).write_record(sources, ["cat", "dog"], "abc")
    record = RunFolder(tmp_path).read_record()
    assert (record.classes, record.sources, record.finished) == (("cat", "dog"), sources, "abc")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", None), ("classes", []), ("classes", "cat"), ("classes", [1]), ("classes", ["a"] * 255),
        ("sources", None), ("sources", []), ("sources", {}), ("sources", {"images": None}),
        ("sources", {"images": {}}), ("sources", {"images": {"root": 3}}),
        ("sources", {"images": {"root": "x", "other": 1}}), ("sources", {"images": {"root": "x"}, "held_out": "y"}),
        ("sources", {"images": {"root": "x"}, "skip_bad": "perhaps"}), ("finished", 1), ("tagmask", None),
    ],
)  # fmt: skip
def test_a_damaged_run_record(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**RUN_RECORD, name: value}))
    with pytest.raises(
        RunError, match=rf"run\.json is damaged \({name}.*\): remove it, then run the same command again"
    ):
        RunFolder(tmp_path).read_record()


def test_a_run_without_its_record_can_be_resumed(tmp_path: Path) -> None:
    """The advice for a damaged run.json is to remove it."""
    (tmp_path / "recipe.yaml").write_text("stages: {cam: {method: cam}}")
    with pytest.raises(RunError, match="holds no tagmask run"):
        RunFolder(tmp_path).check_usable()
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "stage.json").write_text("{}")
    RunFolder(tmp_path).check_usable()


@pytest.mark.parametrize("content", [[], 3, None, "text"])
def test_a_run_record_of_another_type(tmp_path: Path, content: Any) -> None:
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="is damaged"):
        RunFolder(tmp_path).read_record()


@pytest.mark.parametrize(
    "change",
    [
        {"status": "almost"}, {"key": None}, {"key": []}, {"versions": {"torch": 2}}, {"seconds": -1},
        {"seconds": float("nan")}, {"num_images": 1.5}, {"num_images": None}, {"more": 1},
    ],
)  # fmt: skip
def test_a_damaged_stage_record(tmp_path: Path, change: dict[str, Any]) -> None:
    record = {"status": "done", "key": {}, "versions": {}, "seconds": 1.5, "num_images": 3}
    (tmp_path / "stage.json").write_text(json.dumps(record))
    assert StageFolder(tmp_path).is_done
    (tmp_path / "stage.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(RunError, match=r"stage\.json is damaged \(.*\): remove it, then run the same command again\.$"):
        StageFolder(tmp_path).read_record_if_any()


@pytest.mark.parametrize("content", [{}, [], {"threshold": "high"}, {"threshold": 1.5}, {"threshold": float("nan")}])
def test_a_damaged_threshold(tmp_path: Path, content: Any) -> None:
    (tmp_path / "threshold.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"damaged \(.*\): run the same `tagmask run` command again, which makes it"):
        StageFolder(tmp_path).read_threshold_if_any()
