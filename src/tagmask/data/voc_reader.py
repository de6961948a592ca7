"""The layout of PASCAL VOC: JPEGImages, ImageSets, Annotations or a tag table, SegmentationClass."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tagmask.data.class_names import class_ids, find_class_list, normalize_class_name, read_class_list
from tagmask.data.image_files import ImageFiles, given, with_masks
from tagmask.data.image_ids import strip_image_suffix, unique_ids
from tagmask.data.samples import Mask, PngMask, Problem, Sample, TaggedImages
from tagmask.data.table_reader import rows_by_image
from tagmask.data.tag_table import Row, TagTable, read_tag_table
from tagmask.data.text_files import read_text
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX
from tagmask.text import did_you_mean, join_names

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the first has VOC's own masks, with unsure borders

TagsOf = Callable[[str, Sample], tuple[int, ...] | Problem | None]
"""An image's name and sample → its class ids; what is wrong with them; or None where nothing is said of it."""


def read_voc(
    root: Path,
    *,
    split: str | None = None,
    tags: str | Path = "auto",
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
) -> TaggedImages:
    """Read VOC 2007 or 2012, `train_aug`, or own data in their layout.

    Args:
        root: holds `JPEGImages`, with images of any kind.
        split: the name of a list in `ImageSets/Segmentation` (or `ImageSets/Main`), or the path of a list file.
            Its lines are `2007_000032`, or `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.
            None: every image whose tags are known.
        tags: "xml" (the objects in `Annotations`, those marked difficult too, as is the custom of the field),
            "masks" (the classes that have pixels), or the path of a tag table. "auto" is the first there is of
            `tags.csv` in the root, "xml" and "masks".
        masks: the folder of masks; by default `SegmentationClass`, and `SegmentationClassAug` for images that
            the first lacks.
        saliency: the folder of saliency maps; by default `Saliency`, if there is one.
        class_list: file of class names, one a line, that fixes the class ids. By default `classes.txt` in the
            root; else the 20 classes of VOC, unless fewer than half of a tag table's names are of them: then the
            table's names, sorted.

    Raises:
        DataError: the folder, list or table cannot be read at all. What is wrong with single images is in `problems`.
    """
    files = ImageFiles(root / "JPEGImages")
    listed, problems = _listed(root, split, files)
    names = [item.image for item in listed]
    untagged = [Sample(id_, files.path(name), None) for id_, name in zip(unique_ids(names), names, strict=True)]
    mask_folders = given(masks) or _existing(root, *_MASK_FOLDERS)
    with_own, doubts = with_masks(untagged, mask_folders, given(saliency) or _existing(root, "Saliency"))
    if masks is None:
        with_own = [_with_listed_mask(root, *pair, doubts) for pair in zip(listed, with_own, strict=True)]

    source = _tag_source(root, tags)
    classes, tags_of, more = _tags_from(root, source, find_class_list(root, class_list), _finder(files, names))
    samples, missing = _tagged(listed, with_own, tags_of, str(source), required=split is not None)
    name = os.path.basename(os.path.abspath(root)) + (f" ({split})" if split else "")
    return TaggedImages(classes, tuple(samples), (*problems, *more, *missing, *files.problems, *doubts), name)


@dataclass(frozen=True)
class _Item:
    """A line of a split list: where it stands, the image's name under JPEGImages, and its mask if named."""

    where: str
    image: str
    mask: str | None = None


def _existing(root: Path, *names: str) -> list[Path]:
    return [root / name for name in names if (root / name).is_dir()]


def _listed(root: Path, split: str | None, files: ImageFiles) -> tuple[list[_Item], list[Problem]]:
    if split is None:
        return [_Item(files.path(name), name) for name in files.names], []
    path = _list_file(root, split)
    items: dict[str, _Item] = {}
    problems = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            image, mask = _parse(line.strip(), where, files)
        except DataError as error:
            problems.append(Problem.of(where, error))
            continue
        if image in items:
            problems.append(Problem(where, f"lists {image} again", "remove the line", "warning"))
        items.setdefault(image, _Item(where, image, mask))
    if not items and not problems:
        raise DataError(f"{path} lists no image; write one a line.")
    return list(items.values()), problems


def _list_file(root: Path, split: str) -> Path:
    folders = (root / "ImageSets" / "Segmentation", root / "ImageSets" / "Main")
    candidates = [Path(split), root / split, *(folder / name for folder in folders for name in (f"{split}.txt", split))]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.txt")})
    raise DataError(f"there is no split list {split!r} under {root / 'ImageSets'}{did_you_mean(split, known)}.")


def _parse(line: str, where: str, files: ImageFiles) -> tuple[str, str | None]:
    """A line → image, mask. The whole line may be one name with spaces."""

    def image(text: str) -> str:
        return files.find(text.lstrip("/").removeprefix("JPEGImages/"))

    columns = line.split()
    if len(columns) != 2:
        return image(line), None
    if columns[1] in ("-1", "0", "1"):
        raise DataError(f"{where} is of a list for one class, like {line!r}; use a list that names images alone.")
    try:
        return image(line), None
    except DataError:
        return image(columns[0]), columns[1].lstrip("/")


