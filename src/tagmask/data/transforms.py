"""Training augmentations, for images and whatever maps belong to them (torchvision transforms v2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from tagmask.label_map import IGNORE_INDEX


class Resize(v2.Transform):
    """Base of the random resizings: images and float maps bilinearly, label maps by nearest *pixel centre*."""

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        raise NotImplementedError

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"size": [max(1, side) for side in self.new_size(height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            mode = "bilinear" if inpt.is_floating_point() else "nearest-exact"
            planes = inpt.as_subclass(Tensor).reshape(1, -1, *inpt.shape[-2:]).float()
            resized = torch.nn.functional.interpolate(planes, params["size"], mode=mode)
            return tv_tensors.Mask(resized.reshape(*inpt.shape[:-2], *params["size"]).to(inpt.dtype))
        if isinstance(inpt, tv_tensors.Image):
            return TF.resize(inpt, params["size"], InterpolationMode.BILINEAR, antialias=True)
        return inpt


class RandomLongSide(Resize):
    """Resize so that the long side is uniform in [low, high] (the CAM training of IRN's code)."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        target = int(torch.randint(self.low, self.high + 1, ()))
        scale = target / max(height, width)
        return round(height * scale), round(width * scale)


class RandomScale(Resize):
    """Resize by a factor uniform in [low, high] (AMN, DeepLab)."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.low + (self.high - self.low) * float(torch.rand(()))
        return round(height * scale), round(width * scale)


def labels_on_grid(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring labels [B, H, W] to a grid (h, w): each cell gets the label at its centre. Returns [B, h, w] int64."""
    return torch.nn.functional.interpolate(labels[:, None].float(), grid, mode="nearest-exact")[:, 0].long()


def training_transform(
    resize: Resize | None, crop: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> v2.Transform:
    """Resize, flip, crop to crop × crop (padded with the mean colour, labels with unsure), normalise."""
    fill = {tv_tensors.Image: [round(255 * m) for m in mean], tv_tensors.Mask: IGNORE_INDEX}
    steps = [
        *([resize] if resize else []),
        v2.RandomHorizontalFlip(),
        v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
    ]
    return v2.Compose([*steps, *_normalise(mean, std)])


def _normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> list[v2.Transform]:
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return [to_float, v2.Normalize(list(mean), list(std))]


def normalize_images(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[B, 3, H, W] uint8 → float32 as a network wants it."""
    return TF.normalize(images.float() / 255, list(mean), list(std))
