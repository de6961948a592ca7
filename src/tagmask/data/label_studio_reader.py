"""Tags from an export of Label Studio in its format JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tagmask.data.class_names import BACKGROUND, normalize_class_name
from tagmask.data.image_ids import file_suffix
from tagmask.data.images import SUFFIXES
from tagmask.data.regular_files import check_regular_file
from tagmask.data.samples import Problem
from tagmask.data.tag_rows import Row, TagTable
from tagmask.data.text_files import read_text
from tagmask.errors import DataError
from tagmask.text import pluralize, shorten

_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # Label Studio puts it before the name of an uploaded file
_FORMAT = "export the project in the format JSON (not JSON-MIN)"


def is_label_studio(path: Path) -> bool:
    """Return whether a JSON file holds one list, as Label Studio writes it, and not JSON Lines."""
    try:
        check_regular_file(path)
        with path.open("rb") as file:
            return file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    except OSError:
        return False  # the reader of tables reports it


def read_label_studio(path: Path) -> TagTable:
    """Read the tags of the images in a JSON file of Label Studio.

    The tags of an image are its choices and the labels of its regions, from all annotations that were not canceled. An
    annotation without results means an image without tags. Tasks without annotations are left out, with a warning.

    Args:
        path: the export of a project in the format JSON.

    Raises:
        DataError: the file cannot be read, is not such an export, or has no annotated image.
    """
    try:
        tasks = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({shorten(str(error))}); export it again.") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise DataError(f"{path} is not an export of Label Studio's tasks; {_FORMAT}.")
    rows = [row for number, task in enumerate(tasks, 1) if (row := _read_task(path, number, task)) is not None]
    if not rows:
        raise DataError(f"{path} has no task with an annotation; annotate images, and {_FORMAT}.")
    problems = []
    if num_left_out := len(tasks) - len(rows):
        message = f"has {pluralize(num_left_out, 'task')} without an annotation"
        problems.append(Problem(str(path), message, "annotate them if they are to be used", "warning"))
    names = {tag for row in rows for tag in row.tags}
    return TagTable(path, tuple(rows), tuple(sorted(names)), unit="task", problems=tuple(problems))


def _read_task(path: Path, number: int, task: Mapping[str, Any]) -> Row | None:
    """Return the row of a task; None if nobody has annotated it."""
    annotations = task.get("annotations", task.get("completions"))  # the latter before version 1.0
    annotations = [item for item in annotations if isinstance(item, dict)] if isinstance(annotations, list) else []
    annotations = [item for item in annotations if not item.get("was_cancelled")]
    if not annotations:
        return None
    url = _image_url(task["data"])
    if url is None:
        problem = Problem(f"{path}, task {number}", "has no image in its data", "remove the task")
        return Row(number, "", (), problem=problem)
    name, other_name = _file_names(url)
    labels = (normalize_class_name(text) for item in annotations for text in _labels(item.get("result")))
    tags = dict.fromkeys(label for label in labels if label and label.casefold() != BACKGROUND)
    return Row(number, name, tuple(tags), other_name=other_name)


def _image_url(data: Any) -> str | None:
    """Return the field of a task's data that names an image, preferably the field "image"."""
    fields = data if isinstance(data, dict) else {}
    texts = [fields.get("image"), *fields.values()]
    texts = [text for text in texts if isinstance(text, str) and text.strip()]
    images = (
        text for text in texts if file_suffix(unquote(text).partition("?")[0]) in SUFFIXES or "/local-files/" in text
    )
    return next(images, texts[0] if isinstance(fields.get("image"), str) and texts else None)


def _file_names(url: str) -> tuple[str, str | None]:
    """Return the name of an image on disk, and the other name that an uploaded file may have.

    "/data/upload/1/0a1b2c3d-cat.jpg" may be called 0a1b2c3d-cat.jpg (as Label Studio stores it) or cat.jpg (as it was
    before). "/data/local-files/?d=photos/cat.jpg" is photos/cat.jpg. Other URLs and paths are kept.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url, None
    if "/local-files/" in parts.path:
        return parse_qs(parts.query).get("d", [url])[0], None
    if "/data/upload/" in parts.path:
        name = unquote(parts.path).rpartition("/")[2]
        original = _UPLOAD_PREFIX.sub("", name, count=1)
        return name, original if original != name else None
    return url, None


def _labels(result: Any) -> Iterator[str]:
    """Yield the choices and the labels of regions in the result of an annotation."""
    for item in result if isinstance(result, list) else ():
        kind = item.get("type") if isinstance(item, dict) else None
        value = item.get("value") if isinstance(item, dict) else None
        if not isinstance(value, dict) or not isinstance(kind, str):
            continue
        values = value.get(kind)
        if not isinstance(values, list) or not (kind in ("choices", "taxonomy") or kind.endswith("labels")):
            continue
        for label in values:
            if kind == "taxonomy" and isinstance(label, list) and label:
                label = label[-1]  # the path from the root
            if isinstance(label, str):
                yield label
