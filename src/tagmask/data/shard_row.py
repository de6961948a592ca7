"""`ShardRow`: the address of one file in a parquet shard, as text. Imports no pyarrow."""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple, cast

Column = Literal["image", "mask", "file"]

_ADDRESS = re.compile(r"(.+\.parquet)#(\d{1,9})(?:(\.\w{1,9})|:(mask|file))?", re.DOTALL)


class ShardRow(NamedTuple):
    """One image, mask or other file in a parquet shard.

    As text it is "s3://bucket/data/train-00003-of-00012.parquet#17.jpg", or with ":mask" or ":file" instead of the
    suffix.

    Attributes:
        shard: the path or URL of the shard.
        row: the row in the shard, beginning with 0.
        column: which of the row's files.
        suffix: that of the image file, such as ".jpg"; empty if there is none.
    """

    shard: str
    row: int
    column: Column = "image"
    suffix: str = ""

    def __str__(self) -> str:
        """Return the address as text."""
        return f"{self.shard}#{self.row}" + (self.suffix if self.column == "image" else f":{self.column}")

    @classmethod
    def parse(cls, address: str | os.PathLike[str]) -> ShardRow | None:
        """Return the row that an address names; None if it is the path or URL of a file.

        Example:
            >>> ShardRow.parse("data/train-00003-of-00012.parquet#17.jpg")
            ShardRow(shard='data/train-00003-of-00012.parquet', row=17, column='image', suffix='.jpg')
        """
        match = _ADDRESS.fullmatch(os.fspath(address))
        if match is None:
            return None
        column = cast(Column, match[4] or "image")
        return cls(match[1], int(match[2]), column, match[3] or "")
