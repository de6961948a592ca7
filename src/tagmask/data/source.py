"""`DataSource`: where images and tags come from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tagmask.data.class_names import find_class_list
from tagmask.data.coco_mask import CrowdPixels, DrawingOrder
from tagmask.data.coco_reader import read_coco
from tagmask.data.folder_reader import read_folders, read_untagged
from tagmask.data.image_files import attach_reviewed_masks, require_folder
from tagmask.data.images import is_url
from tagmask.data.limit import limit_images
from tagmask.data.samples import PngMask, TaggedImages
from tagmask.data.shard_reader import holds_shards, may_hold_shards, read_shards
from tagmask.data.table_reader import read_table
from tagmask.data.tag_table import read_tag_table
from tagmask.data.voc_reader import read_voc
from tagmask.data.yolo_reader import find_yolo_names, read_yolo
from tagmask.errors import DataError
from tagmask.label_map import MAX_CLASSES
from tagmask.text import join_first_names

Format = Literal["voc", "coco", "yolo", "table", "folders", "images", "shards"]

_UNUSED_SETTINGS: dict[Format, tuple[str, ...]] = {
    "voc": ("annotations", "image_column", "tags_column", "coco_order", "coco_crowds"),
    "coco": ("tags", "split", "class_list", "image_column", "tags_column"),
    "yolo": ("annotations", "image_column", "tags_column", "coco_order", "coco_crowds"),
    "table": ("annotations", "coco_order", "coco_crowds"),
    "folders": ("tags", "annotations", "image_column", "tags_column", "coco_order", "coco_crowds"),
    "images": ("tags", "annotations", "split", "image_column", "tags_column", "coco_order", "coco_crowds"),
    "shards": ("tags", "annotations", "class_list", "image_column", "tags_column", "coco_order", "coco_crowds"),
}
_TABLE_FILES = ("tags.csv", "annotations.xml")  # in the root; the latter is an export of CVAT


class DataSource(BaseModel):
    """A set of tagged images on disk, in one of several formats.

    A path is taken relative to the current directory. If it does not exist there, it is taken relative to `root`.

    Example:
        >>> import tagmask
        >>> source = tagmask.DataSource(root="photos", tags="tags.csv")
        >>> images = source.read()
        >>> len(images), images.classes
        (3, ('dog', 'person'))
        >>> images.samples[0].tags
        (1, 2)

    Attributes:
        root: the folder of the images. If the tags are in a table, or the images in shards, it may be a URL.
        format: "voc", "coco", "yolo", "table", "folders", "images" (without tags, for held-out images) or "shards".
            "auto" chooses by the files: COCO if `annotations` is set, VOC if there are the folders JPEGImages and
            ImageSets, YOLO if there are data.yaml and folders `labels` or if `tags` is a YAML file, a table if `tags`
            is set or there is a tags.csv or an annotations.xml of CVAT, shards if there are files that `tagmask shard`
            wrote, and otherwise one folder per class.
        split: in VOC the name or path of a list, in a table a value of its column `split`, with folders a subfolder of
            `root`, with YOLO a key of data.yaml or a folder of images, with shards what their names begin with.
        tags: a tag table, or an export of CVAT or Label Studio (see `read_tag_table`). For VOC also "xml" or "masks",
            for YOLO the file of class names.
        image_column, tags_column: the columns of a table that hold the image and the tags, if they have other names.
        annotations: COCO's JSON file of instances.
        coco_order: how COCO's objects are drawn into ground-truth masks: "area" (the default; the largest first, so
            that small objects stay visible) or "file" (in the order of the file, as in published figures).
        coco_crowds: what the pixels of COCO's crowds are in ground-truth masks: "ignored" (the default) or "background"
            (as in published figures).
        masks: a folder of ground-truth masks: PNGs of class ids, named after the images.
        saliency: a folder of saliency maps: grey PNGs, named after the images.
        reviewed: a folder of masks that a person has drawn or corrected: PNGs of class ids, named after the images, for
            a part of the images. They are learned from as ground truth.
        class_list: a file of class names, one per line. By default classes.txt in `root`, if it exists.
        classes: keep only these classes, in this order. Tags of other classes are dropped, and their mask pixels
            become background.
        limit: read only so many images, for a quick try: a fixed random choice in which every class occurs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str
    format: Literal["auto", "voc", "coco", "yolo", "table", "folders", "images", "shards"] = "auto"
    split: str | None = None
    tags: str | None = None
    image_column: str | None = None
    tags_column: str | None = None
    annotations: str | None = None
    coco_order: DrawingOrder | None = None
    coco_crowds: CrowdPixels | None = None
    masks: str | None = None
    saliency: str | None = None
    reviewed: str | None = None
    class_list: str | None = None
    classes: tuple[str, ...] | None = None
    limit: int | None = Field(default=None, ge=1)

    def read(self) -> TaggedImages:
        """Read the tags, and list the images and their masks and saliency maps. Image files are not opened.

        Raises:
            DataError: the data does not exist, cannot be read, or has too many classes.
        """
        images = attach_reviewed_masks(self._read_all_classes(), self.resolve_path(self.reviewed))
        if self.classes is not None:
            images = images.restrict(self.classes)
        if len(images.classes) > MAX_CLASSES:
            raise DataError(
                f"{self.root} has {len(images.classes)} classes, but a mask can hold only {MAX_CLASSES}; "
                "select classes with the setting 'classes'."
            )
        return images if self.limit is None else limit_images(images, self.limit)

    def with_absolute_paths(self) -> DataSource:
        """Return the same source with absolute paths, so that it can be read from another current directory.

        Only paths that exist in the current directory are changed. The others are relative to `root`.
        """
        files = {name: getattr(self, name) for name in ("split", "tags", "annotations", "class_list")}
        folders = {name: getattr(self, name) for name in ("root", "masks", "saliency", "reviewed")}
        existing = {name: path for name, path in files.items() if path and os.path.isfile(path)}
        existing |= {name: path for name, path in folders.items() if path and os.path.isdir(path)}
        return self.model_copy(update={name: os.path.abspath(path) for name, path in existing.items()})

    def has_fixed_class_ids(self) -> bool:
        """Return whether the format or a class list defines the class ids in masks, not the tags that occur."""
        if self.detect_format() in ("voc", "coco", "yolo", "shards"):
            return True
        return find_class_list(self.root, self.resolve_path(self.class_list)) is not None

    def detect_format(self) -> Format:
        """Return the format. If it is "auto", choose it by the files.

        Raises:
            DataError: the root does not exist, or is a URL without a table and without shards.
        """
        root = Path(self.root)
        if not is_url(self.root):
            require_folder(root)
        if self.format != "auto":
            return self.format
        if self.annotations:
            return "coco"
        if (root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir():
            return "voc"
        if (Path(self.tags).suffix.lower() in (".yaml", ".yml")) if self.tags else find_yolo_names(root):
            return "yolo"
        if self.tags or self._find_in_root(*_TABLE_FILES):
            return "table"
        if may_hold_shards(self.root) and holds_shards(self.root):
            return "shards"
        if is_url(self.root):
            raise DataError(f"{self.root} holds no shards; name a table of its tags, or correct the address.")
        return "folders"

    def resolve_path(self, path: str | None) -> Path | None:
        """Return a path of these settings, relative to `root` if it exists only there; None for None."""
        if path is None:
            return None
        in_root = Path(self.root) / path
        return in_root if in_root.exists() and not Path(path).exists() else Path(path)

    def _find_in_root(self, *names: str) -> Path | None:
        """Return the first of these files that is in the root."""
        return next((path for name in names if (path := Path(self.root) / name).is_file()), None)

    def _read_all_classes(self) -> TaggedImages:
        format = self.detect_format()
        for setting in _UNUSED_SETTINGS[format]:
            if getattr(self, setting) is not None:
                raise DataError(f"{setting!r} has no effect on {self.root}, which is read as {format}; leave it out.")
        root = self.root if is_url(self.root) else Path(self.root)
        tags = self.resolve_path(self.tags)
        masks, saliency = self.resolve_path(self.masks), self.resolve_path(self.saliency)
        class_list, leave_out = self.resolve_path(self.class_list), [self.resolve_path(self.reviewed)]
        if format == "coco":
            annotations = self.resolve_path(self.annotations)
            if annotations is None:
                raise DataError(f"{root} is to be read as COCO, but no JSON file is named; name it as the annotations.")
            return read_coco(
                root, annotations, masks=masks, saliency=saliency, order=self.coco_order or "area",
                crowds=self.coco_crowds or "ignored", leave_out=leave_out,
            )  # fmt: skip
        if format == "table":
            table = tags or self._find_in_root(*_TABLE_FILES) or Path(root) / _TABLE_FILES[0]
            columns = {"image_column": self.image_column, "tags_column": self.tags_column}
            return read_table(
                root, read_tag_table(table, **columns), split=self.split, masks=masks, saliency=saliency,
                class_list=class_list, leave_out=leave_out,
            )  # fmt: skip
        if format == "shards":
            return read_shards(self.root, split=self.split, masks=masks, saliency=saliency)
        if format == "yolo":
            names_file = (
                class_list or tags or find_yolo_names(Path(root)) or self._find_in_root("data.yaml", "classes.txt")
            )
            if names_file is None:
                raise DataError(f"{root} has no data.yaml and no classes.txt with the class names of YOLO; add one.")
            return read_yolo(
                Path(root), names_file, split=self.split, masks=masks, saliency=saliency, leave_out=leave_out
            )
        if format == "images":
            return read_untagged(Path(root), masks=masks, saliency=saliency, class_list=class_list, leave_out=leave_out)
        if format == "voc":
            voc_tags = self.tags or "auto"
            if voc_tags not in ("auto", "xml", "masks"):
                voc_tags = str(tags)
            return read_voc(
                Path(root), split=self.split, tags=voc_tags, masks=masks, saliency=saliency, class_list=class_list
            )
        return read_folders(
            Path(root), split=self.split, masks=masks, saliency=saliency, class_list=class_list,
            leave_out=leave_out, refuse_roots=self.format == "auto",
        )  # fmt: skip


def align_classes(images: TaggedImages, source: DataSource, classes: tuple[str, ...]) -> TaggedImages:
    """Return the images with the class list of a network.

    Args:
        images: the images that `source` returned.
        source: where they come from.
        classes: the classes of the network.

    Raises:
        DataError: the images have masks whose class ids are not defined, because the class list follows from the tags.
    """
    if images.classes == classes:
        return images
    if not images.classes:  # neither tags nor a class list: the ids in the masks are those of the network
        return replace(images, classes=classes)
    if any(isinstance(sample.mask, PngMask) for sample in images.samples) and not source.has_fixed_class_ids():
        raise DataError(
            f"the tags of {images.name} name other classes ({join_first_names(images.classes, 10)}) than the network "
            "has, so the class of each id in its masks is not known; write the class names in order, one per line, in "
            f"{source.root}/classes.txt."
        )
    return images.with_classes(classes)
