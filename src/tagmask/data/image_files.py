"""What lies in a folder: its images, found by name, and the masks and saliency maps beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from tagmask.data.image_ids import file_suffix, normalize_unicode, strip_image_suffix
from tagmask.data.images import SUFFIXES, is_url
from tagmask.data.samples import PngMask, Problem, Sample
from tagmask.errors import DataError


class ImageFiles:
    """The images under a folder and its subfolders; hidden files and folders are left out.

    Attributes:
        root: the folder.
        names: paths relative to it, with "/" and file_suffix, sorted.
        others: files that are no images by their file_suffix, sorted.
        problems: images that cannot be used because of their file names.

    Raises:
        DataError: the folder does not exist or cannot be listed.
    """

    def __init__(self, root: Path, leave_out: Collection[Path | None] = ()) -> None:
        self.root = existing_folder(root)
        skipped = {os.path.abspath(folder) for folder in leave_out if folder}
        self.names: list[str] = []
        self.others: list[str] = []
        self.problems: list[Problem] = []
        for name in sorted(_walk(self.root, "", skipped, ())):
            if file_suffix(name) not in SUFFIXES:
                self.others.append(name)
            elif not _is_unicode(name):  # no list, page or JSON file could hold it
                problem = Problem(ascii(name), "has a file name that is not valid UTF-8", "rename the file")
                self.problems.append(problem)
            else:
                self.names.append(name)

    def path(self, name: str) -> str:
        """What opens an image that `find` found."""
        return name if is_url(name) else str(self.root / name)

    def find(self, name: str) -> str:
        """The one image that `name` means: with or without file_suffix, in any case, or the bare name of a nested file.

        An absolute path to an image elsewhere, and a URL, are taken as they are.

        Raises DataError where there is none, or more than one.
        """
        if is_url(name):
            return name
        wanted = normalize_unicode(os.path.normpath(name))
        if os.path.isabs(wanted):
            wanted = os.path.relpath(wanted, os.path.abspath(self.root))
            if wanted.startswith("..") and os.path.isfile(name):
                return name
        if wanted not in self._exact:
            wanted = wanted.replace("\\", "/")  # a table from Windows
        if wanted in self._exact:
            return self._exact[wanted]
        for table in (self._by_path, self._by_stem, self._by_bare_name):
            found = table.get(wanted.casefold(), [])
            if len(found) > 1:
                where = f"{found[0]} or {found[1]} in {self.root}"
                raise DataError(f"the image {name!r} may be {where}; write the whole path with its suffix.")
            if found:
                return found[0]
        if any(normalize_unicode(other).casefold() == wanted.casefold() for other in self.others):
            raise DataError(f"{name} in {self.root} is of a kind that is not read; convert it to JPEG or PNG.")
        raise DataError(f"there is no image {name!r} in {self.root}; correct the name or remove the line.")

    @cached_property
    def _exact(self) -> dict[str, str]:
        return {normalize_unicode(name): name for name in self.names}

    @cached_property
    def _by_path(self) -> Mapping[str, list[str]]:
        return self._table(lambda name: [name])

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        return self._table(lambda name: [strip_image_suffix(name)])

    @cached_property
    def _by_bare_name(self) -> Mapping[str, list[str]]:
        return self._table(lambda name: [os.path.basename(name), os.path.basename(strip_image_suffix(name))])

    def _table(self, keys: Callable[[str], list[str]]) -> Mapping[str, list[str]]:
        table: dict[str, list[str]] = {}
        for name in self.names:
            for key in keys(name):
                table.setdefault(normalize_unicode(key).casefold(), []).append(name)
        return table


class RemoteImages:
    """The images under a URL: they are not listed, and names are taken at their word."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.names: list[str] = []
        self.problems: list[Problem] = []

    def path(self, name: str) -> str:
        return name if is_url(name) else f"{self.root}/{name.lstrip('/')}"

    def find(self, name: str) -> str:
        return name


def images_in(folder: str | Path, leave_out: Collection[Path | None] = ()) -> ImageFiles | RemoteImages:
    """The images under a local folder or a URL. Raises DataError as `ImageFiles`."""
    return RemoteImages(str(folder)) if is_url(folder) else ImageFiles(Path(folder), leave_out)


def _walk(folder: Path, prefix: str, skipped: Collection[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above or os.path.abspath(folder) in skipped:  # a link to a folder above would never end
            return
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); make it readable.") from error
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", skipped, (*above, here))
        else:
            yield prefix + entry.name


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def existing_folder(path: Path) -> Path:
    """Raises DataError unless this is a folder."""
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DataError(f"the folder {path} {what}; correct the path.")
    return path


def with_masks(
    samples: Sequence[Sample], masks: Sequence[Path], saliency: Sequence[Path]
) -> tuple[list[Sample], list[Problem]]:
    """Give each sample the PNGs `<folder>/<id>.png` that exist; folders that fit no sample are a doubt.

    Args:
        masks, saliency: folders; of two that have a sample's file, the first counts.

    Raises:
        DataError: a folder does not exist.
    """
    if not masks and not saliency:
        return list(samples), []
    problems = []
    found: list[dict[str, Path]] = []
    for folders in (masks, saliency):
        found.append({id_: path for folder in reversed(folders) for id_, path in _pngs(folder).items()})
        if folders and samples and not any(sample.id in found[-1] for sample in samples):
            where = ", ".join(str(folder) for folder in folders)
            fix = f"name the files after the images, like {samples[0].id}.png"
            problems.append(Problem(where, "holds no PNG that belongs to any of the images", fix, "warning"))
    mask_files, saliency_files = found
    return [
        replace(
            sample,
            mask=PngMask(mask_files[sample.id]) if sample.id in mask_files else sample.mask,
            saliency=saliency_files.get(sample.id, sample.saliency),
        )
        for sample in samples
    ], problems


def _pngs(folder: Path) -> dict[str, Path]:
    names = ImageFiles(folder).names
    return {normalize_unicode(strip_image_suffix(name)): folder / name for name in names if file_suffix(name) == ".png"}


def given(folder: Path | None) -> list[Path]:
    return [folder] if folder else []
