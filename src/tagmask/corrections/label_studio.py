"""Corrected masks in Label Studio's JSON export."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tagmask.corrections.archive import Archive
from tagmask.corrections.known_images import CorrectedMask, KnownImages, Region, location_in_errors
from tagmask.errors import DataError
from tagmask.outputs.brush_rle import decode_brush_mask

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # Label Studio puts it before the names of files that were uploaded


def read(files: Archive, images: KnownImages) -> Iterator[CorrectedMask]:
    """Yield the corrected masks in the JSON files of an archive: brush masks of submitted annotations.

    If a task has several annotations, the one that was changed last counts. Tasks without one are left out, because
    nobody has seen them.

    Raises:
        DataError: a file is not Label Studio's JSON, or does not fit the images and classes of the run.
    """
    names = files.named(".json")
    if not names:
        raise DataError(f"{files.path} has no JSON file; export it from Label Studio as JSON.")
    for name in names:
        try:
            with location_in_errors(files.location(name)):
                for task in files.read_json(name):
                    annotations = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
                    if annotations:
                        yield _read_task(task["data"], max(annotations, key=_time_of_change), images)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            message = f"{files.location(name)} is not Label Studio's JSON ({error!r}); export it as JSON, not JSON-MIN."
            raise DataError(message) from error


def _time_of_change(annotation: Mapping[str, Any]) -> str:
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _read_task(data: Mapping[str, Any], annotation: Mapping[str, Any], images: KnownImages) -> CorrectedMask:
    name = str(data.get("tagmask_id") or data["image"])
    image_id = images.find(name) if "tagmask_id" in data else _find_by_url(name, images)
    if image_id is None:
        return CorrectedMask(name, None, None)
    size = images.size(image_id)
    regions = []
    with location_in_errors(name):
        for result in annotation["result"]:
            if result["type"] not in ("brushlabels", "BrushLabels") or result["value"].get("format") != "rle":
                raise DataError(f"a region of type {result['type']!r} is no mask; use brush labels")
            images.check_size(image_id, (result["original_height"], result["original_width"]))
            [label] = result["value"]["brushlabels"]
            regions.append(Region(label, decode_brush_mask(result["value"]["rle"], size)))
        return CorrectedMask(name, image_id, images.paint(image_id, regions))


def _find_by_url(url: str, images: KnownImages) -> str | None:
    """Return the id of the image at a URL of Label Studio, at any other URL, or at a path."""
    parts = urlsplit(url)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    folder, _, file = path.rpartition("/")
    return images.find(path) or images.find(f"{folder}/{_UPLOAD_PREFIX.sub('', file)}")
