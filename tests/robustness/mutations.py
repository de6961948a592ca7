"""Mutations of files: bytes, tokens of texts, and values of JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

MAX_LENGTH = 200_000  # bytes of a mutated input

_NUMBERS = (
    "0",
    "-1",
    "1e308",
    "-1e400",
    "NaN",
    "Infinity",
    "9" * 30,
    "9" * 5_000,
    "0.1",
    "2147483648",
    "1_0",
    "0x_",
    "00",
)
_TEXTS = (
    "", " ", "\n", "\x00", "\ufeff", "\u202e", "😀", "../../etc/passwd", "/dev/zero", "con", "x" * 5_000, "%s{0}",
    "<b>", "http://localhost:1/x.png", "file:///etc/passwd", "null", "true", "'", '"', ",", ";", ":", "\t", "\r", "]]>",
    "\ud83d",
)  # fmt: skip
_YAML = (
    "&a ", "*a", "!!int ", "!!python/name:os.system ", "2020-99-99", "2020-01-01", "<<: ", "[" * 300, "{a: " * 300,
    "? ", "- ", "|\n", "---\n", "...", "%YAML 9.9\n", "0b_", "59:59:59", ".inf", ".nan", "~", "no", "@", "`", "#",
    "!x ", "=",
)  # fmt: skip
_XML = (
    "&amp;", "&x;", "&#0;", "&#xD800;", "<a>" * 300, "</a>", "<!--", "<![CDATA[", "<?xml?>", "<object>",
    "<name></name>", '<!DOCTYPE a [<!ENTITY x "y">]>', '<!DOCTYPE a SYSTEM "file:///etc/passwd">', " a='b'",
    "<size>", "<width>-1</width>",
)  # fmt: skip
_JSON = (
    "null", "true", "[]", "{}", '""', '"x"', "-1", "0", "1.5", "1e400", "NaN", "9" * 25, "9" * 5_000, '"\\ud800"',
    "[" * 300 + "]" * 300, "[" * 50_000, '{"a":1}', "[1,2,3]", '"' + "x" * 5_000 + '"', '"\\u0000"', '"../x"', "[[]]",
    "false", "256", "-0.0", "[null]", '[1,"a"]', "1e-320", "2147483648", "[0.5]", '"Infinity"',
)  # fmt: skip
_PLACEHOLDER = "@mutated@"

Mutation = Callable[[bytes, Sequence[bytes], random.Random], bytes]


def mutate(seeds: Sequence[bytes], kind: str, rng: random.Random) -> bytes:
    """Return a mutation of one of the seeds.

    Args:
        seeds: valid files.
        kind: "binary", "text", "yaml", "xml" or "json": which tokens are inserted.
        rng: random numbers.
    """
    content = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if kind != "binary" and rng.random() < 0.6:
            content = _mutate_tokens(content, kind, rng)
        else:
            content = rng.choice(_BYTE_MUTATIONS)(content, seeds, rng)
        content = content[:MAX_LENGTH]
    return content


def _flip(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 32)) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    return bytes(changed)


def _truncate(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _duplicate(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start, stop = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    return content[:stop] + content[start:stop] * rng.choice((1, 2, 30)) + content[stop:]


def _splice(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(seeds)
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _remove(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + content[start + rng.choice((1, 4, 100)) :]


def _insert(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice((b"\x00", b"\xff" * 4, rng.randbytes(16), b"\n")) + content[at:]


def _set_size(content: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Overwrite four bytes with a number, as headers have."""
    at = rng.randrange(max(1, len(content) - 4))
    number = rng.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 20_000))
    return content[:at] + number.to_bytes(4, rng.choice(("big", "little"))) + content[at + 4 :]


_BYTE_MUTATIONS: tuple[Mutation, ...] = (_flip, _flip, _truncate, _duplicate, _splice, _remove, _insert, _set_size)


def _mutate_tokens(content: bytes, kind: str, rng: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    if kind == "json" and rng.random() < 0.8:
        try:
            return _mutate_json(json.loads(text), rng).encode("utf-8", "replace")
        except (ValueError, RecursionError):
            pass  # an earlier mutation made it something else than JSON
    new = rng.choice({"yaml": _YAML, "xml": _XML, "json": _JSON}.get(kind, ()) + _NUMBERS + _TEXTS)
    tokens = list(re.finditer(r"[\w.-]+|[^\w\s]", text))
    if not tokens:
        return new.encode("utf-8", "replace")
    token = rng.choice(tokens)
    stop = token.start() if rng.random() < 0.3 else token.end()
    return (text[: token.start()] + new + text[stop:]).encode(
        "utf-8", "surrogatepass" if rng.random() < 0.1 else "replace"
    )


def _mutate_json(value: Any, rng: random.Random) -> str:
    """Replace, remove, repeat or add one value somewhere in a JSON value."""
    parent, key = None, None
    current = value
    while isinstance(current, dict | list) and current and rng.random() < 0.85:
        parent, key = current, rng.choice(list(current) if isinstance(current, dict) else range(len(current)))
        current = current[key]
    if parent is None:
        return rng.choice(_JSON)
    action = rng.random()
    if action < 0.65:
        parent[key] = _PLACEHOLDER
    elif action < 0.8:
        del parent[key]
    elif isinstance(parent, list):
        parent.extend([current] * rng.choice((1, 300)))
    else:
        parent[rng.choice(("more", "", "x" * 300, "id"))] = _PLACEHOLDER
    return json.dumps(value).replace(f'"{_PLACEHOLDER}"', rng.choice(_JSON))
