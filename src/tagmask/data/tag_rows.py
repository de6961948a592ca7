"""What every tag table becomes when it is read: rows with an image and its tags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tagmask.data.samples import Problem
from tagmask.errors import DataError
from tagmask.text import did_you_mean, shorten


@dataclass(frozen=True)
class Row:
    """The tags of one image.

    Attributes:
        line: the line number, from 1; in files without lines, the number that `TagTable.unit` counts.
        image: the name of the image, as written.
        tags: the tag names.
        split: the split, if the line names one.
        problem: why the row cannot be used. The image may then be empty.
        other_name: another name that the image may have on disk.
    """

    line: int
    image: str
    tags: tuple[str, ...]
    split: str | None = None
    problem: Problem | None = None
    other_name: str | None = None


@dataclass(frozen=True)
class TagTable:
    """A file of tags.

    Attributes:
        path: the file.
        rows: one row for each image that is listed.
        names: every tag that occurs, has a column, or is in the file's list of labels, sorted.
        one_hot: whether the table has one column per class.
        has_split: whether the file names splits.
        unit: what the numbers of the rows count: lines, or the images or tasks of an annotation tool.
        problems: warnings about the whole file.
    """

    path: Path
    rows: tuple[Row, ...]
    names: tuple[str, ...]
    one_hot: bool = False
    has_split: bool = False
    unit: str = "line"
    problems: tuple[Problem, ...] = ()

    def location(self, row: Row) -> str:
        """Return the file and line of a row, for messages."""
        return f"{self.path}, {self.unit} {row.line}"

    def rows_of_split(self, split: str | None) -> tuple[Row, ...]:
        """Return the rows of a split, and the bad rows whose split is not known; all rows for None.

        Raises:
            DataError: the table has no such split.
        """
        if split is None:
            return self.rows
        if not self.has_split:
            raise DataError(f"{self.path} has no column 'split'; add one, or do not name a split to read all lines.")
        splits = sorted({row.split for row in self.rows if row.split})
        if split not in splits:
            raise DataError(f"{self.path} has no line of split {shorten(split)!r}{did_you_mean(split, splits)}")
        return tuple(row for row in self.rows if row.split == split or (row.problem and not row.split))
