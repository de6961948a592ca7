"""Image ids: unique and safe relative paths, derived from file names and URLs."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from tagmask.data.images import SUFFIXES, is_url


def normalize_unicode(text: str) -> str:
    """Return the text in Unicode normal form C, so that names can be compared: "é" may be one or two characters."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def file_suffix(name: str) -> str:
    """Return the suffix of a file name in lower case: "x/a.JPG" → ".jpg"."""
    return os.path.splitext(name)[1].lower()


def strip_image_suffix(name: str) -> str:
    """Return a file name without the suffix of an image: "v1.2/a.b.jpg" → "v1.2/a.b", and "a.b" is not changed."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def unique_ids(names: Sequence[str]) -> list[str]:
    """Return a unique and safe relative path for each image.

    It is the path without suffix. Images that share it keep their suffix.

    Args:
        names: relative paths, absolute paths or URLs.
    """
    paths = [_safe_path(name) for name in names]
    ids = [strip_image_suffix(path) for path in paths]
    while (new_ids := _replace_duplicates(ids, lambda i: paths[i])) != ids:
        ids = new_ids
    # URLs may differ in their query alone
    return _replace_duplicates(ids, lambda i: f"{paths[i]}-{hashlib.sha256(names[i].encode()).hexdigest()[:8]}")


def _replace_duplicates(ids: list[str], longer_id: Callable[[int], str]) -> list[str]:
    """Return the ids, with the longer id of each image whose id is not unique."""
    count = Counter(ids)
    return [longer_id(i) if count[short] > 1 else short for i, short in enumerate(ids)]


def _safe_path(name: str) -> str:
    """Return a relative path without scheme, query and "..", so that it stays inside the run folder."""
    if is_url(name):
        name = name.partition("://")[2].partition("?")[0].partition("#")[0]
    return "/".join(part for part in normalize_unicode(name).split("/") if part not in ("", ".", "..")) or "image"
