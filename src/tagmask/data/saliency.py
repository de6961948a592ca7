"""Reading saliency maps."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from tagmask.artifacts import digest
from tagmask.data.images import check_aspect_ratio, read_bytes, read_grey
from tagmask.data.samples import Sample, TaggedImages


def read_and_resize_saliency(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a saliency map and resize it bilinearly to its image.

    Args:
        path: a grey image of any size.
        size: (H, W) of the image in pixels.

    Returns:
        [H, W] float32 in 0..1.

    Raises:
        DataError: the file cannot be read, or its aspect ratio is not that of the image.
    """
    import torch
    from torch.nn.functional import interpolate

    grey = read_grey(path)
    check_aspect_ratio(path, grey.shape, size)
    tensor = torch.from_numpy(np.array(grey))[None, None]
    return interpolate(tensor, size, mode="bilinear", antialias=True)[0, 0].numpy()


def saliency_fingerprint(images: TaggedImages) -> str:
    """Return a digest of the contents of all saliency maps.

    It uses the `saliency_crc` of the samples, which `verify_images` fills in. Only the files of samples without it are
    read.

    Raises:
        DataError: such a file cannot be read.
    """
    return digest([(sample.id, _saliency_crc(sample)) for sample in images.samples])


def _saliency_crc(sample: Sample) -> int | None:
    if sample.saliency is None or sample.saliency_crc is not None:
        return sample.saliency_crc
    return zlib.crc32(read_bytes(sample.saliency))
