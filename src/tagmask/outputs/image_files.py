"""Images beside their masks, for formats that consist of folders of images and masks."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import ExifTags, Image

from tagmask.artifacts import atomic_write
from tagmask.data.images import is_file, read_bytes, read_image
from tagmask.outputs.mask_item import MaskItem
from tagmask.outputs.settings import ExportSettings


def write_pairs(
    items: Iterable[MaskItem], images: Path, masks: Path, settings: ExportSettings
) -> Iterator[tuple[MaskItem, str]]:
    """Write the label map of each image as a grayscale PNG, and the image to another folder.

    The PNGs have no palette, because OpenCV would read its colors in place of the class ids.

    Args:
        items: the images and their label maps.
        images: the folder of the images.
        masks: the folder of the label maps, <id>.png.
        settings: how images are written.

    Yields:
        The image and the name of its file in the folder of the images, after both are written.

    Raises:
        DataError: an image cannot be read.
        RunError: a file cannot be written.
    """
    for item in items:
        with atomic_write(masks / f"{item.id}.png") as temporary:
            Image.fromarray(item.labels).save(temporary, format="PNG")
        yield item, write_image(item, images, settings)


def write_image(item: MaskItem, folder: Path, settings: ExportSettings, name: str | None = None) -> str:
    """Copy or link the image to a folder, as the settings say.

    An image with an EXIF rotation is saved upright, because not every reader applies the rotation.

    Args:
        item: the image.
        folder: the folder of the images.
        settings: how images are written.
        name: the name of the file in the folder; None: <id><suffix>.

    Returns:
        The name of the file in the folder, also if the settings leave images out.

    Raises:
        DataError: the image cannot be read.
        RunError: the file cannot be written.
    """
    suffix = Path(item.file_name).suffix
    name = name or item.id + suffix
    if settings.images not in ("copy", "link"):
        return name
    content = read_bytes(item.image)
    is_upright = _is_upright(content)
    with atomic_write(folder / name) as temporary:
        if not is_upright:
            image_format = Image.registered_extensions().get(suffix.lower(), "PNG")
            Image.fromarray(read_image(item.image)).save(temporary, format=image_format, quality=95)
        elif settings.images == "link" and is_file(item.image):
            temporary.symlink_to(Path(item.image).resolve())
        else:
            temporary.write_bytes(content)
    return name


def _is_upright(content: bytes) -> bool:
    """Return whether an image has no EXIF rotation; TIFF files count as upright, because every reader rotates them."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format == "TIFF" or image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # damaged EXIF data
        return True
