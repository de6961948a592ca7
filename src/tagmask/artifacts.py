"""The files of a run folder, read and written atomically: a file that exists is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save as save_torch
from torch import Tensor

from tagmask.errors import RunError

IGNORE_INDEX = 255  # the VOC convention: "void", a pixel of no known class
TEMPORARY = ".tmp"  # how the names of files end that are being written


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    Raises:
        RunError: the file cannot be written (disk full, no permission); nothing is left behind.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}{TEMPORARY}")  # no longer than `path`'s own name may be
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix("Error while serializing: ")
        too_long = getattr(error, "errno", None) == errno.ENAMETOOLONG
        remedy = "shorten the image's name" if too_long else "free space or choose another folder"
        raise RunError(f"cannot write {path}: {reason}; {remedy}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a killed process left under a folder."""
    for file in folder.rglob(f".*{TEMPORARY}"):
        file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises RunError if the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: is {path.parent} a tagmask folder?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not JSON ({error}): remove it, then start the command again.") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as one safetensors file."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote. Raises RunError if the file is missing or damaged."""
    return _read_safetensors(load_file, path)


def write_weights(path: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a network: `path` (safetensors) and, beside it, `config.json` that says what the network is."""
    write_json(path.with_name("config.json"), dict(config))
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save_torch(plain))


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_weights` wrote. Raises RunError where either file is missing or damaged."""
    return _read_safetensors(load_torch_file, path), read_json(path.with_name("config.json"))


def _read_safetensors(load: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    try:
        return load(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: the stage that makes it has not finished; run it again.") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it, then start the command again.") from error


def voc_palette() -> list[int]:
    """The VOC colour map, 256 × RGB flattened: bit i of the class id gives bits 7-i of R, G, B in turn."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette.ravel().tolist()


_PALETTE = voc_palette()


def write_label_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map [H, W] uint8 (0 background, 1..K classes, 255 unsure) as a PNG with the VOC palette."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(_PALETTE)
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", optimize=False)


def read_label_map(path: Path) -> np.ndarray:
    """Read an indexed or grey PNG as its ids, [H, W] uint8. Raises RunError for any other picture, or none."""
    try:
        with Image.open(path) as image:
            if image.mode in ("P", "L"):
                return np.array(image)
            raise RunError(f"{path} is a {image.mode} picture, not an indexed or grey label map: save it as ids.")
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: finish the run first (start it again).") from error
    except (OSError, SyntaxError) as error:  # what Pillow raises on a broken PNG
        raise RunError(f"{path} is no picture that can be read ({error}): remove it, then make it again.") from error


def digest(value: Any) -> str:
    """A short stable hash of any JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
