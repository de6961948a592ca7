"""Files with regions of images, class-agnostic segments: a user's own, and those of SAM that a stage keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tagmask.artifacts import atomic_write, digest, file_digest
from tagmask.data.images import read_number_image
from tagmask.data.samples import TaggedImages
from tagmask.errors import DataError
from tagmask.refine.regions import RegionLayers, layers_of_masks

MAX_LAYERS = 50  # of a file; in further ones lie only the worst of many masks at one place


def read_regions(folder: Path, image_id: str, size: tuple[int, int]) -> RegionLayers:
    """Read the regions of an image.

    They are either one PNG, `<id>.png`, whose grey values (8 or 16 bits) are the numbers of the regions, 0 where there
    is none; or a folder `<id>/` of PNGs, one mask per region, above 0 where the region is. The masks may overlap.
    A `<id>.png` of the image's width and L times its height holds L layers of regions, one below the other.

    Args:
        folder: of all regions.
        image_id: the image.
        size: (H, W) of the image; regions of another size are resized to the nearest pixel.

    Returns:
        [L, H, W] int32, see `tagmask.refine.regions`.

    Raises:
        DataError: there are none, or a file is not such a PNG.
    """
    if (path := folder / f"{image_id}.png").is_file():
        numbers = read_number_image(path)
        if numbers.shape[1] == size[1] and numbers.shape[0] % size[0] == 0:
            return numbers.reshape(-1, *size)
        return _resize_nearest(numbers, size)[None]
    if (masks := folder / image_id).is_dir():
        files = sorted(masks.glob("*.png"))
        return layers_of_masks((_resize_nearest(read_number_image(path), size) > 0 for path in files), size)
    raise DataError(f"{folder} has no regions of {image_id}: give {image_id}.png, or a folder {image_id} of masks.")


def write_regions(path: Path, regions: RegionLayers) -> None:
    """Write regions [L, H, W] as a PNG of 16 bits, atomically: the layers, at most 50, one below the other.

    `read_regions` reads it. A file without regions has one layer of zeros.

    Raises:
        RunError: the file cannot be written.
    """
    layers = regions[:MAX_LAYERS] if len(regions) else np.zeros((1, *regions.shape[1:]), np.int32)
    with atomic_write(path) as temporary:
        Image.fromarray(layers.reshape(-1, regions.shape[2]).astype(np.uint16)).save(temporary, format="PNG")


def region_files(folder: Path, images: TaggedImages) -> list[Path]:
    """Return the files with the regions of some images."""
    files = []
    for sample in images.samples:
        path = folder / f"{sample.id}.png"
        files += [path] if path.is_file() else sorted((folder / sample.id).glob("*.png"))
    return files


def region_files_fingerprint(folder: Path, images: TaggedImages) -> str:
    """Return a digest of the contents of all files with regions of some images."""
    return digest([(str(path.relative_to(folder)), file_digest(path)) for path in region_files(folder, images)])


def _resize_nearest(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(numbers.shape, size, strict=True)
    )
    return numbers[np.ix_(rows, columns)]
