"""The images of a folder, and the masks and saliency maps that belong to them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from tagmask.data.image_ids import file_suffix, normalize_unicode, strip_image_suffix
from tagmask.data.images import SUFFIXES, is_url
from tagmask.data.regular_files import read_regular_file
from tagmask.data.samples import PngMask, Problem, ReviewedMask, Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.text import shorten


class ImageFiles:
    """The image files in a folder and its subfolders, without hidden files and folders and without results of tagmask.

    Args:
        root: the folder.
        leave_out: folders inside `root` that are skipped.

    Attributes:
        root: the folder.
        names: the paths of the images relative to `root`, with "/" and suffix, sorted.
        others: the files whose suffix is not that of an image, sorted.
        problems: images that cannot be used because of their file names.

    Raises:
        DataError: the folder does not exist or cannot be listed.
    """

    def __init__(self, root: Path, leave_out: Collection[Path | None] = ()) -> None:
        self.root = require_folder(root)
        skipped = {os.path.abspath(folder) for folder in leave_out if folder}
        self.names: list[str] = []
        self.others: list[str] = []
        self.problems: list[Problem] = []
        for name in sorted(_walk(str(root), "", skipped, ())):
            if file_suffix(name) not in SUFFIXES:
                self.others.append(name)
            elif not _is_unicode(name):  # text files such as lists, reports and JSON could not hold the name
                problem = Problem(ascii(name), "has a file name that is not valid UTF-8", "rename the file")
                self.problems.append(problem)
            else:
                self.names.append(name)
        self._prefix = str(self.root / "x").removesuffix("x")

    def path(self, name: str) -> str:
        """Return the path or URL that opens an image that `find` returned."""
        if is_url(name):
            return name
        return str(Path(name)) if os.path.isabs(name) else self._prefix + name

    def find(self, name: str) -> str:
        """Return the image that a name in a table or list means.

        The name may lack its suffix or its first folders, or differ in case. URLs and absolute paths of images outside
        the folder are returned as they are.

        Raises:
            DataError: there is no such image, or the name is ambiguous.
        """
        if name in self._by_name:
            return self._by_name[name]
        if is_url(name):
            return name
        key = normalize_unicode(os.path.normpath(name))
        if os.path.isabs(key):
            key = os.path.relpath(key, os.path.abspath(self.root))
            if key.startswith("..") and os.path.isfile(name):
                return name
        if key not in self._by_name:
            key = key.replace("\\", "/")  # a table written on Windows
        if key in self._by_name:
            return self._by_name[key]
        for index in (self._by_path, self._by_stem, self._by_end):
            matches = index.get(key.casefold(), [])
            if len(matches) > 1:
                raise DataError(
                    f"the image {shorten(name)!r} may be {matches[0]} or {matches[1]} in {self.root}; "
                    "write the whole path with its suffix."
                )
            if matches:
                return matches[0]
        if key.casefold() in self._other_paths:
            raise DataError(
                f"{shorten(name)} in {self.root} has a format that cannot be read; convert it to JPEG or PNG."
            )
        raise DataError(f"there is no image {shorten(name)!r} in {self.root}; correct the name or remove the line.")

    @cached_property
    def _other_paths(self) -> frozenset[str]:
        return frozenset(normalize_unicode(other).casefold() for other in self.others)

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return {normalize_unicode(name): name for name in self.names}

    @cached_property
    def _by_path(self) -> Mapping[str, list[str]]:
        return self._build_index(lambda name: [name])

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        return self._build_index(lambda name: [strip_image_suffix(name)])

    @cached_property
    def _by_end(self) -> Mapping[str, list[str]]:
        return self._build_index(lambda name: [*_path_ends(name), *_path_ends(strip_image_suffix(name))])

    def _build_index(self, keys: Callable[[str], list[str]]) -> Mapping[str, list[str]]:
        """Return the images of each key, in lower case."""
        index: dict[str, list[str]] = {}
        for name in self.names:
            for key in keys(name):
                index.setdefault(normalize_unicode(key).casefold(), []).append(name)
        return index


def _path_ends(path: str) -> list[str]:
    """Return what remains of a path without its first folder, without its first two folders, ...: "a/b/c" → b/c, c."""
    parts = path.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]


class RemoteImages:
    """The images under a URL. They are not listed, so every name is taken to exist.

    Attributes:
        root: the URL, without "/" at the end.
        names, problems: always empty, as the images are not listed.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.names: list[str] = []
        self.problems: list[Problem] = []

    def path(self, name: str) -> str:
        """Return the URL of an image."""
        return name if is_url(name) else f"{self.root}/{name.lstrip('/')}"

    def find(self, name: str) -> str:
        """Return the name unchanged."""
        return name


def find_image_files(folder: str | Path, leave_out: Collection[Path | None] = ()) -> ImageFiles | RemoteImages:
    """Return the images under a local folder or a URL. Raises DataError as `ImageFiles`."""
    return RemoteImages(str(folder)) if is_url(folder) else ImageFiles(Path(folder), leave_out)


