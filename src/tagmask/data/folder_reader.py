"""One folder a class: `photos/cat/1.jpg` shows a cat."""

from __future__ import annotations

import os
from pathlib import Path

from tagmask.data.class_names import BACKGROUND, class_ids, find_class_list, normalize_class_name, read_class_list
from tagmask.data.image_files import ImageFiles, given, is_hidden, with_masks
from tagmask.data.image_ids import unique_ids
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.text import join_names

_LAYOUTS = (
    "a table of lines image,tags (as the tags, or as tags.csv beside the images), one folder a class (cat/1.jpg), "
    "VOC's folders (JPEGImages, ImageSets), or COCO's instances file (as the annotations)"
)


def read_folders(
    root: Path,
    *,
    split: str | None = None,
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
) -> TaggedImages:
    """Read images that lie in one folder a class; each has the tag of its folder, however deep in it.

    Images in a folder named "background" have no tag. The same file name in two folders are two images.

    Args:
        split: where the class folders lie one deeper (`root/train/cat/1.jpg`), the one to read. The classes are
            those of all splits.
        masks, saliency: folders of PNGs named `<class folder>/<image>.png`.
        class_list: file of class names, one a line (default: `classes.txt` in the folder; else the folders' names,
            sorted). Masks hold these ids.

    Raises:
        DataError: the folder does not exist or holds no class folder with an image.
    """
    files = ImageFiles(root, leave_out=(masks, saliency))
    within = f"{split.strip('/')}/" if split else ""
    names = [name for name in files.names if name.startswith(within)]
    if split and not names:
        raise DataError(f"{root} has no folder {split!r} with images; correct the split, or leave it out.")
    depth = within.count("/")
    tag_of = {name: normalize_class_name(name.split("/")[depth]) for name in files.names if name.count("/") > depth}
    found = {tag for tag in tag_of.values() if tag.casefold() != BACKGROUND}
    if not found:
        raise DataError(f"{root / within} holds no tags: no folders with images in them; give {_LAYOUTS}.")
    named = find_class_list(root, class_list)
    classes = read_class_list(named) if named else tuple(sorted(found))

    samples, problems = [], list(files.problems)
    for id_, name in zip(unique_ids(names), names, strict=True):
        path = files.path(name)
        if name not in tag_of:
            problems.append(Problem(path, "lies in no class folder", "move it into one"))
            continue
        try:
            tags = () if tag_of[name].casefold() == BACKGROUND else class_ids([tag_of[name]], classes)
            samples.append(Sample(id_, path, tags))
        except DataError as error:
            problems.append(Problem.of(path, error))
    samples, doubts = with_masks(samples, given(masks), given(saliency))
    doubts += _ignored(root, files.others) + _empty_folders(root / within, names, within, (masks, saliency))
    if not split:
        doubts += _like_splits(root, found)
    name = os.path.basename(os.path.abspath(root)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *doubts), name)


def _ignored(root: Path, others: list[str]) -> list[Problem]:
    others = [name for name in others if name != "classes.txt"]
    if not others:
        return []
    reporter = join_names([ascii(name)[1:-1] for name in others], 3)
    what = "1 file is not read" if len(others) == 1 else f"{len(others)} files are not read"
    return [Problem(str(root), f"{what} ({reporter})", "convert them to JPEG or PNG, if they are images", "warning")]


def _empty_folders(root: Path, names: list[str], within: str, leave_out: tuple[Path | None, ...]) -> list[Problem]:
    used = {name[len(within) :].split("/")[0] for name in names}
    others = {os.path.abspath(folder) for folder in leave_out if folder}
    empty = sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and path.name not in used and not is_hidden(path.name) and os.path.abspath(path) not in others
    )
    return [Problem(str(path), "holds no image", "fill or remove the folder", "warning") for path in empty]


def _like_splits(root: Path, classes: set[str]) -> list[Problem]:
    splits = sorted(classes & {"train", "val", "valid", "validation", "test"})
    if not splits:
        return []
    what = f"has folders that look like splits but are read as classes ({', '.join(splits)})"
    return [Problem(str(root), what, f"name a split, like {splits[0]!r}, if they are", "warning")]
