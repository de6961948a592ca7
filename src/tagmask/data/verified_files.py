"""The file that remembers which samples `verify_images` has verified, so that they are not decoded again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tagmask.artifacts import read_json, write_text
from tagmask.data.file_stamp import file_stamp
from tagmask.data.samples import Sample
from tagmask.errors import RunError

VerifiedSample = tuple[int, int, str | None, int | None] | tuple[int, int, str | None, int | None, str]
"""What is remembered of a sample: the height, width and digest of its image, the CRC-32 of its saliency file (or None),
and if it has a reviewed mask, the digest of that. JSON stores it as a list."""

_MAX_BYTES = 2**30  # of a million samples and more
_VERSION = 2  # increase it when `verify_images` checks more than before


def verification_key(sample: Sample, num_classes: int) -> str | None:
    """Return a digest of all that the verification of a sample depends on; its files are not opened.

    Returns None if a file does not exist or the image is at a URL: such a sample is always verified again.
    """
    image = file_stamp(sample.image)
    mask = sample.mask.fingerprint() if sample.mask else ""
    saliency = file_stamp(sample.saliency) if sample.saliency else ""
    reviewed = sample.reviewed_mask.fingerprint() if sample.reviewed_mask else ""
    if image is None or mask is None or saliency is None or reviewed is None:
        return None
    content = f"{_VERSION}\n{num_classes}\n{image}\n{mask}\n{saliency}" + f"\n{reviewed}" * bool(reviewed)
    return hashlib.blake2b(content.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def read_verified(path: Path) -> dict[str, VerifiedSample]:
    """Read the results of verified samples by their keys; empty if the file is missing or damaged."""
    try:
        content = read_json(path, _MAX_BYTES)
        samples: dict[str, VerifiedSample] = content["samples"]
        return samples if content["digest"] == _digest(samples) else {}
    except (RunError, KeyError, TypeError):
        return {}


def write_verified(path: Path, samples: Mapping[str, VerifiedSample]) -> None:
    """Write the results of verified samples; without effect if the file cannot be written."""
    with suppress(RunError):  # the only loss is that the samples are verified again
        write_text(path, json.dumps({"digest": _digest(samples), "samples": samples}, separators=(",", ":")))


def _digest(samples: Mapping[str, VerifiedSample]) -> str:
    return hashlib.blake2b(json.dumps(samples).encode(), digest_size=12).hexdigest()
