"""Images to segment: files and folders, with or without a table of tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tagmask.data.files import ImageFiles
from tagmask.data.images import is_url
from tagmask.data.names import class_ids, unique_ids
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.table import rows_by_image
from tagmask.data.tag_table import read_tag_table
from tagmask.errors import DataError


def unlabelled_images(paths: Sequence[str], classes: tuple[str, ...], tags: str | None = None) -> TaggedImages:
    """The images among files, folders (nested ones too) and URLs.

    Args:
        classes: of the network that is to see them.
        tags: a table `image,tags`; an image that it does not name has unknown tags.

    Raises:
        DataError: a path does not exist, or there is no image at all. Lines of the table that name no image
            here, or a class that is not the network's, are in `problems`.
    """
    names: list[str] = []  # as ids are made from: relative to the folder that was given
    places: list[str] = []
    for path in paths:
        if is_url(path) or Path(path).is_file():
            names.append(path if is_url(path) else Path(path).name)
            places.append(path)
        else:
            files = ImageFiles(Path(path))
            names += files.names
            places += [files.path(name) for name in files.names]
    if not places:
        raise DataError(f"there is no image in {', '.join(paths)}; give image files or folders of images.")
    samples = tuple(Sample(id_, place, None) for id_, place in zip(unique_ids(names), places, strict=True))
    images = TaggedImages(classes, samples, name="new images")
    return images if tags is None else _tagged(images, Path(tags))


def _tagged(images: TaggedImages, path: Path) -> TaggedImages:
    table = read_tag_table(path)
    by_name = {key: sample.id for sample in images.samples for key in (sample.id, Path(sample.image).name)}
    rows, problems = rows_by_image(table.rows, by_name.get, table)
    known: dict[str, tuple[int, ...]] = {}
    for id_, row in rows.items():
        try:
            known[id_] = class_ids(row.tags, images.classes)
        except DataError as error:
            problems.append(Problem.of(table.where(row), error))
    samples = tuple(replace(sample, tags=known.get(sample.id)) for sample in images.samples)
    return replace(images, samples=samples, problems=tuple(problems))
