"""JSON objects that remember where the items of a list are in the file, so that single items can be read again."""

from __future__ import annotations

import json
import re
from typing import Any

Span = tuple[int, int]
"""The first byte of an item, and the one after its last byte."""

_SPACE = re.compile(r"[ \t\n\r]*")


def parse_with_spans(content: bytes, key: str) -> tuple[Any, list[Span]]:
    """Parse a JSON file as `json.loads` does, and return the spans of the items of one list, too.

    Args:
        content: of the file.
        key: of the list, an entry of the object that the file holds.

    Returns:
        The object, and the span of each item of the list; no spans if the file holds no object with such a list or is
        not encoded in UTF-8.

    Raises:
        ValueError, RecursionError: the file is not JSON.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return json.loads(content), []
    if not text.startswith("{", _skip(text, 0)):
        return json.loads(content), []
    parse = json.JSONDecoder().raw_decode
    result: dict[str, Any] = {}
    spans: list[Span] = []
    position = _skip(text, _skip(text, 0) + 1)
    while not text.startswith("}", position):
        name, position = parse(text, position)
        position = _after(text, position, ":")
        if not isinstance(name, str):
            raise ValueError(f"a key is not a text: {name!r}")
        if name == key and text.startswith("[", position):
            spans = []
            result[name], position = _parse_list(text, position, spans)
        else:
            result[name], position = parse(text, position)
        position = _next_item(text, position, "}")
    if _skip(text, position + 1) != len(text):
        raise ValueError(f"text follows the object at character {position + 1}")
    return result, spans if text.isascii() else _to_bytes(text, spans)


def _parse_list(text: str, position: int, spans: list[Span]) -> tuple[list[Any], int]:
    """Parse the list at a position, and append the spans of its items, in characters."""
    parse = json.JSONDecoder().raw_decode
    items: list[Any] = []
    position = _skip(text, position + 1)
    while not text.startswith("]", position):
        item, end = parse(text, position)
        items.append(item)
        spans.append((position, end))
        position = _next_item(text, end, "]")
    return items, position + 1


def _skip(text: str, position: int) -> int:
    """Return the position of the next character that is not white space."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _after(text: str, position: int, character: str) -> int:
    position = _skip(text, position)
    if not text.startswith(character, position):
        raise ValueError(f"{character!r} is missing at character {position}")
    return _skip(text, position + 1)


def _next_item(text: str, position: int, closing: str) -> int:
    """Return the position of the next item, or of the closing bracket."""
    position = _skip(text, position)
    if text.startswith(closing, position):
        return position
    position = _after(text, position, ",")
    if text.startswith(closing, position):
        raise ValueError(f"an item is missing at character {position}")
    return position


def _to_bytes(text: str, spans: list[Span]) -> list[Span]:
    """Convert spans in characters to spans in bytes of UTF-8."""
    converted: list[Span] = []
    characters = num_bytes = 0
    for start, end in spans:
        first = num_bytes + len(text[characters:start].encode())
        last = first + len(text[start:end].encode())
        converted.append((first, last))
        characters, num_bytes = end, last
    return converted
