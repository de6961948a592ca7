"""Training augmentations of images and of the label maps that belong to them (torchvision transforms v2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from tagmask.label_map import IGNORE_INDEX


class RandomResize(v2.Transform):
    """Base class of the random resizes: images are interpolated, label maps resized by the nearest pixel center.

    Args:
        interpolation: of images, "bilinear" (with antialiasing) or "bicubic" (`resize_bicubic`).
    """

    def __init__(self, interpolation: str = "bilinear") -> None:
        super().__init__()
        self.interpolation = interpolation

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        """Draw the new size (H, W) of an image of height × width pixels."""
        raise NotImplementedError

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        return {"size": [max(1, side) for side in self.new_size(height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, tv_tensors.Mask):
            labels = inpt.as_subclass(Tensor).reshape(1, -1, *inpt.shape[-2:]).float()
            resized = torch.nn.functional.interpolate(labels, params["size"], mode="nearest-exact")
            return tv_tensors.Mask(resized.reshape(*inpt.shape[:-2], *params["size"]).to(inpt.dtype))
        if isinstance(inpt, tv_tensors.Image) and self.interpolation == "bicubic":
            return tv_tensors.Image(resize_bicubic(inpt, params["size"]))
        if isinstance(inpt, tv_tensors.Image):
            return TF.resize(inpt, params["size"], InterpolationMode.BILINEAR, antialias=True)
        return inpt


class RandomLongSide(RandomResize):
    """Resize so that the long side is uniform in [low, high] pixels, as the code of IRN trains its classifier."""

    def __init__(self, low: int, high: int, interpolation: str = "bilinear") -> None:
        super().__init__(interpolation)
        self.low, self.high = low, high

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        long_side = int(torch.randint(self.low, self.high + 1, ()))
        scale = long_side / max(height, width)
        return round(height * scale), round(width * scale)


class RandomScale(RandomResize):
    """Resize by a factor that is uniform in [low, high], as AMN and DeepLab do."""

    def __init__(self, low: float, high: float, interpolation: str = "bilinear") -> None:
        super().__init__(interpolation)
        self.low, self.high = low, high

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.low + (self.high - self.low) * float(torch.rand(()))
        return round(height * scale), round(width * scale)


class RandomScaleChoice(RandomResize):
    """Resize by one of several factors, as deeplab-pytorch does; sides are rounded down."""

    def __init__(self, scales: Sequence[float], interpolation: str = "bilinear") -> None:
        super().__init__(interpolation)
        self.scales = tuple(scales)

    def new_size(self, height: int, width: int) -> tuple[int, int]:
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        return int(height * scale), int(width * scale)


def resize_bicubic(image: Tensor, size: Sequence[int]) -> Tensor:
    """Resize an image [3, H, W] uint8 to a size (h, w) as PIL does, which the public code of most papers uses."""
    pil_image = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = pil_image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def downsample_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize label maps: each cell of the result gets the label at its center.

    Args:
        labels: [B, H, W], any integer type.
        size: (h, w) of the result, for example of a network's output.

    Returns:
        [B, h, w] int64.
    """
    return torch.nn.functional.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def training_transform(
    resize: RandomResize, crop_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> v2.Transform:
    """Return a transform that resizes, flips horizontally, crops and normalizes at random.

    Args:
        resize: the random resize.
        crop_size: side of the square crop in pixels. Images are padded with the mean color, label maps with
            `IGNORE_INDEX`.
        mean, std: of the RGB channels, in 0..1.
    """
    fill = {tv_tensors.Image: [round(255 * m) for m in mean], tv_tensors.Mask: IGNORE_INDEX}
    return v2.Compose(
        [
            resize,
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(list(mean), list(std)),
        ]
    )


def normalize_images(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Convert images to the values that a network expects.

    Args:
        images: [B, 3, H, W] uint8 RGB.
        mean, std: of the RGB channels, in 0..1.

    Returns:
        [B, 3, H, W] float32.
    """
    return TF.normalize(images.float() / 255, list(mean), list(std))
