"""Image ids: unique, safe relative paths made from file names and URLs."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from tagmask.data.images import SUFFIXES, is_url


def normalize_unicode(text: str) -> str:
    """Unicode normal form C, in which names are compared: "é" may be one character or two."""
    return unicodedata.normalize("NFC", text)


def file_suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def strip_image_suffix(name: str) -> str:
    """Only an image's suffix is one: "v1.2/a.b.jpg" → "v1.2/a.b", and "a.b" stays."""
    return os.path.splitext(name)[0] if file_suffix(name) in SUFFIXES else name


def unique_ids(names: Sequence[str]) -> list[str]:
    """For each image (relative path, absolute path or URL), a safe relative path that no other has.

    It is the path without suffix; where that is shared, all who share it keep their suffix.
    """
    paths = [_safe_path(name) for name in names]
    ids = [strip_image_suffix(path) for path in paths]
    while (longer := _lengthened(ids, lambda i: paths[i])) != ids:
        ids = longer
    return _lengthened(ids, lambda i: f"{paths[i]}-{hashlib.sha256(names[i].encode()).hexdigest()[:8]}")  # such URLs


def _lengthened(ids: list[str], longer: Callable[[int], str]) -> list[str]:
    """The ids; those that are not unique are replaced."""
    count = Counter(ids)
    return [longer(i) if count[short] > 1 else short for i, short in enumerate(ids)]


def _safe_path(name: str) -> str:
    """A relative path, without scheme and query."""
    if is_url(name):
        name = name.partition("://")[2].partition("?")[0].partition("#")[0]
    return "/".join(part for part in normalize_unicode(name).split("/") if part not in ("", ".", "..")) or "image"
