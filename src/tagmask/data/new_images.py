"""Images to segment: files and folders, with or without a table of tags."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tagmask.data.class_names import class_ids
from tagmask.data.image_files import ImageFiles
from tagmask.data.image_ids import normalize_unicode, strip_image_suffix, unique_ids
from tagmask.data.images import is_url
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.source import DataSource
from tagmask.data.table_reader import rows_by_image
from tagmask.data.tag_table import read_tag_table
from tagmask.errors import DataError


def find_new_images(
    paths: Sequence[str], classes: tuple[str, ...], tags: str | None = None, leave_out: Sequence[Path] = ()
) -> TaggedImages:
    """The images among files, folders (nested ones too) and URLs.

    Args:
        classes: of the network that is to see them.
        tags: a table `image,tags`; an image that it does not name has unknown tags.
        leave_out: folders within the folders, whose images are not meant.

    Raises:
        DataError: a path does not exist, or there is no image at all. Lines of the table that name no image
            here, or a class that is not the network's, are in `problems`.
    """
    found: dict[str, str] = {}  # place → name that the id is made from: relative to the folder that was given
    problems: list[Problem] = []
    others: list[str] = []
    for path in paths:
        if is_url(path):
            found.setdefault(path, path)
        elif Path(path).is_file():
            found.setdefault(os.path.abspath(path), Path(path).name)
        elif Path(path).is_dir():
            files = ImageFiles(Path(path), leave_out)
            others += files.others
            found = {os.path.abspath(files.path(name)): name for name in files.names} | found
            problems += files.problems
        else:
            raise DataError(f"{path} does not exist; correct the path.")
    if not found:
        near = f" (but {others[0]}, which is not read: convert it to JPEG or PNG)" if others else ""
        raise DataError(f"there is no image in {', '.join(paths)}{near}; give image files or folders of images.")
    samples = tuple(Sample(id_, place, None) for id_, place in zip(unique_ids(_names(found)), found, strict=True))
    images = TaggedImages(classes, samples, tuple(problems), name="new images")
    return images if tags is None else _tagged(images, Path(tags))


def _names(found: Mapping[str, str]) -> list[str]:
    """For each place its name or, where others have that, too, the path from the folder that these are all in."""
    count = Counter(found.values())
    shared = [place for place, name in found.items() if count[name] > 1 and not is_url(place)]
    above = os.path.commonpath(shared) if shared else ""
    return [
        name if count[name] == 1 else place if is_url(place) else os.path.relpath(place, above)
        for place, name in found.items()
    ]


def list_images(source: DataSource) -> TaggedImages:
    """The images of a source; without tags where they lie in one folder, with neither table nor folders.

    Raises DataError as `DataSource.read`.
    """
    if source.split is None and source.layout() == "folders":
        files = ImageFiles(Path(source.root), [source.path_of(source.masks), source.path_of(source.saliency)])
        if files.names and not any("/" in name for name in files.names):
            ids = unique_ids(files.names)
            samples = tuple(Sample(id_, files.path(name), None) for id_, name in zip(ids, files.names, strict=True))
            return TaggedImages((), samples, tuple(files.problems), name=source.root)
    return source.read()


def _tagged(images: TaggedImages, path: Path) -> TaggedImages:
    table = read_tag_table(path)
    by_name: dict[str, set[str]] = {}
    for sample in images.samples:
        for name in (sample.id, sample.image, os.path.basename(sample.image)):
            for key in (normalize_unicode(name), strip_image_suffix(normalize_unicode(name))):
                by_name.setdefault(key, set()).add(sample.id)

    def find(name: str) -> str | None:
        ids = sorted(by_name.get(normalize_unicode(name), ()))
        if len(ids) > 1:
            raise DataError(f"the image {name!r} may be {ids[0]} or {ids[1]}; write more of its path.")
        return ids[0] if ids else None

    rows, problems = rows_by_image(table.rows, find, table)
    if not rows:
        raise DataError(f"{path} names none of the {len(images)} images; write their names as they are.")
    known: dict[str, tuple[int, ...]] = {}
    for id_, row in rows.items():
        try:
            known[id_] = class_ids(row.tags, images.classes)
        except DataError as error:
            problems.append(Problem.of(table.where(row), error))
    samples = tuple(replace(sample, tags=known.get(sample.id)) for sample in images.samples)
    return replace(images, samples=samples, problems=(*images.problems, *problems))
