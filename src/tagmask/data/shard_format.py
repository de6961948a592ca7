"""The format of parquet shards: names, columns, and the index in the footer.

A shard holds about 1,000 images, or the masks of so many, and is also a valid Hugging Face data set. Its footer has an
index of all rows, so that one small read shows what a shard holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tagmask.data.images import SUFFIXES
from tagmask.errors import DataError
from tagmask.text import shorten

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_SUFFIX = ".parquet"
IMAGES_PER_SHARD = 1000
INDEX_ENTRY = b"tagmask"  # of the metadata in the footer
MAKE_AGAIN = "remove it, then run the command again that made it"

_NAME = re.compile(r"(.+)-(\d{5,9})-of-(\d{5,9})\.parquet", re.DOTALL)
_MAX_ID_LENGTH = 1000  # characters

Kind = Literal["images", "masks", "files"]


class ShardName(NamedTuple):
    """The name of a shard, such as train-00003-of-00012.parquet.

    Attributes:
        split: what the name begins with: a split, or "data".
        number: of the shard, beginning with 0.
        total: the number of shards of the split.
    """

    split: str
    number: int
    total: int

    def __str__(self) -> str:
        """Return the name of the file."""
        return f"{self.split}-{self.number:05d}-of-{self.total:05d}{SHARD_SUFFIX}"

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        """Return the parts of a file name; None if it is not that of a shard."""
        match = _NAME.fullmatch(name)
        return None if match is None else cls(match[1], int(match[2]), int(match[3]))


class ShardIndex(BaseModel):
    """What a shard holds, without the images and masks.

    Attributes:
        version: of the format.
        kind: "images": images with their tags and ground-truth masks; "masks": label maps of images; "files": other
            files of a run, one for each image.
        key: a digest of all inputs and settings of the shard.
        classes: the class names; class id k is `classes[k - 1]`.
        split: what was given as the split; None: nothing.
        ids: the id of each row's image.
        suffixes: the suffix of each image file; empty for masks.
        tags: the class ids of each row, ascending; None: not known. In a shard of masks, the classes with pixels.
        has_mask: for each row, "1" if there is a mask, else "0".
        left_out: what was wrong with images that were left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = 1
    kind: Kind
    key: str
    classes: tuple[str, ...]
    split: str | None = None
    ids: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    tags: tuple[tuple[int, ...] | None, ...] = ()
    has_mask: str = ""
    left_out: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if not len(self.ids) == len(self.suffixes) == len(self.tags) == len(self.has_mask):
            raise ValueError("lists of different lengths")
        if len(set(self.classes)) != len(self.classes) or not all(name.strip() for name in self.classes):
            raise ValueError("class names that are empty or not unique")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("ids that are not unique")
        for image_id in self.ids:
            if not is_safe_id(image_id):
                raise ValueError(f"the id {shorten(ascii(image_id))}, which is not a safe relative path")
        for tags in self.tags:
            if tags and not (tags[0] >= 1 and tags[-1] <= len(self.classes) and list(tags) == sorted(set(tags))):
                raise ValueError("tags that are not ids of the classes")
        if not set(self.suffixes) <= {"", *SUFFIXES} or not set(self.has_mask) <= {"0", "1"}:
            raise ValueError("suffixes or masks of an unknown kind")
        return self

    def encode(self) -> bytes:
        """Return the content of the entry in the footer: a digest and JSON."""
        content = self.model_dump_json().encode()
        return _digest(content) + b" " + content

    @classmethod
    def decode(cls, url: str, metadata: Mapping[bytes, bytes] | None) -> ShardIndex:
        """Read the index in the metadata of a footer.

        Raises:
            DataError: there is none, or it is damaged.
        """
        entry = (metadata or {}).get(INDEX_ENTRY)
        if entry is None:
            raise DataError(
                f"{url} is not a shard of tagmask (it has no index); make shards of your images with `tagmask shard`."
            )
        digest, _, content = entry.partition(b" ")
        if digest != _digest(content):
            raise DataError(f"{url} is damaged (the index has another digest); {MAKE_AGAIN}.")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            reason = shorten(first["msg"].removeprefix("Value error, "))
            raise DataError(f"{url} has an index that cannot be used ({reason}); {MAKE_AGAIN}.") from error


def is_safe_id(image_id: str) -> bool:
    """Return whether an image id is a relative path that stays inside of a folder."""
    parts = image_id.replace("\\", "/").split("/")
    return (
        0 < len(image_id) <= _MAX_ID_LENGTH
        and image_id.isprintable()
        and not any(part in ("", ".", "..") for part in parts)
        and not any("\ud800" <= character <= "\udfff" for character in image_id)
    )


def shard_schema(kind: Kind, classes: Sequence[str] = ()) -> pa.Schema:
    """Return the columns of a shard; its metadata has the class names, and the features for Hugging Face `datasets`."""
    import pyarrow as pa

    file = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {"id": pa.string()}
    if kind == "images":
        columns |= {"image": file, "tags": pa.list_(pa.string()), "split": pa.string(), "mask": file}
    elif kind == "masks":
        columns |= {"mask": file, "classes": pa.list_(pa.string())}
    else:
        columns |= {"file": file}
    text = {"dtype": "string", "_type": "Value"}
    of_file = {"_type": "Image"} if kind != "files" else {"bytes": {"dtype": "binary", "_type": "Value"}, "path": text}
    features = {
        name: of_file if type == file else [text] if pa.types.is_list(type) else text for name, type in columns.items()
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}}), "classes": json.dumps(list(classes))}
    return pa.schema(list(columns.items()), metadata=metadata)


def require_pyarrow() -> None:
    """Raise DataError if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError('shards need pyarrow; install it with pip install "tagmask[shards]".') from error


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=12).hexdigest().encode()
