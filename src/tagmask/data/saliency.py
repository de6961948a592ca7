"""Reading and writing saliency maps."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.artifacts import atomic_write, digest, remove_unfinished
from tagmask.compute import Compute
from tagmask.data.images import check_aspect_ratio, read_bytes, read_grey
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.verify import verify_images
from tagmask.progress import Progress

LONG_SIDE = 400  # pixels; larger maps are reduced to it


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


def write_missing_saliency_maps(
    images: TaggedImages,
    folder: Path,
    load_model: Callable[[], Callable[[np.ndarray], np.ndarray]],
    *,
    skip_bad: bool,
    compute: Compute,
    progress: Progress,
) -> TaggedImages:
    """Make the saliency map of each image and write it to `folder`/<id>.png, at most 400 pixels a side.

    Existing files are kept. Large images are reduced before (`tagmask.large_images`).

    Args:
        images: the images. Their masks and saliency maps are ignored.
        folder: where the maps are written.
        load_model: returns a function from an image [H, W, 3] uint8 to its map [H, W] in 0..1; called if maps are
            missing.
        skip_bad: leave out images that cannot be used (they are then among the `problems`) instead of raising.
        compute: the processes that load the images.
        progress: reports each image.

    Returns:
        The images with these files as their saliency and without masks.

    Raises:
        RunError: a file cannot be written.
        DataError: an image cannot be used.
    """
    from tagmask.data.loading import load_image_batches  # here, because it imports PyTorch

    bare = replace(images, samples=tuple(replace(sample, mask=None, saliency=None) for sample in images.samples))
    usable = verify_images(bare, skip_bad=skip_bad, workers=compute.workers, progress=progress)
    result = replace(usable, samples=tuple(replace(s, saliency=folder / f"{s.id}.png") for s in usable.samples))
    remove_unfinished(folder)
    pending = [[sample] for sample in result.samples if sample.saliency and not sample.saliency.exists()]
    if not pending:
        return result
    model = load_model()
    with progress("saliency", len(pending)) as advance:
        for (sample,), pixels in load_image_batches(pending, compute):
            saliency = model(pixels[0].permute(1, 2, 0).numpy())
            grey = Image.fromarray(np.round(255 * saliency).astype(np.uint8))
            grey.thumbnail((LONG_SIDE, LONG_SIDE))
            with atomic_write(folder / f"{sample.id}.png") as temporary:
                grey.save(temporary, format="PNG")
            advance(1)
    return result


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
