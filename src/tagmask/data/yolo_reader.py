"""Reader for YOLO's labels: a text file of objects for each image, and the class names in data.yaml or classes.txt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tagmask.data.class_names import normalize_class_name, read_class_list
from tagmask.data.image_files import ImageFiles, attach_masks
from tagmask.data.image_ids import strip_image_suffix, unique_ids
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.text_files import read_text
from tagmask.errors import DataError, RecipeError
from tagmask.text import join_first_names, pluralize, shorten
from tagmask.yaml_text import parse_yaml

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_MAX_LABEL_BYTES = 10**8


def find_yolo_names(root: Path) -> Path | None:
    """Return the file with the class names of a YOLO data set, or None if `root` does not hold one."""
    has_labels = any(any(labels.rglob("*.txt")) for labels in (root / "labels", *root.glob("*/labels")))
    names = (root / name for name in (*_YAML_NAMES, "classes.txt"))
    return next((path for path in names if path.is_file()), None) if has_labels else None


def read_yolo(
    root: Path,
    names_file: Path,
    *,
    split: str | None = None,
    masks: Path | None = None,
    saliency: Path | None = None,
    leave_out: Sequence[Path | None] = (),
) -> TaggedImages:
    """Read images with YOLO's labels (boxes or polygons). The tags of an image are the classes of its objects.

    The labels of `images/train/1.jpg` are in `labels/train/1.txt`; outside of a folder `images`, they are beside the
    image. An image without a file of labels shows only background, as in YOLO itself.

    Args:
        root: the folder of the data set.
        names_file: `data.yaml` with the key `names`, or a list of class names, one per line. It fixes the class ids.
        split: a key of `data.yaml` that names a folder of images, or the name of a folder in the paths of the images.
        masks, saliency: folders of PNGs named `<id>.png`. The id is the path of the image without suffix.
        leave_out: folders in which no images are looked for, besides those of masks and saliency maps.

    Raises:
        DataError: the folder or the class names cannot be read, or there is no such split. Errors in single label files
            are in `problems` instead.
    """
    is_yaml = names_file.suffix.lower() in (".yaml", ".yml")
    settings = _read_settings(names_file) if is_yaml else {}
    classes = _class_names(settings, names_file) if is_yaml else read_class_list(names_file)
    files = ImageFiles(root, leave_out=(masks, saliency, *leave_out))
    names = files.names if split is None else _names_of_split(root, files.names, split, settings)
    if not names:
        raise DataError(f"there is no image in {root}; give the folder of {names_file.name}.")
    samples, problems, unlabeled = [], [], []
    for image_id, name in zip(unique_ids(names), names, strict=True):
        path = _label_path(root, name)
        if not path.exists():
            unlabeled.append(name)
        try:
            tags = _read_tags(path, classes) if path.exists() else ()
            samples.append(Sample(image_id, files.path(name), tags))
        except DataError as error:
            problems.append(Problem.from_error(str(path), error))
    if len(unlabeled) == len(names):
        raise DataError(
            f"no image of {root} has a file of labels, for example {_label_path(root, names[0])}; add the labels, or "
            "name another layout with --format."
        )
    samples, warnings = attach_masks(samples, [masks] if masks else [], [saliency] if saliency else [])
    if unlabeled:
        message = f"has no labels for {pluralize(len(unlabeled), 'image')} ({join_first_names(unlabeled, 3)})"
        warnings.append(Problem(str(root), message, "add them if the images show a class", "warning"))
    title = os.path.basename(os.path.abspath(root)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *files.problems, *warnings), title)


def _read_settings(path: Path) -> Mapping[str, Any]:
    try:
        settings = parse_yaml(read_text(path), str(path))
    except RecipeError as error:
        raise DataError(str(error)) from error
    if not isinstance(settings, dict) or "names" not in settings:
        raise DataError(f"{path} has no list 'names'; write the names of the classes there.")
    return settings


def _class_names(settings: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Return the class names of data.yaml, a list or a mapping from 0, 1, 2, ..."""
    names = settings["names"]
    if isinstance(names, dict):
        names = [names.get(index) for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{path} has 'names' that are not a list of names, or do not begin at 0; correct them.")
    classes = tuple(normalize_class_name(str(name)) for name in names)
    if len(set(classes)) < len(classes) or "" in classes:
        raise DataError(f"{path} names a class twice or not at all; correct it.")
    return classes


def _names_of_split(root: Path, names: list[str], split: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the images in the folder that data.yaml names for a split, or else in a folder named like the split."""
    folder = settings.get(split)
    if isinstance(folder, str) and folder.endswith(".txt"):
        raise DataError(
            f"the split {shorten(split)!r} of {root} is a list of files, which cannot be read; use folders."
        )
    prefix = "/".join(part for part in str(folder or "").split("/") if part not in ("", ".", ".."))
    selected = [name for name in names if prefix and name.startswith(f"{prefix}/")]
    selected = selected or [name for name in names if split in name.split("/")[:-1]]
    if not selected:
        raise DataError(f"{root} has no folder of images for the split {shorten(split)!r}; correct the split.")
    return selected


def _label_path(root: Path, name: str) -> Path:
    """Return the path of an image's labels: the last folder "images" becomes "labels"."""
    before, found, after = f"/{strip_image_suffix(name)}.txt".rpartition("/images/")
    beside = root / f"{strip_image_suffix(name)}.txt"
    if found:
        return root / f"{before}/labels/{after}".lstrip("/")
    if Path(os.path.abspath(root)).name == "images" and not beside.exists():
        return Path(os.path.abspath(root)).parent / "labels" / f"{strip_image_suffix(name)}.txt"
    return beside


def _read_tags(path: Path, classes: tuple[str, ...]) -> tuple[int, ...]:
    ids = set()
    for number, line in enumerate(read_text(path, _MAX_LABEL_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        text = line.split(maxsplit=1)[0]
        if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) >= len(classes):
            raise DataError(
                f"{path} has the class {shorten(text)!r} in line {number}, which is not 0 to {len(classes) - 1}; "
                "correct it or the class names."
            )
        ids.add(int(text) + 1)
    return tuple(sorted(ids))
