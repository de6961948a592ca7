"""Class-conditional inference: better maps from a trained classifier, without training (methods, section 3).

Sun, Zhang and Barnes, "Inferring the Class Conditional Response Map for Weakly Supervised Semantic Segmentation",
WACV 2022: look at parts of the image, and look again with what was found painted over.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Annotated, ClassVar, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from tagmask.errors import RecipeError
from tagmask.maps import STRIDE, ResponseMaps, grid_size
from tagmask.methods._settings import Scales, Stride
from tagmask.methods.cam import EPSILON, SCALES, Activations, make_maps
from tagmask.models.classifier import Classifier
from tagmask.models.inference import with_hflip
from tagmask.stage import ArtifactKind, Method, StageContext

BUFFERS = (10, 20)  # pixels by which the quadrants reach over the centres, of images with one tag, two, ...
PROBE = 128  # pixels; the side of the empty image that tells the network's stride

Box = tuple[int, int, int, int]
"""Rows top to bottom, columns left to right, ends exclusive: (top, bottom, left, right)."""

J = TypeVar("J")
R = TypeVar("R")


def activations_of(name: str) -> Callable[[Classifier], Activations]:
    """The function `activations` of a method: of `tagmask.methods.<name>`, or of a module of your own.

    Raises RecipeError if there is no such module, or no such function in it.
    """
    shipped = resources.files(__package__) / f"{name}.py"
    try:
        module = importlib.import_module(f"{__package__}.{name}" if shipped.is_file() else name)
    except Exception as error:  # whatever a module of the user's own may raise
        raise RecipeError(
            f"of: {name!r} cannot be imported ({type(error).__name__}: {error}); name a method, such as layercam, "
            "or a module on PYTHONPATH."
        ) from error
    if not hasattr(module, "activations"):
        raise RecipeError(f"of: {name!r} defines no activations(classifier); leave `of` out for the classifier's own.")
    return module.activations


def _check_of(name: str | None) -> str | None:
    if name is not None:
        activations_of(name)
    return name


class InferCam(Method):
    """Make response maps of a classifier's image by quadrants, again and again without what was found."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("classifier",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)

    of: Annotated[str | None, AfterValidator(_check_of)] = Field(
        None, description="a method that defines activations(classifier), such as layercam; null: the classifier's own"
    )
    scales: Scales = Field(SCALES, description="of each piece; each with its mirror image")
    split: bool = Field(True, description="cut images of few tags into quadrants")
    buffers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        BUFFERS,
        description="pixels by which the quadrants reach over the centres of mass, in images with one tag, with two, "
        "...; images with more tags are not cut",
    )
    iterations: int = Field(5, ge=1, description="looks at a piece, at most")
    found: float = Field(0.7, gt=0, le=1, description="activation from which an area is found, and painted over")
    growth: float = Field(0.02, ge=0, le=1, description="share of a piece: when less is newly found, it is done")
    enlarge: float = Field(1.0, gt=0, description="working size of a piece, as a factor of its own")
    inference_stride: Stride | None = Field(
        None, description="output_stride when mapping, which may be finer than in training; null: the same"
    )
    inference_batch_size: int = Field(16, ge=1, description="images, and pieces of one size, that are mapped together")

    def run(self, context: StageContext) -> None:
        settings = self.model_dump(include={"split", "buffers", "iterations", "found", "growth", "enlarge"})
        classifier = Classifier.load(context.inputs["classifier"], output_stride=self.inference_stride)
        look = activations_of(self.of)(classifier) if self.of else classifier.activations
        make_maps(
            classifier,
            context,
            scales=self.scales,
            batch_size=self.inference_batch_size,
            maps_of=lambda _, *batch: infercam_maps(look, *batch, **settings, together=self.inference_batch_size),
        )


