"""Where data comes from: a folder in one of four layouts, described by a few settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tagmask.data.class_names import find_class_list
from tagmask.data.coco_reader import read_coco
from tagmask.data.folder_reader import read_folders
from tagmask.data.image_files import existing_folder
from tagmask.data.images import is_url
from tagmask.data.samples import MAX_CLASSES, PngMask, TaggedImages
from tagmask.data.table_reader import read_table
from tagmask.data.voc_reader import read_voc
from tagmask.errors import DataError
from tagmask.text import join_names

Format = Literal["voc", "coco", "table", "folders"]

_UNUSED: dict[Format, tuple[str, ...]] = {
    "voc": ("annotations",),
    "coco": ("tags", "split", "masks", "class_list"),
    "table": ("annotations",),
    "folders": ("tags", "annotations"),
}


class DataSource(BaseModel):
    """A set of tagged images on disk. Paths are taken as they are or, where that is nothing, relative to `root`.

    Attributes:
        root: the folder of the images; of a table, a URL will do, too.
        format: "auto" finds out from what is there: `annotations` mean COCO; JPEGImages and ImageSets VOC; `tags`
            or a tags.csv a table; and else it is one folder a class.
        split: VOC: the name or path of a list; table: a value of its column `split`; folders: `root/split`.
        tags: a tag table; in VOC also "xml" or "masks".
        annotations: COCO's JSON file.
        masks, saliency: folders of PNGs named after the images.
        class_list: a file of class names, one a line (default: root/classes.txt, if there is one).
        classes: keep these classes alone, in this order; other tags are dropped, other mask pixels background.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: str
    format: Literal["auto", "voc", "coco", "table", "folders"] = "auto"
    split: str | None = None
    tags: str | None = None
    annotations: str | None = None
    masks: str | None = None
    saliency: str | None = None
    class_list: str | None = None
    classes: tuple[str, ...] | None = None

    def read(self) -> TaggedImages:
        """Read the tags and what there is of masks; the images themselves are not opened.

        Raises:
            DataError: there is no such data, it cannot be read, or has too many classes.
        """
        images = self._read_all()
        if self.classes is not None:
            images = images.restrict(self.classes)
        if len(images.classes) > MAX_CLASSES:
            raise DataError(
                f"{self.root} has {len(images.classes)} classes, and a mask holds at most {MAX_CLASSES}; "
                "name the ones to keep as the classes."
            )
        return images

    def absolute(self) -> DataSource:
        """The same source for whoever works in another folder: paths that exist here are made absolute."""
        given = {name: value for name, value in self.model_dump().items() if isinstance(value, str)}
        files = ("split", "tags", "annotations", "class_list")
        here = {name: os.path.isfile(value) if name in files else os.path.isdir(value) for name, value in given.items()}
        return self.model_copy(update={name: os.path.abspath(given[name]) for name in here if here[name]})

    def lists_its_classes(self) -> bool:
        """Whether the class ids that its masks hold are said somewhere, or follow from the tags that occur."""
        return self.layout() in ("voc", "coco") or find_class_list(self.root, self.path_of(self.class_list)) is not None

    def layout(self) -> Format:
        """The format, found out if it is "auto". Raises DataError where nothing fits."""
        root = Path(self.root)
        if not is_url(self.root):
            existing_folder(root)
        if self.format != "auto":
            return self.format
        if self.annotations:
            return "coco"
        if (root / "JPEGImages").is_dir() and (root / "ImageSets").is_dir():
            return "voc"
        if self.tags or (root / "tags.csv").is_file():
            return "table"
        if is_url(self.root):
            raise DataError(f"{self.root} cannot be listed; name a table of its tags.")
        return "folders"

    def path_of(self, given: str | None) -> Path | None:
        """The path that a setting means."""
        if given is None:
            return None
        inside = Path(self.root) / given
        return inside if inside.exists() and not Path(given).exists() else Path(given)

    def _read_all(self) -> TaggedImages:
        layout = self.layout()
        for setting in _UNUSED[layout]:
            if getattr(self, setting) is not None:
                raise DataError(f"{setting!r} means nothing for {self.root}, read as {layout}; leave it out.")
        root = self.root if is_url(self.root) else Path(self.root)
        tags, masks, saliency, class_list = map(self.path_of, (self.tags, self.masks, self.saliency, self.class_list))
        beside = {"masks": masks, "saliency": saliency, "class_list": class_list}
        if layout == "coco":
            annotations = self.path_of(self.annotations)
            if annotations is None:
                raise DataError(f"{root} is to be read as COCO, but no JSON file is named; name it as annotations.")
            return read_coco(root, annotations, saliency=saliency)
        if layout == "table":
            return read_table(root, tags or Path(root) / "tags.csv", split=self.split, **beside)
        if layout == "voc":
            words = {None: "auto", "auto": "auto", "xml": "xml", "masks": "masks"}
            return read_voc(Path(root), split=self.split, tags=words.get(self.tags) or str(tags), **beside)
        return read_folders(Path(root), split=self.split, **beside)


def in_classes(images: TaggedImages, source: DataSource, classes: tuple[str, ...]) -> TaggedImages:
    """The images with a network's class list. Raises DataError where the ids in their masks are anybody's guess."""
    if images.classes == classes:
        return images
    if any(isinstance(sample.mask, PngMask) for sample in images.samples) and not source.lists_its_classes():
        raise DataError(
            f"the tags of {images.name} name other classes ({join_names(images.classes, 10)}) than the network has, so it "
            "cannot be known which class each id in its masks is; write the class names in order, one a line, in "
            f"{source.root}/classes.txt."
        )
    return images.with_classes(classes)
