"""The files of a zip archive, of a folder, or a single file; nothing is unpacked to disk."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from tagmask.errors import DataError
from tagmask.text import shorten

MAX_FILES = 1_000_000
MAX_BYTES = 2**30  # of one file
MAX_RATIO = 1000  # of the size of a file to its compressed size; deflate reaches 1032, XML and JSON rarely 100
_MIN_CHECKED_BYTES = 2**22


class Archive:
    """The files that an annotation tool has exported.

    File names serve only to recognize images: they are never opened as paths, so a name such as "../../x" is harmless.

    Args:
        path: a zip archive, a folder, or a single file.

    Attributes:
        path: the archive.
        names: the names of the files in it, with "/", sorted.

    Raises:
        DataError: the path does not exist, or is a damaged or suspicious archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        try:
            if path.is_dir():
                self.names = sorted(_walk(path))
            elif path.suffix.lower() == ".zip":
                self._zip = zipfile.ZipFile(path)
                self.names = sorted({info.filename for info in self._zip.infolist() if not info.filename.endswith("/")})
            else:
                path.stat()
                self.names = [path.name]
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist; correct the path.") from error
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise DataError(f"{path} is not a zip archive that can be read ({error}); export it again.") from error
        if len(self.names) > MAX_FILES:
            raise DataError(f"{path} has {len(self.names):,} files, more than {MAX_FILES:,}; divide it.")

    def location(self, name: str) -> str:
        """Return how an error message calls a file: "a.json in export.zip", or the path of a single file."""
        return f"{shorten(name, 200)} in {self.path}" if self._zip or self.path.is_dir() else str(self.path)

    def named(self, suffix: str) -> list[str]:
        """Return the names of the files that end in a suffix, such as ".json", without hidden ones."""
        visible = (
            name for name in self.names if not name.startswith("__MACOSX") and not Path(name).name.startswith(".")
        )
        return [name for name in visible if name.lower().endswith(suffix)]

    def read(self, name: str) -> bytes:
        """Read one of the files. Errors do not name it: see `location_in_errors`.

        Raises:
            DataError: it is damaged, encrypted, too large, or compressed so much that it must be an attack.
        """
        try:
            if self._zip is None:
                path = self.path / name if self.path.is_dir() else self.path
                size, packed = path.stat().st_size, None
            else:
                info = self._zip.getinfo(name)
                size, packed = info.file_size, info.compress_size
            if size > MAX_BYTES:
                raise DataError(f"it has more than {MAX_BYTES >> 20} MB; divide the export.")
            if packed is not None and size > _MIN_CHECKED_BYTES and size > MAX_RATIO * packed:
                raise DataError(f"it is compressed {size // max(packed, 1)} times; unpack it first.")
            return path.read_bytes() if self._zip is None else self._zip.read(name)  # at most `size` bytes
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise DataError(f"it cannot be read ({shorten(str(error), 200)}); export it again.") from error

    def read_json(self, name: str) -> Any:
        """Read one of the files as JSON. Raises DataError if it is not JSON."""
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            raise DataError(f"it is not JSON ({error}); export it again.") from error


def _walk(folder: Path) -> list[str]:
    return [
        (Path(parent) / name).relative_to(folder).as_posix() for parent, _, names in os.walk(folder) for name in names
    ]
