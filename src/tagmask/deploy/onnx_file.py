"""`OnnxFile`: an ONNX file that tagmask exported, computed by onnxruntime. Imports no PyTorch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from tagmask.compute import default_workers
from tagmask.errors import RecipeError, RunError
from tagmask.label_map import MAX_CLASSES
from tagmask.text import shorten

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

IMAGE = "image"
"""The name of the input."""

OUTPUTS = {"mask": ("tensor(uint8)", 3), "confidence": ("tensor(float)", 3), "logits": ("tensor(float)", 4)}
"""The names of the outputs, with their types and their numbers of dimensions."""

_Labels = Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES + 1)]


@dataclass(frozen=True)
class OnnxFile:
    """An open ONNX file.

    Attributes:
        path: the file.
        session: onnxruntime's session.
        labels: the names of the labels, background first.
    """

    path: Path
    session: InferenceSession
    labels: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> Self:
        """Open an ONNX file.

        Args:
            path: the file.
            device: "auto" (the GPU if onnxruntime finds one), "cpu", "cuda" or "cuda:N".

        Raises:
            RecipeError: onnxruntime does not have the device.
            RunError: onnxruntime is not installed, or the file is missing, damaged or not of tagmask.
        """
        if find_spec("onnxruntime") is None:
            raise RunError(f'{path} is computed by onnxruntime; install it with pip install "tagmask[onnx]".')
        import onnxruntime

        if not path.is_file():
            raise RunError(f"there is no ONNX file {path}; correct the path.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or default_workers())
        try:
            session = onnxruntime.InferenceSession(path, options, providers=_providers(device))
        except (RecipeError, RunError):
            raise
        except Exception as error:  # onnxruntime's own types, which it does not export
            raise RunError(
                f"{path} is not an ONNX file that can be used ({_reason(error)}); export it again."
            ) from error
        return cls(path, session, _read_labels(path, session))

    def run(self, images: np.ndarray, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Segment images.

        Args:
            images: [B, H, W, 3] uint8 RGB.
            allowed: [K + 1] bool, the labels that can appear, background first. None: all.

        Returns:
            mask: [B, H, W] uint8, the most probable label: 0 background, 1..K classes.
            confidence: [B, H, W] float32, the probability of this label.

        Raises:
            RunError: the computation failed, for example because there is not enough memory.
        """
        if allowed is None:
            mask, confidence = self._compute(["mask", "confidence"], images)
            return mask, confidence
        [logits] = self._compute(["logits"], images)
        ids = np.flatnonzero(allowed)
        logits = logits[:, ids]
        highest = logits.max(1)
        mask = ids.astype(np.uint8)[logits.argmax(1)]
        return mask, 1 / np.exp(logits - highest[:, None]).sum(1)

    def _compute(self, outputs: list[str], images: np.ndarray) -> list[np.ndarray]:
        try:
            return list(self.session.run(outputs, {IMAGE: images}))
        except Exception as error:  # onnxruntime's own types, which it does not export
            size = f"{images.shape[2]}×{images.shape[1]}"
            raise RunError(f"{self.path} fails on an image of {size} pixels ({_reason(error)}).") from error


def _read_labels(path: Path, session: InferenceSession) -> tuple[str, ...]:
    """Return the names of the labels from the metadata. Raises RunError if the file is not of tagmask."""
    inputs = {value.name: (value.type, len(value.shape)) for value in session.get_inputs()}
    outputs = {value.name: (value.type, len(value.shape)) for value in session.get_outputs()}
    try:
        if inputs != {IMAGE: ("tensor(uint8)", 4)} or outputs != OUTPUTS:
            raise ValueError("it has other inputs or outputs")
        text = session.get_modelmeta().custom_metadata_map.get("labels", "")
        labels = tuple(TypeAdapter(_Labels).validate_python(json.loads(text)))
        if session.get_outputs()[list(outputs).index("logits")].shape[1] != len(labels):
            raise ValueError("it has another number of labels than names")
        return labels
    except (ValueError, ValidationError, RecursionError) as error:
        raise RunError(
            f"{path} is not an ONNX file that `tagmask export --format onnx` wrote ({_reason(error)}); export it again."
        ) from error


def _providers(device: str) -> list[Any]:
    """Return onnxruntime's providers for a device. Raises RecipeError if it does not have the device."""
    import onnxruntime

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    match = re.fullmatch(r"(auto|cpu|cuda)(?::(\d{1,3}))?", device)
    if match is None or (match[2] and match[1] != "cuda"):
        raise RecipeError(f"{device!r} is not a device of onnxruntime: give cpu, cuda, cuda:N or auto.")
    if match[1] == "cpu" or (match[1] == "auto" and not has_cuda):
        return ["CPUExecutionProvider"]
    if not has_cuda:
        raise RecipeError(f"onnxruntime has no device {device!r}: install onnxruntime-gpu, or give --device cpu.")
    return [("CUDAExecutionProvider", {"device_id": int(match[2] or 0)}), "CPUExecutionProvider"]


def _reason(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 200)
