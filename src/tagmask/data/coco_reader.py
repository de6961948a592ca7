"""Reader for COCO's format: a folder of images and one JSON file of instances."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tagmask.data.class_names import BACKGROUND, normalize_class_name
from tagmask.data.coco_file_mask import AnnotationFile, ClassIds, CocoFileMask
from tagmask.data.coco_mask import CocoMask, CrowdPixels, DrawingOrder, parse_segmentation
from tagmask.data.image_files import attach_masks, find_image_files
from tagmask.data.image_ids import unique_ids
from tagmask.data.images import MAX_PIXELS, image_size, is_url
from tagmask.data.json_spans import Span, parse_with_spans
from tagmask.data.regular_files import read_regular_file
from tagmask.data.samples import PngMask, Problem, Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.text import join_first_names, pluralize, shorten

DrawnMask = CocoFileMask | CocoMask


def read_coco(
    images: Path | str,
    annotations: Path,
    *,
    masks: Path | None = None,
    saliency: Path | None = None,
    order: DrawingOrder = "area",
    crowds: CrowdPixels = "ignored",
    leave_out: Sequence[Path | None] = (),
) -> TaggedImages:
    """Read COCO's format. The tags of an image are the categories of its annotations, including crowds.

    The classes are the categories in the order of their ids, which become 1, 2, 3, ... A category "background" is not
    a class. An image without annotations shows only background. Masks are drawn when they are read (`CocoMask`). An
    image has no mask if one of its annotations has no segmentation. File names that are URLs or lead out of the
    folder are errors, so that a file of annotations cannot make tagmask open other files.

    Args:
        images: the folder that the file names are relative to, or a URL.
        annotations: the file of instances.
        masks, saliency: folders of PNGs named `<id>.png`. The id is the name of the image without suffix. PNGs of masks
            hold class ids; an image with one has it in place of the drawn mask.
        order, crowds: how masks are drawn, see `CocoMask`.
        leave_out: further folders in which no images are looked for.

    Raises:
        DataError: the folder or the file cannot be read. Errors in single images are in `problems` instead.
    """
    content, spans, file = _read_instances(annotations)
    classes, class_ids = _read_categories(content["categories"], annotations)
    mask_folders, saliency_folders = [masks] if masks else [], [saliency] if saliency else []
    files = find_image_files(images, leave_out=(*mask_folders, *saliency_folders, *leave_out))
    entries, problems = _group_by_image(content, spans, annotations)
    shared_ids: ClassIds = tuple(class_ids.items())
    entry_by_name: dict[str, _Entry] = {}
    tags_and_masks: dict[str, tuple[tuple[int, ...], DrawnMask | None]] = {}
    for entry in entries:
        try:
            name = files.find(entry.file_name)
            if is_url(name) or os.path.isabs(name) or ".." in name.split("/"):
                raise DataError(f"names {shorten(name)!r}, which is not in {images}; write its path in the folder")
            if name in entry_by_name:
                raise DataError(f"is the same file as {entry_by_name[name].where}, {name}; remove one")
            tags, mask = _read_tags_and_mask(entry, files.path(name), class_ids)
            tags_and_masks[name] = tags, mask and _keep_in_file(mask, entry, file, shared_ids)
            entry_by_name[name] = entry
        except DataError as error:
            problems.append(Problem.from_error(entry.where, error))
    ids = unique_ids(list(entry_by_name))
    samples = [Sample(i, files.path(name), *tags_and_masks[name]) for i, name in zip(ids, entry_by_name, strict=True)]
    drawn = [mask for _, mask in tags_and_masks.values()]
    has_segmentations = any(mask and mask.has_objects for mask in drawn)  # otherwise the file has boxes only
    samples = [
        replace(sample, mask=replace(mask, order=order, crowds=crowds) if mask and has_segmentations else None)
        for sample, mask in zip(samples, drawn, strict=True)
    ]
    samples, warnings = attach_masks(samples, mask_folders, saliency_folders)
    warnings += _warn_of_mixed_masks(samples, masks, annotations)
    num_without = sum(sample.mask is None for sample in samples)
    if has_segmentations and num_without:
        message = f"has annotations without segmentation, which leaves {pluralize(num_without, 'image')} without a mask"
        warnings.append(Problem(str(annotations), message, "nothing needs to be done", "warning"))
    return TaggedImages(classes, tuple(samples), (*problems, *files.problems, *warnings), annotations.stem)


def _warn_of_mixed_masks(samples: Sequence[Sample], folder: Path | None, annotations: Path) -> list[Problem]:
    """Return a warning if some masks are PNGs and others are drawn: these may draw overlaps and crowds differently."""
    drawn = [sample.id for sample in samples if isinstance(sample.mask, DrawnMask)]
    if folder is None or not drawn or not any(isinstance(sample.mask, PngMask) for sample in samples):
        return []
    message = (
        f"has no PNG for {pluralize(len(drawn), 'image')} ({join_first_names(drawn, 3)}), so that the ground truth is "
        f"drawn from {annotations.name}"
    )
    return [Problem(str(folder), message, "add the PNGs if figures are to be compared with published ones", "warning")]


@dataclass(frozen=True)
class _Entry:
    """An item of the list `images`, with its annotations."""

    where: str
    file_name: str
    size: tuple[int, int] | None
    annotations: list[Mapping[str, Any]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


def _read_instances(path: Path) -> tuple[dict[str, list[Any]], list[Span], AnnotationFile]:
    """Return what the file holds, where each annotation is in it (empty if unknown), and the file's size and mtime."""
    try:
        file = AnnotationFile.of(path)
        content, spans = parse_with_spans(read_regular_file(path), "annotations")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({shorten(str(error))}); export the annotations again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{path} has no list {key!r}; use a COCO instances file (instances_*.json).")
    if not content["images"]:
        raise DataError(f"{path} lists no image; use a COCO instances file (instances_*.json).")
    return content, spans, file