@torch.inference_mode()
def infercam_maps(
    activations: Activations,
    images: Tensor,
    tags: Sequence[Sequence[int]],
    scales: Sequence[float] = SCALES,
    *,
    split: bool = True,
    buffers: Sequence[int] = BUFFERS,
    iterations: int = 5,
    found: float = 0.7,
    growth: float = 0.02,
    enlarge: float = 1.0,
    together: int = 16,
) -> list[ResponseMaps]:
    """Class-conditional response maps of the tagged classes, at stride 4.

    Pieces of one size go through the network together, each with its mirror image, and a piece that is done leaves
    the batch. On a CPU, one thread takes one such batch: the result is that of one piece at a time, much sooner.

    Args:
        activations: the network, e.g. `Classifier.activations`; on a CPU it is called from several threads.
        images: [B, 3, H, W] normalised, of one size.
        tags: for each image its class ids (1-based).
        scales: of each piece; each with its mirror image.
        split: cut images of few tags into four quadrants around the centres of mass of their plain CAMs.
        buffers: pixels by which these reach over the centres, for one tag, for two, ...; with more there is no cut.
        iterations: at most so many looks at a piece.
        found: where the strongest activation so far reaches this, the next look sees the image's mean colour.
        growth: a piece is done when less than this share of its pixels was newly found.
        enlarge: the pieces' working size, as a factor of their own.
        together: pieces of one size in a batch, at most.

    Returns:
        One `ResponseMaps` an image. An image without tags has none: maps [0, h, w].
    """
    size = (images.shape[2], images.shape[3])
    stride = round(PROBE / activations(images.new_zeros(1, 3, PROBE, PROBE)).shape[3])
    look = partial(class_maps, activations, scales=scales, stride=stride, together=together)

    channels = [sorted(id_ - 1 for id_ in ids) for ids in tags]
    whole: list[Box] = [(0, size[0], 0, size[1])]
    boxes = [whole if ids else [] for ids in channels]
    to_split = [i for i, ids in enumerate(channels) if split and 0 < len(ids) <= len(buffers)]
    baseline = look([images[i] for i in to_split], [channels[i] for i in to_split])
    for i, maps in zip(to_split, baseline, strict=True):
        boxes[i] = quadrants(maps, buffers[len(maps) - 1])

    pieces = [Piece.cut(images[i], i, channels[i], box) for i in range(len(images)) for box in boxes[i]]
    active = pieces
    for _ in range(iterations):
        seen = look([piece.view() for piece in active], [piece.channels for piece in active], enlarge=enlarge)
        grown = [piece.add(maps, found) for piece, maps in zip(active, seen, strict=True)]
        active = [piece for piece, share in zip(active, grown, strict=True) if share >= growth]

    merged = [images.new_zeros(len(ids), *size, dtype=torch.float32) for ids in channels]
    for piece in pieces:
        top, bottom, left, right = piece.box
        part = merged[piece.index][:, top:bottom, left:right]
        torch.maximum(part, piece.maps, out=part)
    return [
        ResponseMaps(np.array(ids, np.int64) + 1, _on_grid(maps).cpu().numpy(), size)
        for ids, maps in zip(channels, merged, strict=True)
    ]


def quadrants(maps: Tensor, buffer: int) -> list[Box]:
    """Cut an image into four overlapping pieces around the centres of mass of its maps [K, H, W].

    The rows are [0, lowest centre + b) and [highest centre − b, H), the columns likewise, with a buffer of b pixels,
    all clamped to the image. Where two are the same, it is given once.
    """
    height, width = maps.shape[1:]
    rows, columns = zip(*(_centre_of_mass(m) for m in maps.double()), strict=True)
    # a negative start would count from the far edge (the public code's wrong crop)
    upper = (0, min(height, max(rows) + buffer)), (max(0, min(rows) - buffer), height)
    sides = (0, min(width, max(columns) + buffer)), (max(0, min(columns) - buffer), width)
    return list(dict.fromkeys((*row, *column) for row in upper for column in sides))


def _centre_of_mass(weights: Tensor) -> tuple[int, int]:
    """The pixel (row, column) of the centre; the middle, where all weights are 0."""
    if not (total := float(weights.sum())):
        return weights.shape[0] // 2, weights.shape[1] // 2
    indices = [torch.arange(n, device=weights.device, dtype=weights.dtype) for n in weights.shape]
    return int(weights.sum(1) @ indices[0] / total), int(weights.sum(0) @ indices[1] / total)


