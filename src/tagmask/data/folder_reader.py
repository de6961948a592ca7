"""Reader for one folder per class: `photos/cat/1.jpg` shows a cat."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tagmask.data.class_names import (
    BACKGROUND,
    MAX_HINTS,
    class_ids,
    find_class_list,
    normalize_class_name,
    read_class_list,
)
from tagmask.data.dataset_roots import SPLIT_NAMES, refuse_dataset_root
from tagmask.data.image_files import ImageFiles, attach_masks, holds_results, is_hidden
from tagmask.data.image_ids import file_suffix, unique_ids
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.text import join_first_names, pluralize, shorten

_NO_IMAGES = frozenset({
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".zip", ".db", ".ini",
})  # fmt: skip
_LAYOUTS = (
    "a table of lines image,tags (named as the tags, or tags.csv in the image folder), one folder per class "
    "(cat/1.jpg), VOC's folders (JPEGImages, ImageSets), or COCO's instances file (named as the annotations)"
)


def read_folders(
    root: Path,
    *,
    split: str | None = None,
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
    leave_out: Sequence[Path | None] = (),
    refuse_roots: bool = False,
) -> TaggedImages:
    """Read images from one folder per class; each image has the tag of its folder.

    Images may lie in subfolders of the class folders. Images in a folder named "background" have no tag. Files of the
    same name in two folders are two images.

    Args:
        root: the folder of the class folders.
        split: the subfolder of `root` that holds the class folders (`root/train/cat/1.jpg`). The classes are those of
            all splits.
        masks, saliency: folders of PNGs named `<class folder>/<image>.png`.
        class_list: a file of class names, one per line. By default `classes.txt` in `root`, or else the names of the
            class folders, sorted. Masks hold the ids of this list.
        leave_out: folders in which no images are looked for, besides those of masks and saliency maps.
        refuse_roots: whether folders that look like the parts of a data set (train, annotations) are an error.

    Raises:
        DataError: the folder does not exist, or has no class folder with an image.
    """
    files = ImageFiles(root, leave_out=(masks, saliency, *leave_out))
    if refuse_roots and not split:
        refuse_dataset_root(root, files.names)
    prefix = f"{split.strip('/')}/" if split else ""
    names = [name for name in files.names if name.startswith(prefix)]
    if split and not names:
        raise DataError(f"{root} has no folder {shorten(split)!r} with images; correct the split, or leave it out.")
    depth = prefix.count("/")
    tag_by_name = {
        name: normalize_class_name(name.split("/")[depth]) for name in files.names if name.count("/") > depth
    }
    tags = {tag for tag in tag_by_name.values() if tag.casefold() != BACKGROUND}
    if not tags:
        raise DataError(f"{root / prefix} holds no tags, because it has no folders with images; provide {_LAYOUTS}.")
    class_file = find_class_list(root, class_list)
    classes = read_class_list(class_file) if class_file else tuple(sorted(tags))

    samples, problems = [], list(files.problems)
    for image_id, name in zip(unique_ids(names), names, strict=True):
        path = files.path(name)
        tag = tag_by_name.get(name)
        if tag is None:
            problems.append(Problem(path, "is not in a class folder", "move it into one"))
            continue
        try:
            names_of_tags = [tag] if tag.casefold() != BACKGROUND else []
            samples.append(
                Sample(image_id, path, class_ids(names_of_tags, classes, with_hint=len(problems) < MAX_HINTS))
            )
        except DataError as error:
            problems.append(Problem.from_error(path, error))
    mask_folders = [masks] if masks else []
    samples, warnings = attach_masks(samples, mask_folders, [saliency] if saliency else [])
    warnings += _warn_other_files(root, files.others)
    warnings += _warn_empty_folders(root / prefix, names, prefix, (masks, saliency, *leave_out))
    if not split:
        warnings += _warn_split_names(root, tags)
    name = os.path.basename(os.path.abspath(root)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *warnings), name)


def read_untagged(
    root: Path,
    *,
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
    leave_out: Sequence[Path | None] = (),
) -> TaggedImages:
    """Read all images of a folder and its subfolders; their tags are not known.

    Args:
        root: the folder.
        masks, saliency: folders of PNGs named `<image>.png`, with the same subfolders.
        class_list: as for `read_folders`. Without one, the set has no classes.
        leave_out: folders in which no images are looked for, besides those of masks and saliency maps.

    Raises:
        DataError: the folder does not exist, or has no image.
    """
    files = ImageFiles(root, leave_out=(masks, saliency, *leave_out))
    if not files.names:
        raise DataError(f"there is no image in {root}; correct the path.")
    class_file = find_class_list(root, class_list)
    samples = [Sample(i, files.path(n), None) for i, n in zip(unique_ids(files.names), files.names, strict=True)]
    samples, warnings = attach_masks(samples, [masks] if masks else [], [saliency] if saliency else [])
    classes = read_class_list(class_file) if class_file else ()
    name = os.path.basename(os.path.abspath(root))
    return TaggedImages(classes, tuple(samples), (*files.problems, *warnings), name)


def _warn_other_files(root: Path, others: list[str]) -> list[Problem]:
    others = [name for name in others if file_suffix(name) not in _NO_IMAGES]
    if not others:
        return []
    examples = join_first_names([ascii(name)[1:-1] for name in others], 3)
    message = f"has {pluralize(len(others), 'file')} of other formats ({examples})"
    return [Problem(str(root), message, "convert them to JPEG or PNG if they are images", "warning")]


def _warn_empty_folders(root: Path, names: list[str], prefix: str, leave_out: tuple[Path | None, ...]) -> list[Problem]:
    used = {name[len(prefix) :].split("/")[0] for name in names}
    skipped = {os.path.abspath(folder) for folder in leave_out if folder}
    empty = sorted(
        path
        for path in root.iterdir()
        if path.is_dir()
        and path.name not in used
        and not is_hidden(path.name)
        and os.path.abspath(path) not in skipped
        and not holds_results(path)
    )
    return [Problem(str(path), "holds no image", "fill or remove the folder", "warning") for path in empty]


def _warn_split_names(root: Path, classes: set[str]) -> list[Problem]:
    splits = sorted(classes & SPLIT_NAMES)
    if not splits:
        return []
    message = f"has folders that look like splits but are read as classes ({', '.join(splits)})"
    return [Problem(str(root), message, f"name a split, like {splits[0]!r}, if they are splits", "warning")]
