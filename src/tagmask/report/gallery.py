"""The rows of example images, with what the page needs to enlarge a picture by a click, without a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from tagmask.report.class_sections import NamedColor, named_color
from tagmask.report.content import Example, Report
from tagmask.report.pictures import Thumbnail, thumbnail
from tagmask.report.templates import relative_link


class GalleryPicture(NamedTuple):
    """A picture of the page. A link to the element "picture-<number>" shows it enlarged.

    Attributes:
        number: its place in the sequence of all pictures of the page, from 1.
        column: the title of its column.
        label: the color and name of the class whose response map it is, or None.
        link: the relative link to its file; empty if there is none.
        thumbnail: the encoded picture.
    """

    number: int
    column: str
    label: NamedColor | None
    link: str
    thumbnail: Thumbnail


class GalleryRow(NamedTuple):
    """An image with its pictures.

    Attributes:
        id: the id of the element.
        image: the id of the image.
        note: a text beside it.
        tags: colors and names of its classes; None: not known.
        class_ids: the ids of its classes, for the filter.
        pictures: column → pictures.
    """

    id: str
    image: str
    note: str
    tags: list[NamedColor] | None
    class_ids: Sequence[int]
    pictures: dict[str, list[GalleryPicture]]


def gallery_rows(report: Report) -> tuple[list[GalleryRow], list[GalleryRow]]:
    """Return the rows of the examples and of the worst images; all their pictures form one sequence."""
    numbers = count(1)
    examples = [_row(f"example-{n}", example, report, numbers) for n, example in enumerate(report.examples, 1)]
    return examples, [_row(f"worst-{n}", example, report, numbers) for n, example in enumerate(report.worst, 1)]


def _row(row_id: str, example: Example, report: Report, numbers: Iterator[int]) -> GalleryRow:
    pictures = {
        column: [
            GalleryPicture(
                next(numbers),
                column,
                None if picture.class_id is None else named_color(report.classes, picture.class_id),
                relative_link(picture.file),
                thumbnail(picture.pixels),
            )
            for picture in example.pictures.get(column, ())
        ]
        for column in report.columns
    }
    tags = None if example.tags is None else [named_color(report.classes, tag) for tag in example.tags]
    return GalleryRow(row_id, example.id, example.note, tags, example.tags or (), pictures)
