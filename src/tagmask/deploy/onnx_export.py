"""Export of a segmentation network to an ONNX file, which is compared with PyTorch before it gets its name."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import tagmask
from tagmask.artifacts import atomic_write
from tagmask.deploy.graph import DeployGraph, same_padding_in_integers
from tagmask.deploy.onnx_file import IMAGE, OUTPUTS, OnnxFile
from tagmask.errors import RunError
from tagmask.label_map import voc_palette
from tagmask.methods.segment import class_probabilities
from tagmask.models.backbone import first_line
from tagmask.models.segmenter import Segmenter
from tagmask.text import shorten

if TYPE_CHECKING:
    from onnx import ModelProto

TOLERANCE = 1e-3  # of probabilities. A pixel can have another label only if the two labels are as near as this
VERIFIED_SHAPES = ((1, 197, 131), (2, 96, 160), (2, 33, 250), (1, 20, 25))
"""Batch size, height and width of the images on which an ONNX file is compared with PyTorch."""

_EXAMPLE_SHAPE = (2, 96, 128)  # the tracer takes a batch size of 1, or equal sides, for constants
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def is_onnx_installed() -> bool:
    """Return whether the packages are installed that `export_onnx` needs."""
    return all(find_spec(package) for package in _PACKAGES)


def export_onnx(network: Segmenter, path: Path) -> None:
    """Write a network as an ONNX file, after it gave the same masks as PyTorch on images of several sizes.

    The input and the outputs of the file are those of `DeployGraph.forward`. Its metadata are `labels` (JSON list of
    names, background first), `colors` (JSON list of [red, green, blue]), `architecture`, `backbone` and
    `tagmask_version`.

    Args:
        network: as `Segmenter.load` returns it.
        path: the file, which appears when it is complete.

    Raises:
        RunError: a package is missing, the network cannot be exported, or the file does not give the same masks.
    """
    if not is_onnx_installed():
        raise RunError('exporting to ONNX needs further packages; install them with pip install "tagmask[onnx]".')
    name = f"architecture {network.architecture!r} with backbone {shorten(network.backbone_name)!r}"
    advice = "train another architecture or backbone to deploy it"
    try:
        with _silent():
            model = _trace(network)
    except Exception as error:  # the type depends on the network
        if "2GB" in str(error) or "2GiB" in str(error):
            raise RunError(f"{name} has more than 2 GB of weights, too many for one ONNX file; {advice}.") from error
        raise RunError(f"{name} cannot be exported to ONNX ({first_line(error)}); {advice}.") from error
    _add_metadata(model, network)
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        if difference := find_difference(network, OnnxFile.load(temporary, "cpu")):
            raise RunError(f"{name} cannot be exported to ONNX, because the file gives {difference}; {advice}.")


def find_difference(network: Segmenter, file: OnnxFile) -> str | None:
    """Compare an ONNX file with its network on images of several sizes, in float32 on the CPU.

    Returns:
        None if the masks are the same, or else a description of the first difference. Rounding is no difference:
        probabilities may differ by 0.001, and labels where their probabilities are as near as this.
    """
    rng = np.random.default_rng(0)
    every_second = np.arange(len(network.classes) + 1) % 2 == 0
    for shape in VERIFIED_SHAPES:
        images = np.stack([_random_image(shape[1:], rng) for _ in range(shape[0])])
        for allowed in (None, every_second):
            expected = _probabilities(network, images, np.ones_like(every_second) if allowed is None else allowed)
            try:
                mask, confidence = file.run(images, allowed)
            except RunError:
                return f"an error for an image of {shape[2]}×{shape[1]} pixels"
            chosen = np.take_along_axis(expected, mask[:, None].astype(np.int64), 1)[:, 0]
            errors = np.maximum(expected.max(1) - chosen, np.abs(confidence - chosen))
            if not errors.max() <= TOLERANCE:  # also if it is NaN
                share = 100 * np.mean(~(errors <= TOLERANCE))
                return f"another result than PyTorch in {share:.1f} % of an image of {shape[2]}×{shape[1]} pixels"
    return None


def _probabilities(network: Segmenter, images: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Return the probabilities [B, K + 1, H, W] that PyTorch computes for images [B, H, W, 3] uint8."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (network.mean, network.std))
    tags = [int(label) for label in np.flatnonzero(allowed) if label]
    results = class_probabilities(network, (pixels - mean) / std, [tags] * len(images), hflip=False)
    probabilities = np.zeros((len(images), len(allowed), *images.shape[1:3]), np.float32)
    for i, (ids, values) in enumerate(results):
        probabilities[i, ids] = values
    return probabilities


def _random_image(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return an image [H, W, 3] uint8 with smooth regions, edges and noise, on which a network gives varied masks."""
    height, width = size
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    edges = np.asarray(coarse.resize((width, height), Image.Resampling.NEAREST))
    smooth[:, width // 2 :] = edges[:, width // 2 :]
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def _trace(network: Segmenter) -> ModelProto:
    """Return the network as an ONNX model that takes any number of images of any size."""
    image = torch.zeros(*_EXAMPLE_SHAPE, 3, dtype=torch.uint8)
    any_size: Any = torch.export.Dim.DYNAMIC
    with torch.no_grad(), same_padding_in_integers():
        program = torch.export.export(
            DeployGraph(network), (image,), strict=False,
            dynamic_shapes=({0: any_size, 1: any_size, 2: any_size},),
        )  # fmt: skip
        exported = torch.onnx.export(
            program, input_names=[IMAGE], output_names=list(OUTPUTS), dynamo=True, verbose=False
        )
    assert exported is not None
    return exported.model_proto


def _add_metadata(model: ModelProto, network: Segmenter) -> None:
    """Add names of the dimensions, and what a program needs to know to use the masks."""
    labels = ["background", *network.classes]
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        sides = (dimensions[0], *dimensions[2:]) if len(dimensions) == 4 and value.name != IMAGE else dimensions[:3]
        for dimension, name in zip(sides, ("batch", "height", "width"), strict=True):
            dimension.dim_param = name
    model.producer_name, model.producer_version = "tagmask", tagmask.__version__
    colors = np.reshape(voc_palette(), (256, 3))[: len(labels)].tolist()
    metadata = {
        "labels": json.dumps(labels, ensure_ascii=False), "colors": json.dumps(colors),
        "architecture": network.architecture, "backbone": network.backbone_name,
        "tagmask_version": tagmask.__version__,
    }  # fmt: skip
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress the warnings of PyTorch's exporter, which are for its developers."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
