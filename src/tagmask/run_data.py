"""Reading and verifying the training images and the held-out images of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tagmask.data.samples import TaggedImages
from tagmask.data.source import DataSource, align_classes
from tagmask.data.verify import verify_images
from tagmask.errors import DataError
from tagmask.progress import Reporter
from tagmask.run_folder import RunFolder


def read_run_data(
    source: DataSource,
    held_out: DataSource | None,
    *,
    skip_bad: bool,
    workers: int,
    reporter: Reporter,
    folder: RunFolder | None = None,
) -> tuple[TaggedImages, TaggedImages | None]:
    """Read and verify the training images and the held-out images, with one class list. Raises DataError.

    Args:
        source: of the training images.
        held_out: of the held-out images, or None.
        skip_bad: leave out images that cannot be read.
        workers: threads.
        reporter: prints progress.
        folder: the run folder, where the list of verified images is kept; None: verify all images.
    """

    def verify(images: TaggedImages, remembered: Path | None) -> TaggedImages:
        return verify_images(
            images, skip_bad=skip_bad, workers=workers, progress=reporter.progress, remembered=remembered
        )

    images = source.read()
    others = None if held_out is None else align_classes(_read_held_out(held_out), held_out, images.classes)
    images = verify(images, folder.verification_cache_path if folder else None)
    if others is None:
        return images, None
    others = verify(others, folder.held_out_verification_cache_path if folder else None)
    return images, replace(others, name=f"{others.name}, held out") if others.name == images.name else others


def _read_held_out(source: DataSource) -> TaggedImages:
    """Read held-out images. A split that cannot be read may have been meant as a folder, so the error says both."""
    try:
        return source.read()
    except DataError as error:
        if source.split is None or Path(source.split).exists():
            raise
        raise DataError(f"the held-out images {source.split!r} are neither a folder nor a split: {error}") from error