def _walk(folder: str, prefix: str, skipped: Collection[str], parents: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the paths of all files under a folder that are not hidden, each with the prefix."""
    try:
        status = os.stat(folder)
        inode = (status.st_dev, status.st_ino)
        if inode in parents or os.path.abspath(folder) in skipped:  # a link to a parent folder would never end
            return
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); make it readable.") from error
    if prefix and holds_results(folder):
        return
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            subfolder = os.path.join(folder, entry.name)
            yield from _walk(subfolder, f"{prefix}{entry.name}/", skipped, (*parents, inode))
        else:
            yield prefix + entry.name


def holds_results(folder: str | Path) -> bool:
    """Return whether `tagmask run`, `predict` or `export` wrote a folder, whose masks must not be read as images."""
    is_run = os.path.isfile(os.path.join(folder, "run.json"))
    if not is_run and not os.path.isdir(os.path.join(folder, "masks")):
        return False
    name, content = ("run.json", b'"tagmask"') if is_run else ("legend.txt", b"0 0 0 0 background")
    try:
        return content in read_regular_file(os.path.join(folder, name), max_bytes=10**8)
    except (OSError, DataError):
        return False


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is skipped."""
    return name.startswith((".", "__MACOSX"))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_folder(path: Path) -> Path:
    """Return the path. Raises DataError if it is not a folder."""
    if not path.is_dir():
        reason = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"the folder {path} {reason}; correct the path.")
    return path


def attach_masks(
    samples: Sequence[Sample], mask_folders: Sequence[Path], saliency_folders: Sequence[Path]
) -> tuple[list[Sample], list[Problem]]:
    """Add the existing mask `<folder>/<id>.png` and saliency map `<folder>/<id>.png` to each sample.

    Args:
        samples: the samples.
        mask_folders: folders of masks. If several have the mask of a sample, the first one counts.
        saliency_folders: folders of saliency maps.

    Returns:
        The samples, and a warning for folders that have no file for any of the samples.

    Raises:
        DataError: a folder does not exist.
    """
    if not mask_folders and not saliency_folders:
        return list(samples), []
    masks, mask_problems = _find_pngs(samples, mask_folders)
    saliency, saliency_problems = _find_pngs(samples, saliency_folders)
    attached = [
        replace(
            sample,
            mask=PngMask(Path(masks[sample.id])) if sample.id in masks else sample.mask,
            saliency=Path(saliency[sample.id]) if sample.id in saliency else sample.saliency,
        )
        for sample in samples
    ]
    return attached, mask_problems + saliency_problems


def attach_reviewed_masks(images: TaggedImages, folder: Path | None) -> TaggedImages:
    """Return the images with the existing reviewed mask `<folder>/<id>.png` of each; unchanged without a folder.

    Raises:
        DataError: the folder does not exist.
    """
    if folder is None:
        return images
    paths, problems = _find_pngs(images.samples, [folder])
    samples = tuple(
        replace(sample, reviewed=ReviewedMask(PngMask(Path(paths[sample.id])))) if sample.id in paths else sample
        for sample in images.samples
    )
    return replace(images, samples=samples, problems=(*images.problems, *problems))


def _find_pngs(samples: Sequence[Sample], folders: Sequence[Path]) -> tuple[dict[str, str], list[Problem]]:
    """Return the PNG of each id in the first folder that has it, and a warning if no sample has one.

    If no path fits, files are found by their bare names, where these are unique: the subfolders may differ.
    """
    paths = {image_id: path for folder in reversed(folders) for image_id, path in _pngs_by_id(folder).items()}
    if not folders or not samples or any(sample.id in paths for sample in samples):
        return paths, []
    by_name, ids_by_name = _by_unique_name(paths), _by_unique_name({sample.id: sample.id for sample in samples})
    if by_name.keys() & ids_by_name.keys():
        return {image_id: by_name[name] for name, image_id in ids_by_name.items() if name in by_name}, []
    names = ", ".join(str(folder) for folder in folders)
    fix = f"name the files after the images, for example {samples[0].id}.png"
    return paths, [Problem(names, "has no PNG that belongs to any of the images", fix, "warning")]


def _by_unique_name(values: Mapping[str, str]) -> dict[str, str]:
    """Return the value of each last part of a key ("a/b" → "b") that only one key has."""
    count = Counter(key.rpartition("/")[2] for key in values)
    names = {key: key.rpartition("/")[2] for key in values}
    return {names[key]: value for key, value in values.items() if count[names[key]] == 1}


def _pngs_by_id(folder: Path) -> dict[str, str]:
    files, suffix = ImageFiles(folder), ".png"
    pngs = [name for name in files.names if name.lower().endswith(suffix)]
    return {normalize_unicode(name[: -len(suffix)]): files.path(name) for name in pngs}
