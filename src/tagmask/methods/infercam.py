"""InferCam: class-conditional inference makes better maps from a trained classifier, without training.

Sun, Zhang and Barnes, "Inferring the Class Conditional Response Map for Weakly Supervised Semantic Segmentation",
WACV 2022 (arXiv:2110.14309), Section 3: the classifier sees parts of the image, and then the same parts again with the
area that was found painted over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from tagmask.errors import RecipeError
from tagmask.maps import STRIDE, ResponseMaps, grid_size
from tagmask.method_modules import method_module
from tagmask.methods._settings import MapSettings
from tagmask.methods.cam import EPSILON, Activations, make_missing_maps
from tagmask.models.classifier import Classifier
from tagmask.models.inference import BILINEAR, Resize, scaled_with_hflip
from tagmask.stage import ArtifactKind, MakeFiles, StageContext

BUFFERS = (10, 20)  # pixels by which the quadrants reach beyond the centers, in images with one tag and with two tags

Box = tuple[int, int, int, int]
"""(top, bottom, left, right) in pixels; bottom and right are exclusive."""

J = TypeVar("J")
R = TypeVar("R")


def activations_of(name: str) -> Callable[[Classifier], Activations]:
    """Return the function `activations` of a method's module; see `method_module`.

    Raises:
        RecipeError: there is no such module, or it has no such function.
    """
    module = method_module(name)
    if not hasattr(module, "activations"):
        raise RecipeError(
            f"base_method: {name!r} defines no activations(classifier); leave it out for the classifier's own."
        )
    return module.activations


def _check_base_method(name: str | None) -> str | None:
    if name is not None:
        activations_of(name)
    return name


class InferCam(MapSettings):
    """Make response maps of each quadrant of an image, several times, each time without what was found before."""

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("classifier",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)

    base_method: Annotated[str | None, AfterValidator(_check_base_method)] = Field(
        None,
        description="a method whose activations are used, e.g. layercam; null: the CAM of the classifier",
    )
    split: bool = Field(True, description="divide images with few tags into quadrants")
    buffers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        BUFFERS,
        description="pixels by which the quadrants reach beyond the centers of mass: one number for images with one "
        "tag, one for images with two tags, and so on; images with more tags than numbers are not divided",
    )
    iterations: int = Field(5, ge=1, description="largest number of times that a piece is shown to the classifier")
    merge: Literal["maximum", "mean"] = Field(
        "maximum",
        description="how the maps of overlapping quadrants are merged: the elementwise maximum as in the paper, or the "
        "mean",
    )
    found_threshold: float = Field(
        0.7, gt=0, le=1, description="activation from which an area counts as found and is painted over"
    )
    min_growth: float = Field(
        0.02, ge=0, le=1, description="share of a piece; the iterations end when less than this is newly found"
    )
    enlarge: float = Field(
        1.0, gt=0, description="factor by which each piece is enlarged before it is shown to the classifier"
    )

    def run(self, context: StageContext) -> None:
        context.make_files("maps", self.prepare_maps)

    def prepare_maps(self, context: StageContext) -> MakeFiles:
        """Load the classifier, and return the function that makes the maps."""
        classifier = Classifier.load(context.inputs["classifier"].path, output_stride=self.inference_stride)
        resize = self.resize(classifier.backbone)
        activations: Activations = classifier.activations
        if self.base_method:
            activations = activations_of(self.base_method)(classifier)

        def maps_of(images: Tensor, tags: Sequence[Sequence[int]]) -> list[ResponseMaps]:
            return infercam_maps(activations, images, tags, self, resize)

        return partial(make_missing_maps, classifier, settings=self, maps_of=maps_of)


@torch.inference_mode()
def infercam_maps(
    activations: Activations,
    images: Tensor,
    tags: Sequence[Sequence[int]],
    settings: InferCam,
    resize: Resize = BILINEAR,
) -> list[ResponseMaps]:
    """Compute class-conditional response maps of the tagged classes, at stride 4.

    Pieces of equal size are processed in one batch, and a piece that is complete leaves the batch. On a CPU each thread
    processes one batch; the result is the same as for one piece at a time.

    Args:
        activations: e.g. `Classifier.activations`; on a CPU it is called from several threads.
        images: [B, 3, H, W] normalized, of equal size.
        tags: the class ids (from 1) of each image.
        settings: of the method.
        resize: how the pieces are resized to the scales.

    Returns:
        One `ResponseMaps` per image; an image without tags has maps [0, h, w].
    """
    size = (images.shape[2], images.shape[3])
    maps_of = partial(
        class_maps, activations, scales=settings.scales, batch_size=settings.inference_batch_size, resize=resize
    )

    channels = [sorted(class_id - 1 for class_id in ids) for ids in tags]
    whole_image: list[Box] = [(0, size[0], 0, size[1])]
    boxes = [whole_image if ids else [] for ids in channels]
    to_split = [i for i, ids in enumerate(channels) if settings.split and 0 < len(ids) <= len(settings.buffers)]
    baseline = maps_of([images[i] for i in to_split], [channels[i] for i in to_split])
    for i, maps in zip(to_split, baseline, strict=True):
        boxes[i] = quadrants(maps, settings.buffers[len(maps) - 1])

    pieces = [Piece.cut(images[i], i, channels[i], box) for i in range(len(images)) for box in boxes[i]]
    active = pieces
    for _ in range(settings.iterations):
        views = [piece.erased_pixels() for piece in active]
        new_maps = maps_of(views, [piece.class_channels for piece in active], enlarge=settings.enlarge)
        growth = [piece.update(maps, settings.found_threshold) for piece, maps in zip(active, new_maps, strict=True)]
        active = [piece for piece, share in zip(active, growth, strict=True) if share >= settings.min_growth]

    merged = [images.new_zeros(len(ids), *size, dtype=torch.float32) for ids in channels]
    num_pieces = images.new_zeros(len(images), *size, dtype=torch.float32)
    for piece in pieces:
        top, bottom, left, right = piece.box
        part = merged[piece.image_index][:, top:bottom, left:right]
        if settings.merge == "maximum":
            torch.maximum(part, piece.maps, out=part)
        else:
            part += piece.maps
            num_pieces[piece.image_index, top:bottom, left:right] += 1
    if settings.merge == "mean":
        merged = [maps / count.clamp(min=1) for maps, count in zip(merged, num_pieces, strict=True)]
    return [
        ResponseMaps(np.array(ids, np.int64) + 1, _on_grid(maps).cpu().numpy(), size)
        for ids, maps in zip(channels, merged, strict=True)
    ]


def quadrants(maps: Tensor, buffer: int) -> list[Box]:
    """Divide an image into four overlapping quadrants around the centers of mass of its maps.

    The rows of the quadrants are [0, lowest center + b) and [highest center − b, H), the columns likewise, with a
    buffer of b pixels; all are clamped to the image. (The public code does not clamp, so that a negative start wraps
    around and cuts a wrong piece.) Equal quadrants are given once.

    Args:
        maps: [K, H, W].
        buffer: b, in pixels.
    """
    height, width = maps.shape[1:]
    # on the CPU: MPS has no float64, and a GPU would be waited for at each map
    rows, columns = zip(*(_center_of_mass(m) for m in maps.cpu().double()), strict=True)
    row_ranges = (0, min(height, max(rows) + buffer)), (max(0, min(rows) - buffer), height)
    column_ranges = (0, min(width, max(columns) + buffer)), (max(0, min(columns) - buffer), width)
    return list(dict.fromkeys((*r, *c) for r in row_ranges for c in column_ranges))


def _center_of_mass(weights: Tensor) -> tuple[int, int]:
    """Return the pixel (row, column) of the center of mass; the center of the image if all weights are 0."""
    if not (total := float(weights.sum())):
        return weights.shape[0] // 2, weights.shape[1] // 2
    indices = [torch.arange(n, device=weights.device, dtype=weights.dtype) for n in weights.shape]
    return int(weights.sum(1) @ indices[0] / total), int(weights.sum(0) @ indices[1] / total)


@dataclass
class Piece:
    """A part of an image, and what was found in it so far.

    Attributes:
        pixels: [3, h, w] normalized.
        mean_color: [3, 1, 1] of the piece.
        image_index: the index of the image in its batch.
        class_channels: the channels of the network that belong to the tagged classes.
        box: where in the image the piece lies.
        maps: [K, h, w] the elementwise maximum of the maps of all iterations.
        found: [h, w] bool, where the maps reached the threshold.
    """

    pixels: Tensor
    mean_color: Tensor
    image_index: int
    class_channels: list[int]
    box: Box
    maps: Tensor
    found: Tensor

    @classmethod
    def cut(cls, image: Tensor, image_index: int, class_channels: list[int], box: Box) -> Piece:
        """Cut a piece out of an image [3, H, W]."""
        top, bottom, left, right = box
        pixels = image[:, top:bottom, left:right]
        maps = pixels.new_zeros(len(class_channels), *pixels.shape[1:], dtype=torch.float32)
        found = maps.new_zeros(maps.shape[1:], dtype=torch.bool)
        return cls(pixels, pixels.mean((1, 2), keepdim=True), image_index, class_channels, box, maps, found)

    def erased_pixels(self) -> Tensor:
        """Return the input of the next iteration [3, h, w]; its resized and flipped views lack the same areas."""
        return torch.where(self.found, self.mean_color, self.pixels)

    def update(self, maps: Tensor, found_threshold: float) -> float:
        """Add the maps of an iteration; returns the share of the piece that was newly found."""
        self.maps = torch.maximum(self.maps, maps)
        before, self.found = self.found, self.maps.amax(0) >= found_threshold
        return float((self.found & ~before).sum()) / self.found.numel()


def class_maps(
    activations: Activations,
    views: Sequence[Tensor],
    channels: Sequence[Sequence[int]],
    *,
    scales: Sequence[float],
    enlarge: float = 1.0,
    batch_size: int = 16,
    resize: Resize = BILINEAR,
) -> list[Tensor]:
    """Compute multi-scale CAMs with horizontal flips at full size, each divided by (its maximum + 1e-5).

    Activations are resized bilinearly to the size of the view.

    Args:
        activations: see `infercam_maps`.
        views: normalized images [3, h, w] of any sizes.
        channels: the channels of the network that are wanted for each view.
        scales: factors by which the views are resized.
        enlarge: a further factor for all scales.
        batch_size: the largest number of views in a batch, over all threads.
        resize: how the views are resized.

    Returns:
        For each view [K, h, w] float32.
    """
    indices_by_size: dict[torch.Size, list[int]] = {}
    for i, view in enumerate(views):
        indices_by_size.setdefault(view.shape, []).append(i)
    threads = torch.get_num_threads() if views and views[0].device.type == "cpu" else 1
    n = max(1, batch_size // threads)  # so that memory does not grow with the number of threads
    batches = [ids[k : k + n] for ids in indices_by_size.values() for k in range(0, len(ids), n)]
    jobs = [(batch, scale * enlarge) for batch in batches for scale in scales]
    # the largest first, so that all threads end at about the same time
    jobs.sort(key=lambda job: len(job[0]) * views[job[0][0]].numel() * job[1] ** 2, reverse=True)

    def compute(job: tuple[list[int], float]) -> list[Tensor]:
        batch, scale = job
        images = torch.stack([views[i] for i in batch])
        return _maps_at_scale(activations, images, [channels[i] for i in batch], scale, resize)

    summed: dict[int, Tensor] = {}
    for (batch, _), result in zip(jobs, _map_on_threads(compute, jobs, threads), strict=True):
        for i, maps in zip(batch, result, strict=True):
            summed[i] = summed[i] + maps if i in summed else maps
    return [summed[i] / (summed[i].amax((1, 2), keepdim=True) + EPSILON) for i in range(len(views))]


def _maps_at_scale(
    activations: Activations, images: Tensor, channels: Sequence[Sequence[int]], scale: float, resize: Resize
) -> list[Tensor]:
    """Add the activations of images [N, 3, h, w] and of their horizontal flips: [K, h, w] float32 for each."""
    size = (images.shape[2], images.shape[3])
    plain, flipped = activations(scaled_with_hflip(images, scale, resize)).float().chunk(2)
    sums = [(a[ids] + b[ids].flip(2))[None] for a, b, ids in zip(plain, flipped, channels, strict=True)]
    return [F.interpolate(s, size, mode="bilinear", align_corners=False)[0] for s in sums]


def _map_on_threads(function: Callable[[J], R], jobs: Sequence[J], threads: int) -> list[R]:
    """Call `function` for every job, each on one thread: small networks gain little from a second one."""
    if threads == 1:
        return [function(job) for job in jobs]
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def call(job: J) -> R:  # inference mode and autocast are settings of a thread
        with torch.inference_mode(), torch.autocast("cpu", dtype=dtype, enabled=autocast):
            return function(job)

    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(call, jobs))


def _on_grid(maps: Tensor) -> Tensor:
    """Resample maps [K, H, W] at the cell centers of the stride-4 grid: [K, ceil(H / 4), ceil(W / 4)]."""
    if not len(maps):
        return maps.new_zeros(0, *grid_size((maps.shape[1], maps.shape[2])))
    down, right = -maps.shape[1] % STRIDE, -maps.shape[2] % STRIDE
    padded = F.pad(maps[None], (0, right, 0, down), mode="replicate")
    return F.interpolate(padded, scale_factor=1 / STRIDE, mode="bilinear", align_corners=False)[0]
