"""COCO: a folder of images and one JSON file of instances."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tagmask.data.class_names import BACKGROUND, normalize_class_name
from tagmask.data.coco_mask import CocoMask, coco_object
from tagmask.data.image_files import given, images_in, with_masks
from tagmask.data.image_ids import unique_ids
from tagmask.data.images import MAX_PIXELS, image_size
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.errors import DataError

__all__ = ["CocoMask", "read_coco"]


def read_coco(images: Path | str, annotations: Path, *, saliency: Path | None = None) -> TaggedImages:
    """Read COCO's format: an image's tags are the categories of its annotations, crowds included.

    Classes are the categories in the order of their ids, which become 1, 2, 3, ...; a category "background" is
    no class. An image without annotations is background only. Masks are painted when they are read (`CocoMask`);
    an image has none where one of its annotations has no segmentation.

    Args:
        images: the folder that the file's names are relative to, or a URL.
        annotations: the file of instances.
        saliency: a folder of PNGs named `<id>.png`, the id being the image's name without suffix.

    Raises:
        DataError: the folder or the file cannot be read at all. What is wrong with single images is in `problems`.
    """
    content = _read(annotations)
    classes, class_ids = _categories(content["categories"], annotations)
    files = images_in(images, leave_out=given(saliency))
    entries, problems = _by_image(content, annotations)
    found: dict[str, _Entry] = {}
    parts: dict[str, tuple[tuple[int, ...], CocoMask | None]] = {}
    for entry in entries:
        try:
            name = files.find(entry.file_name)
            if name in found:
                raise DataError(f"is the same file as {found[name].where}, {name}; remove one")
            parts[name] = _contents(entry, files.path(name), class_ids)
            found[name] = entry
        except DataError as error:
            problems.append(Problem.of(entry.where, error))
    ids = unique_ids(list(found))
    samples = [Sample(id_, files.path(name), *parts[name]) for id_, name in zip(ids, found, strict=True)]
    samples, doubts = with_masks(samples, [], given(saliency))
    unshaped = sum(mask is None for _, mask in parts.values())
    if not any(mask and mask.objects for _, mask in parts.values()):  # boxes only
        samples = [replace(sample, mask=None) for sample in samples]
    elif unshaped:
        what = f"has annotations without segmentation in {unshaped} images, which therefore have no mask"
        doubts.append(Problem(str(annotations), what, "nothing needs be done", "warning"))
    return TaggedImages(classes, tuple(samples), (*problems, *files.problems, *doubts), annotations.stem)


@dataclass(frozen=True)
class _Entry:
    """An image of the file, and its annotations."""

    where: str
    file_name: str
    size: tuple[int, int] | None
    annotations: list[Mapping[str, Any]] = field(default_factory=list)


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); export the annotations again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list {key!r}; give a COCO instances file (instances_*.json).")
    if not content["images"]:
        raise DataError(f"{path} lists no image; give a COCO instances file (instances_*.json).")
    return content


def _categories(categories: Sequence[Any], path: Path) -> tuple[tuple[str, ...], dict[Any, int]]:
    try:
        names = {int(item["id"]): normalize_class_name(item["name"]) for item in categories}
        "".join(names.values()).encode()
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} has a category without a number 'id' or a text 'name'; correct it.") from error
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice or len(names) < len(categories):
        raise DataError(f"{path} has two categories of the name or id {[*twice, *names][0]!r}; rename one.")
    ordered = [key for key in sorted(names) if names[key].casefold() != BACKGROUND]
    if not ordered:
        raise DataError(f"{path} has no category; export the annotations with their categories.")
    return tuple(names[key] for key in ordered), dict.fromkeys(names, 0) | {key: n for n, key in enumerate(ordered, 1)}


def _by_image(content: Mapping[str, list[Any]], path: Path) -> tuple[list[_Entry], list[Problem]]:
    """The images in the order of their ids, each with its annotations."""
    entries: dict[Any, _Entry] = {}
    problems = []
    for position, item in enumerate(content["images"], 1):
        where = f"{path}, image {position} of the list"
        try:
            key, name = item["id"], item["file_name"]
            name.encode()
            hash(key)
        except (TypeError, KeyError, AttributeError, UnicodeEncodeError):
            problems.append(Problem(where, "has no 'id' or no text 'file_name'", "correct or remove it"))
            continue
        if key in entries:
            problems.append(Problem(f"{path}, image {key!r}", "has the id of another image", "number it anew"))
            continue
        size = item.get("height"), item.get("width")
        known = all(isinstance(side, int) and side > 0 for side in size)
        entries[key] = _Entry(f"{path}, image {key!r}", name, size if known else None)
    lost = 0
    for annotation in content["annotations"]:
        try:
            entries[annotation["image_id"]].annotations.append(annotation)
        except (TypeError, KeyError):
            lost += 1
    if lost:
        what = f"has {lost} annotations of images that it does not list"
        problems.append(Problem(str(path), what, "remove them, or add the images", "warning"))
    in_order = sorted(entries) if all(isinstance(key, int) for key in entries) else list(entries)
    return [entries[key] for key in in_order], problems


def _contents(entry: _Entry, path: str, class_ids: Mapping[Any, int]) -> tuple[tuple[int, ...], CocoMask | None]:
    """An image's tags and mask. Raises DataError naming the annotation."""
    size = entry.size or image_size(path)
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"has {size[1]}×{size[0]} pixels, more than {MAX_PIXELS // 10**6} million; make it smaller")
    tags, objects = set(), []
    for annotation in entry.annotations:
        number = annotation.get("id")
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in class_ids:
            raise DataError(f"has annotation {number!r} of the unknown category {category!r}; correct it")
        tags.add(class_ids[category])
        try:
            objects.append(coco_object(annotation, class_ids[category], size))
        except DataError as error:
            raise DataError(f"annotation {number!r} {error}") from error
    shaped = tuple(item for item in objects if item)
    return tuple(sorted(tags - {0})), CocoMask(size, shaped) if len(shaped) == len(objects) else None
