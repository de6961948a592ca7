"""Parsing JSON with the places of the items of a list."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tagmask.data.json_spans import parse_with_spans

ITEMS: list[Any] = [{"a": [1, 2, {"b": "]}"}]}, 5, 'x"y,]', [], {}, None, -1.5e3]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_each_span_holds_its_item(indent: int | None, ensure_ascii: bool) -> None:
    content = {"before": {"items": [1]}, "ü": "日本", "items": [*ITEMS, "žluť 🐕"], "after": ["é"]}
    raw = json.dumps(content, indent=indent, ensure_ascii=ensure_ascii).encode()
    parsed, spans = parse_with_spans(raw, "items")
    assert parsed == content
    assert [json.loads(raw[start:end]) for start, end in spans] == content["items"]
    assert all(raw[start:end] == raw[start:end].strip() for start, end in spans)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        " {} \n",
        '{"items": []}',
        '{"items": {}}',
        "[1, 2]",
        "3",
        '{"items": [1], "items": [2, 3]}',
        '{"a" : 1 , "b":2}',
    ],
)
def test_other_content_is_that_of_json_loads(text: str) -> None:
    parsed, spans = parse_with_spans(text.encode(), "items")
    assert parsed == json.loads(text)
    assert [text[start:end] for start, end in spans] == (["2", "3"] if "[2, 3]" in text else [])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_other_encodings_have_no_spans(encoding: str) -> None:
    assert parse_with_spans('{"items": ["ü"]}'.encode(encoding), "items") == ({"items": ["ü"]}, [])


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a"', '{"a":', '{"a": 1', '{"a": 1,}', '{"a": 1} x', '{"a": 1}}', "{1: 2}", '{"items": [1,]}',
     '{"items": [1 2]}', '{"items": [1', '{"items": [', '{"a": 1 "b": 2}', "{,}", '{"items": [,1]}', '{"a": nope}'],
)  # fmt: skip
def test_what_json_loads_refuses_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(ValueError):
        parse_with_spans(text.encode(), "items")
