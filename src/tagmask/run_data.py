"""Reading and verifying the training images and the held-out images of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tagmask.compute import Processes
from tagmask.data.samples import TaggedImages
from tagmask.data.source import DataSource, align_classes
from tagmask.data.verify import verify_images
from tagmask.errors import DataError, RunError
from tagmask.progress import Reporter
from tagmask.review_folder import ReviewedImage
from tagmask.reviews import with_reviews
from tagmask.run_folder import RunFolder
from tagmask.text import join_first_names


def read_run_data(
    source: DataSource,
    held_out: DataSource | None,
    *,
    skip_bad: bool,
    workers: int,
    reporter: Reporter,
    processes: Processes | None = None,
    folder: RunFolder | None = None,
    reviews: Mapping[str, ReviewedImage] | None = None,
) -> tuple[TaggedImages, TaggedImages | None]:
    """Read and verify the training images and the held-out images, with one class list. Raises DataError.

    Args:
        source: of the training images.
        held_out: of the held-out images, or None.
        skip_bad: leave out images that cannot be read.
        workers: threads.
        processes: the processes that share the work, all of which call this function; None: this one alone.
        reporter: prints progress.
        folder: the run folder, where the list of verified images is kept; None: verify all images.
        reviews: what people have said about the training images of the run, by image id.
    """

    def verify(images: TaggedImages, remembered: Path | None) -> TaggedImages:
        return verify_images(
            images, skip_bad=skip_bad, workers=workers, progress=reporter.progress, remembered=remembered,
            processes=processes,
        )  # fmt: skip

    images = source.read()
    if reviews and folder:
        _check_classes_of_reviews(images, folder)
    images = with_reviews(images, reviews or {})
    others = None if held_out is None else align_classes(_read_held_out(held_out), held_out, images.classes)
    images = verify(images, folder.verification_cache_path if folder else None)
    if others is None:
        return images, None
    others = verify(others, folder.held_out_verification_cache_path if folder else None)
    return images, replace(others, name=f"{others.name}, held out") if others.name == images.name else others


def _check_classes_of_reviews(images: TaggedImages, folder: RunFolder) -> None:
    """Raise RunError if the class ids in the reviewed masks of a run are those of another class list."""
    if not folder.record_path.exists():
        return
    classes = folder.read_record().classes
    if classes != images.classes:
        raise RunError(
            f"the reviewed masks in {folder.review.path} are of the classes {join_first_names(classes, 10)}, but the "
            f"data has {join_first_names(images.classes, 10)}: choose another --out, with these masks as --reviewed."
        )


def _read_held_out(source: DataSource) -> TaggedImages:
    """Read held-out images. A split that cannot be read may have been meant as a folder, so the error says both."""
    try:
        return source.read().without_reviewed_masks()
    except DataError as error:
        if source.split is None or Path(source.split).exists():
            raise
        raise DataError(f"the held-out images {source.split!r} are neither a folder nor a split: {error}") from error