@dataclass
class Piece:
    """A part of an image, and what was seen in it so far.

    Attributes:
        pixels: [3, h, w] normalised.
        colour: [3, 1, 1] the whole image's mean colour.
        index: of the image.
        channels: of the network, those of the tagged classes.
        box: where in the image the piece is.
        maps: [K, h, w] the maximum of the maps over the looks.
        found: [h, w] bool, where they were high enough.
    """

    pixels: Tensor
    color: Tensor
    index: int
    channels: list[int]
    box: Box
    maps: Tensor
    found: Tensor

    @classmethod
    def cut(cls, image: Tensor, index: int, channels: list[int], box: Box) -> Piece:
        top, bottom, left, right = box
        pixels = image[:, top:bottom, left:right]
        maps = pixels.new_zeros(len(channels), *pixels.shape[1:], dtype=torch.float32)
        color = image.mean((1, 2), keepdim=True)
        return cls(pixels, color, index, channels, box, maps, maps.new_zeros(maps.shape[1:], dtype=torch.bool))

    def view(self) -> Tensor:
        """What the next look sees; its scaled and mirrored views are made of it, so they lack the same things."""
        return torch.where(self.found, self.color, self.pixels)

    def add(self, maps: Tensor, found: float) -> float:
        """Take in the maps of a look; returns the share of the piece that was newly found."""
        self.maps = torch.maximum(self.maps, maps)
        before, self.found = self.found, self.maps.amax(0) >= found
        return float((self.found & ~before).sum()) / self.found.numel()


def class_maps(
    activations: Activations,
    views: Sequence[Tensor],
    channels: Sequence[Sequence[int]],
    *,
    scales: Sequence[float],
    stride: int,
    enlarge: float = 1.0,
    together: int = 16,
) -> list[Tensor]:
    """Multi-scale, mirrored CAMs at full size, each divided by (its maximum + 1e-5).

    Args:
        views: normalised images [3, h, w] of any sizes.
        channels: of the network, those wanted of each view.
        stride: of the activations, which are brought bilinearly to whole cells (stride · ceil(h / stride)) and cropped.

    Returns:
        For each view [K, h, w] float32.
    """
    of_size: dict[torch.Size, list[int]] = {}
    for i, view in enumerate(views):
        of_size.setdefault(view.shape, []).append(i)
    threads = torch.get_num_threads() if views and views[0].device.type == "cpu" else 1
    n = max(1, together // threads)  # so that memory does not grow with the threads
    groups = [ids[k : k + n] for ids in of_size.values() for k in range(0, len(ids), n)]
    jobs = [(group, scale * enlarge) for group in groups for scale in scales]
    # the largest first, so that the threads end together
    jobs.sort(key=lambda job: len(job[0]) * views[job[0][0]].numel() * job[1] ** 2, reverse=True)

    def look(job: tuple[list[int], float]) -> list[Tensor]:
        group, scale = job
        batch = torch.stack([views[i] for i in group])
        return _at_one_scale(activations, batch, [channels[i] for i in group], scale, stride)

    summed: dict[int, Tensor] = {}
    for (group, _), result in zip(jobs, _on_threads(look, jobs, threads), strict=True):
        for i, maps in zip(group, result, strict=True):
            summed[i] = summed[i] + maps if i in summed else maps
    return [summed[i] / (summed[i].amax((1, 2), keepdim=True) + EPSILON) for i in range(len(views))]


def _at_one_scale(
    activations: Activations, batch: Tensor, channels: Sequence[Sequence[int]], scale: float, stride: int
) -> list[Tensor]:
    """Activations of views [N, 3, h, w] and of their mirror images, added: for each [K, h, w] float32."""
    height, width = batch.shape[2:]
    straight, mirrored = activations(with_hflip(batch, scale)).float().chunk(2)
    cells = [stride * math.ceil(side / stride) for side in (height, width)]
    pairs = [(a[ids] + b[ids].flip(2))[None] for a, b, ids in zip(straight, mirrored, channels, strict=True)]
    return [F.interpolate(p, cells, mode="bilinear", align_corners=False)[0, :, :height, :width] for p in pairs]


def _on_threads(function: Callable[[J], R], jobs: Sequence[J], threads: int) -> list[R]:
    """Call `function` for every job, each on one thread; small networks waste most of a second one."""
    if threads == 1:
        return [function(job) for job in jobs]
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def call(job: J) -> R:  # inference mode and autocast belong to a thread
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=autocast):
            return function(job)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(call, jobs))


def _on_grid(maps: Tensor) -> Tensor:
    """Maps [K, H, W] at the centres of the stride-4 grid's cells, [K, ceil(H / 4), ceil(W / 4)]."""
    if not len(maps):
        return maps.new_zeros(0, *grid_size((maps.shape[1], maps.shape[2])))
    down, right = -maps.shape[1] % STRIDE, -maps.shape[2] % STRIDE
    padded = F.pad(maps[None], (0, right, 0, down), mode="replicate")
    return F.interpolate(padded, scale_factor=1 / STRIDE, mode="bilinear", align_corners=False)[0]