def _read_categories(categories: Sequence[Any], path: Path) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the class names, and the class id of each category id (0 for a category "background")."""
    try:
        names = {int(item["id"]): normalize_class_name(item["name"]) for item in categories}
        "".join(names.values()).encode()
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path} has a category without a number 'id' or a text 'name'; correct it.") from error
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated or len(names) < len(categories):
        raise DataError(
            f"{path} has two categories with the name or id {shorten(str([*repeated, *names][0]))!r}; rename one."
        )
    category_ids = [key for key in sorted(names) if names[key].casefold() != BACKGROUND]
    if not category_ids:
        raise DataError(f"{path} has no category; export the annotations with their categories.")
    class_ids = dict.fromkeys(names, 0) | {key: class_id for class_id, key in enumerate(category_ids, 1)}
    return tuple(names[key] for key in category_ids), class_ids


def _group_by_image(
    content: Mapping[str, list[Any]], spans: Sequence[Span], path: Path
) -> tuple[list[_Entry], list[Problem]]:
    """Return the images in the order of their ids, each with its annotations."""
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
            problems.append(
                Problem(f"{path}, image {shorten(repr(key))}", "has the id of another image", "give it a unique id")
            )
            continue
        size = item.get("height"), item.get("width")
        is_valid = all(type(side) is int and side > 0 for side in size)
        entries[key] = _Entry(f"{path}, image {shorten(repr(key))}", name, size if is_valid else None)
    num_unmatched = 0
    for annotation, span in zip_longest(content["annotations"], spans):
        try:
            entry = entries[annotation["image_id"]]
        except (TypeError, KeyError):
            num_unmatched += 1
            continue
        entry.annotations.append(annotation)
        if span:
            entry.spans.append(span)
    if num_unmatched:
        message = f"has {pluralize(num_unmatched, 'annotation')} of images that it does not list"
        problems.append(Problem(str(path), message, "remove them, or add the images", "warning"))
    keys = sorted(entries) if all(isinstance(key, int) for key in entries) else list(entries)
    return [entries[key] for key in keys], problems


def _read_tags_and_mask(
    entry: _Entry, path: str, class_ids: Mapping[Any, int]
) -> tuple[tuple[int, ...], CocoMask | None]:
    """Return the tags and the mask of an image. Raises DataError that names the bad annotation."""
    size = entry.size or image_size(path)
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"has {size[1]}×{size[0]} pixels, more than {MAX_PIXELS // 10**6} million; make it smaller")
    tags, objects = set(), []
    for annotation in entry.annotations:
        number = shorten(repr(annotation.get("id")))
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in class_ids:
            unknown = shorten(repr(category))
            raise DataError(f"has annotation {number} with the unknown category {unknown}; correct it")
        tags.add(class_ids[category])
        try:
            objects.append(parse_segmentation(annotation, class_ids[category], size))
        except DataError as error:
            raise DataError(f"annotation {number} {error}") from error
    segmented = tuple(item for item in objects if item)
    return tuple(sorted(tags - {0})), CocoMask(size, segmented) if len(segmented) == len(objects) else None


def _keep_in_file(mask: CocoMask, entry: _Entry, file: AnnotationFile, class_ids: ClassIds) -> DrawnMask:
    """Return a mask that reads its annotations from the file again, if it is known where they are."""
    if len(entry.spans) < len(entry.annotations):
        return mask
    spans = np.array(entry.spans, np.int64).tobytes()
    return CocoFileMask(mask.size, file, spans, class_ids, mask.fingerprint())
