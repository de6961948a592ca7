"""Split lists: text files that name images, one per line, such as ImageSets/Segmentation/test.txt of PASCAL VOC."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tagmask.data.image_files import ImageFiles
from tagmask.data.samples import Problem
from tagmask.data.text_files import read_text
from tagmask.errors import DataError
from tagmask.text import did_you_mean, shorten


@dataclass(frozen=True)
class SplitItem:
    """A line of a split list: its location, the name of the image in its folder, and its mask if the line names one."""

    where: str
    image: str
    mask: str | None = None


def read_split(root: Path, split: str | None, files: ImageFiles) -> tuple[list[SplitItem], list[Problem]]:
    """Read the images of a split.

    Args:
        root: the folder of the data set.
        split: the name of a list in `ImageSets/Segmentation` or `ImageSets/Main`, or the path of a list file. Its
            lines have the form `2007_000032` or `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.
            None: all images.
        files: the images, in `root` or in its folder JPEGImages.

    Returns:
        The images in the order of the list, and an error for each line that names no image.

    Raises:
        DataError: there is no such list, or it is empty.
    """
    if split is None:
        return [SplitItem(files.path(name), name) for name in files.names], []
    path = _find_split_file(root, split)
    items: dict[str, SplitItem] = {}
    problems = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            image, mask = _parse_split_line(line.strip(), where, files)
        except DataError as error:
            problems.append(Problem.from_error(where, error))
            continue
        if image in items:
            problems.append(Problem(where, f"lists {image} again", "remove the line", "warning"))
        items.setdefault(image, SplitItem(where, image, mask))
    if not items and not problems:
        raise DataError(f"{path} lists no image; write one image per line.")
    return list(items.values()), problems


def _find_split_file(root: Path, split: str) -> Path:
    folders = (root / "ImageSets" / "Segmentation", root / "ImageSets" / "Main")
    candidates = [Path(split), root / split, *(folder / name for folder in folders for name in (f"{split}.txt", split))]
    for path in candidates:
        if path.is_file():
            return path
    if not (root / "ImageSets").is_dir():
        raise DataError(f"there is no list {shorten(split)!r}, neither in the current folder nor in {root}.")
    splits = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.txt")})
    raise DataError(
        f"there is no split list {shorten(split)!r} under {root / 'ImageSets'}{did_you_mean(split, splits)}"
    )


def _parse_split_line(line: str, where: str, files: ImageFiles) -> tuple[str, str | None]:
    """Return the image and the mask of a line. The whole line may be one file name with spaces."""

    def find(text: str) -> str:
        return files.find(text.lstrip("/").removeprefix("JPEGImages/"))

    columns = line.split()
    if len(columns) != 2:
        return find(line), None
    if columns[1] in ("-1", "0", "1"):
        raise DataError(
            f"{where} is from a list for one class, like {shorten(line)!r}; use a list that names only images."
        )
    try:
        return find(line), None
    except DataError:
        return find(columns[0]), columns[1].lstrip("/")
