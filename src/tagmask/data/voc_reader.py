"""Reader for the layout of PASCAL VOC: JPEGImages, ImageSets, Annotations or a tag table, SegmentationClass."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tagmask.data.class_names import class_ids, find_class_list, normalize_class_name, read_class_list
from tagmask.data.image_files import ImageFiles, attach_masks
from tagmask.data.image_ids import strip_image_suffix, unique_ids
from tagmask.data.regular_files import check_regular_file
from tagmask.data.samples import Mask, PngMask, Problem, Sample, TaggedImages
from tagmask.data.split_list import SplitItem, read_split
from tagmask.data.table_reader import ImageFinder, match_rows_to_images
from tagmask.data.tag_rows import Row, TagTable
from tagmask.data.tag_table import read_tag_table
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX
from tagmask.text import join_first_names, pluralize, shorten

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # VOC's own masks come first: they mark ignored borders

TagReader = Callable[[str, Sample], tuple[int, ...] | Problem | None]
"""Maps the name and sample of an image to its class ids, to a problem, or to None if its tags are not known."""


def read_voc(
    root: Path,
    *,
    split: str | None = None,
    tags: str | Path = "auto",
    masks: Path | None = None,
    saliency: Path | None = None,
    class_list: Path | None = None,
) -> TaggedImages:
    """Read VOC 2007 or 2012, `train_aug`, or other data in the same layout.

    Args:
        root: the folder that holds `JPEGImages`, with images of any format.
        split: the name of a list in `ImageSets/Segmentation` or `ImageSets/Main`, or the path of a list file. Its
            lines have the form `2007_000032` or `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.
            None: every image whose tags are known.
        tags: where the tags come from. "xml": the objects in `Annotations`, including those marked difficult, as is
            common. "masks": the classes that have pixels. A path: a tag table. "auto": the first that exists of
            `tags.csv` in the root, "xml" and "masks".
        masks: the folder of masks. By default `SegmentationClass`, and `SegmentationClassAug` for images that the
            former lacks.
        saliency: the folder of saliency maps. By default `Saliency`, if it exists.
        class_list: a file of class names, one per line, that fixes the class ids. By default `classes.txt` in the
            root, or else VOC's 20 classes. If fewer than half of the names in a tag table are VOC classes, the default
            is the names of the table, sorted.

    Raises:
        DataError: the folder, list or table cannot be read. Errors in single images are in `problems` instead.
    """
    files = ImageFiles(root / "JPEGImages")
    items, problems = read_split(root, split, files)
    names = [item.image for item in items]
    samples = [Sample(i, files.path(name), None) for i, name in zip(unique_ids(names), names, strict=True)]
    mask_folders = [masks] if masks else _existing_folders(root, *_MASK_FOLDERS)
    saliency_folders = [saliency] if saliency else _existing_folders(root, "Saliency")
    samples, warnings = attach_masks(samples, mask_folders, saliency_folders)
    if masks is None:
        samples = [_with_listed_mask(root, *pair, warnings) for pair in zip(items, samples, strict=True)]

    source = _find_tag_source(root, tags)
    classes, read_tags, table_problems = _tag_reader(root, source, find_class_list(root, class_list), files, set(names))
    samples, tag_problems = _add_tags(items, samples, read_tags, str(source), required=split is not None)
    name = os.path.basename(os.path.abspath(root)) + (f" ({split})" if split else "")
    all_problems = (*problems, *table_problems, *tag_problems, *files.problems, *warnings)
    return TaggedImages(classes, tuple(samples), all_problems, name)


def _existing_folders(root: Path, *names: str) -> list[Path]:
    return [root / name for name in names if (root / name).is_dir()]


def _with_listed_mask(root: Path, item: SplitItem, sample: Sample, warnings: list[Problem]) -> Sample:
    """Return the sample with the mask that the split list names. Appends a warning if that mask does not exist."""
    if item.mask is None:
        return sample
    if os.path.isfile(root / item.mask):  # unlike Path.is_file, also for names that are too long
        return replace(sample, mask=PngMask(root / item.mask))
    warnings.append(Problem(item.where, f"names the mask {item.mask}, which does not exist", "correct it", "warning"))
    return sample


def _find_tag_source(root: Path, tags: str | Path) -> str | Path:
    """Return "xml", "masks" or the path of a tag table."""
    if tags != "auto":
        return tags if tags in ("xml", "masks") else Path(tags)
    if (root / "tags.csv").is_file():
        return root / "tags.csv"
    if (root / "Annotations").is_dir():
        return "xml"
    if _existing_folders(root, *_MASK_FOLDERS):
        return "masks"
    raise DataError(f"{root} has no tags.csv, no Annotations and no SegmentationClass; add one of them for the tags.")


def _table_image_finder(files: ImageFiles, names: Collection[str], table: TagTable) -> Callable[[Row], str | None]:
    """Return a function that finds the images of a table; None for images that are missing or not among the names."""
    finder = ImageFinder(files, table)

    def find(row: Row) -> str | None:
        try:
            image = finder(row)
        except DataError:
            return None
        return image if image in names else None

    return find


def _tag_reader(
    root: Path, source: str | Path, class_file: Path | None, files: ImageFiles, names: Collection[str]
) -> tuple[tuple[str, ...], TagReader, list[Problem]]:
    """Return the classes, the function that reads the tags of an image, and the problems of a tag table's lines."""
    classes = read_class_list(class_file) if class_file else VOC_CLASSES
    if source == "masks":
        return classes, lambda name, sample: _tags_from_mask(sample.mask, len(classes)), []
    if source == "xml":
        return classes, lambda name, sample: _tags_from_xml(root / "Annotations", name, classes), []
    table = read_tag_table(Path(source))
    if not class_file and len({*table.names} & {*VOC_CLASSES}) * 2 < len(table.names):
        classes = table.names
    rows, problems = match_rows_to_images(table.rows, _table_image_finder(files, names, table), table)
    return classes, lambda name, sample: _tags_from_row(table, rows.get(name), classes), problems


def _add_tags(
    items: Sequence[SplitItem], samples: Sequence[Sample], read_tags: TagReader, source: str, required: bool
) -> tuple[list[Sample], list[Problem]]:
    """Return the samples that have tags. The others are errors if tags are required, else counted in a warning."""
    names = [item.image for item in items]
    if source == "masks":
        with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it decodes
            all_tags = list(pool.map(read_tags, names, samples))
    else:
        all_tags = list(map(read_tags, names, samples))
    untagged = [item for item, tags in zip(items, all_tags, strict=True) if tags is None]
    problems = [tags for tags in all_tags if isinstance(tags, Problem)]
    if required:
        missing = {"xml": "no file in Annotations", "masks": "no mask"}.get(source, f"no line in {source}")
        fix = "add it, or remove the image"
        problems += [Problem(item.where, f"{item.image} has {missing}", fix) for item in untagged]
    elif untagged:
        examples = join_first_names([item.image for item in untagged], 3)
        message = f"has no tags for {pluralize(len(untagged), 'image')} ({examples})"
        problems.append(Problem(source, message, "add them if they are to be used", "warning"))
    tagged = [
        replace(sample, tags=tags) for sample, tags in zip(samples, all_tags, strict=True) if isinstance(tags, tuple)
    ]
    return tagged, problems


def _tags_from_row(table: TagTable, row: Row | None, classes: Sequence[str]) -> tuple[int, ...] | Problem | None:
    if row is None:
        return None
    if row.problem:
        return row.problem
    try:
        return class_ids(row.tags, classes)
    except DataError as error:
        return Problem.from_error(table.location(row), error)


def _tags_from_mask(mask: Mask | None, num_classes: int) -> tuple[int, ...] | Problem | None:
    if not isinstance(mask, PngMask):
        return None
    try:
        ids = np.flatnonzero(np.bincount(mask.read().ravel(), minlength=256)).tolist()
    except DataError as error:
        return Problem.from_error(str(mask.path), error)
    tags = tuple(label for label in ids if label not in (0, IGNORE_INDEX))
    if tags and tags[-1] > num_classes:
        message = f"has pixels of class {tags[-1]}, but the largest class id is {num_classes}"
        return Problem(str(mask.path), message, "correct the mask or the class list")
    return tags


def _tags_from_xml(folder: Path, name: str, classes: Sequence[str]) -> tuple[int, ...] | Problem | None:
    path = folder / f"{strip_image_suffix(name)}.xml"
    try:
        check_regular_file(path)
        objects = ElementTree.parse(path).getroot().iterfind("object")
        return class_ids((normalize_class_name(item.findtext("name", "")) for item in objects), classes)
    except FileNotFoundError:
        return None
    except DataError as error:
        return Problem.from_error(str(path), error)
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        return Problem(str(path), f"is not valid XML ({shorten(str(error))})", "correct it")