def _with_listed_mask(root: Path, item: _Item, sample: Sample, doubts: list[Problem]) -> Sample:
    if item.mask is None:
        return sample
    if (root / item.mask).is_file():
        return replace(sample, mask=PngMask(root / item.mask))
    doubts.append(Problem(item.where, f"names the mask {item.mask}, which does not exist", "correct it", "warning"))
    return sample


def _tag_source(root: Path, tags: str | Path) -> str | Path:
    if tags != "auto":
        return tags if tags in ("xml", "masks") else Path(tags)
    if (root / "tags.csv").is_file():
        return root / "tags.csv"
    if (root / "Annotations").is_dir():
        return "xml"
    if _existing(root, *_MASK_FOLDERS):
        return "masks"
    raise DataError(f"{root} has no tags.csv, no Annotations and no SegmentationClass; add one to say what is shown.")


def _finder(files: ImageFiles, wanted: Collection[str]) -> Callable[[str], str | None]:
    """Finds images of a table; those that are not wanted, or not there, are of no interest."""

    def find(name: str) -> str | None:
        try:
            image = files.find(name)
        except DataError:
            return None
        return image if image in wanted else None

    return find


def _tags_from(
    root: Path, source: str | Path, class_list: Path | None, find: Callable[[str], str | None]
) -> tuple[tuple[str, ...], TagsOf, list[Problem]]:
    """The classes, what gives an image its tags, and what is wrong with a tag table's own lines."""
    classes = read_class_list(class_list) if class_list else VOC_CLASSES
    if source == "masks":
        return classes, lambda name, sample: _mask_tags(sample.mask, len(classes)), []
    if source == "xml":
        return classes, lambda name, sample: _xml_tags(root / "Annotations", name, classes), []
    table = read_tag_table(Path(source))
    if not class_list and len({*table.names} & {*VOC_CLASSES}) * 2 < len(table.names):
        classes = table.names
    rows, problems = rows_by_image(table.rows, find, table)
    return classes, lambda name, sample: _table_tags(table, rows.get(name), classes), problems


def _tagged(
    items: Sequence[_Item], samples: Sequence[Sample], tags_of: TagsOf, source: str, required: bool
) -> tuple[list[Sample], list[Problem]]:
    """The samples with their tags; one that has none is left out, with a problem of its own if it is required."""
    names = [item.image for item in items]
    with ThreadPoolExecutor() as pool:  # masks are decoded outside Python's lock
        all_tags = list((pool.map if source == "masks" else map)(tags_of, names, samples))
    silent = [item for item, tags in zip(items, all_tags, strict=True) if tags is None]
    problems = [tags for tags in all_tags if isinstance(tags, Problem)]
    if required:
        what = {"xml": "no file in Annotations", "masks": "no mask"}.get(source, f"no line in {source}")
        problems += [Problem(item.where, f"{item.image} has {what}", "add it, or remove the image") for item in silent]
    elif silent:
        what = f"says nothing of {len(silent)} images ({join_names([item.image for item in silent], 3)})"
        problems.append(Problem(source, what, "add them if they are to be used", "warning"))
    return [
        replace(sample, tags=tags) for sample, tags in zip(samples, all_tags, strict=True) if isinstance(tags, tuple)
    ], problems


def _table_tags(table: TagTable, row: Row | None, classes: Sequence[str]) -> tuple[int, ...] | Problem | None:
    if row is None:
        return None
    if row.problem:
        return row.problem
    try:
        return class_ids(row.tags, classes)
    except DataError as error:
        return Problem.of(table.where(row), error)


def _mask_tags(mask: Mask | None, num_classes: int) -> tuple[int, ...] | Problem | None:
    if not isinstance(mask, PngMask):
        return None
    try:
        present = np.flatnonzero(np.bincount(mask.read().ravel(), minlength=256)).tolist()
    except DataError as error:
        return Problem.of(str(mask.path), error)
    tags = tuple(label for label in present if label not in (0, IGNORE_INDEX))
    if tags and tags[-1] > num_classes:
        what = f"has pixels of class {tags[-1]}, and there are {num_classes} classes"
        return Problem(str(mask.path), what, "correct the mask or the class list")
    return tags


def _xml_tags(folder: Path, name: str, classes: Sequence[str]) -> tuple[int, ...] | Problem | None:
    path = folder / f"{strip_image_suffix(name)}.xml"
    try:
        objects = ElementTree.parse(path).getroot().iterfind("object")
        return class_ids((normalize_class_name(item.findtext("name", "")) for item in objects), classes)
    except FileNotFoundError:
        return None
    except DataError as error:
        return Problem.of(str(path), error)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        return Problem(str(path), f"is not XML that can be read ({error})", "correct it")
