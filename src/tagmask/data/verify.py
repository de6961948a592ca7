"""Verification of a data set: every file is decoded once before anything is trained."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from tagmask.artifacts import digest
from tagmask.compute import Processes
from tagmask.data.coco_file_mask import CocoFileMask
from tagmask.data.coco_mask import CocoMask
from tagmask.data.images import check_aspect_ratio, decode_image, is_url, read_bytes, read_grey
from tagmask.data.samples import Mask, PngMask, Problem, Sample, ShardMask, TaggedImages, share
from tagmask.data.shard_row import ShardRow
from tagmask.data.verified_files import VerifiedSample, read_verified, verification_key, write_verified
from tagmask.errors import DataError, StorageError
from tagmask.label_map import present_classes
from tagmask.progress import Progress, Reporter

_CHUNK_SIZE = 512  # samples submitted to the threads at once, so that the queue of a million images stays short


def verify_images(
    images: TaggedImages,
    *,
    skip_bad: bool,
    workers: int,
    progress: Progress,
    remembered: Path | None = None,
    processes: Processes | None = None,
) -> TaggedImages:
    """Check that every image, mask, saliency map and reviewed mask can be used.

    Files are decoded, unless `remembered` says that they have been verified before and their paths, sizes and mtimes
    are the same as then. The progress counts only the images that are decoded.

    Args:
        images: the images as the reader returned them.
        skip_bad: leave out images that cannot be used (they are then among the `problems`) instead of raising.
        workers: the number of threads. Pillow releases the GIL while it decodes.
        progress: reports each inspected image.
        remembered: a file that remembers the verified images of this one set; it is read first, and written if
            anything changed. A missing or damaged file has no effect. None: decode everything.
        processes: the processes that share the work, all of which call this function; None: this one alone.

    Returns:
        The images that can be used, with their `size`, `digest`, `saliency_crc` and the digest of the reviewed mask.

    Raises:
        DataError: an image, mask, saliency map or tag cannot be used (the first three are named), or no image is left.
    """
    inspections = _inspect_unless_remembered(images, workers, progress, remembered, processes or Processes())
    new_problems = [inspection.problem for inspection in inspections if inspection.problem]
    errors = [problem for problem in images.problems if problem.severity == "error"]
    num_images = len(images) + len(errors)
    errors += new_problems
    if errors and not skip_bad:
        raise DataError(summarize_errors(errors, f"{len(errors):,} of {num_images:,} images of {images.name}"))
    samples = tuple(
        replace(
            sample,
            size=inspection.size,
            digest=inspection.image_digest,
            saliency_crc=inspection.saliency_crc,
            reviewed=sample.reviewed and replace(sample.reviewed, digest=inspection.reviewed_digest),
        )
        for sample, inspection in zip(images.samples, inspections, strict=True)
        if inspection.problem is None
    )
    if not samples:
        reason = f" ({errors[0]})" if errors else ""
        raise DataError(f"{images.name} has no image that can be used{reason}; add images, or correct them.")
    return replace(images, samples=samples, problems=(*images.problems, *new_problems))


def ground_truth_fingerprint(images: TaggedImages) -> str:
    """Return a digest that changes when a ground-truth mask or the class list changes; no file is opened.

    It depends on the paths, sizes and mtimes of the mask files (or on the annotations, of COCO) and on the image ids.
    """
    masks = [(sample.id, sample.mask.fingerprint()) for sample in images.samples if sample.mask]
    return digest([images.classes, masks])


def _inspect_unless_remembered(
    images: TaggedImages, workers: int, progress: Progress, remembered: Path | None, processes: Processes
) -> list[Inspection]:
    """Return the inspection of each sample, and update the file of remembered samples.

    Only the main process looks at the files of all samples; each process decodes its share of those that have to be.
    """
    num_classes = len(images.classes)
    keys: list[str | None] = []
    all_known: dict[str, VerifiedSample] = {}

    def look_up() -> list[VerifiedSample | None]:
        if remembered is None:
            return [None] * len(images)
        keys.extend(verification_key(sample, num_classes) for sample in images.samples)  # before the files are read
        all_known.update(read_verified(remembered))
        return [all_known.get(key) if key else None for key in keys]

    known = processes.from_main_process(look_up)
    pending = [sample for sample, result in zip(images.samples, known, strict=True) if result is None]
    if processes.engine == "ray":
        new = iter(processes.from_main_process(lambda: _inspect_on_ray(pending, num_classes, processes, progress)))
    else:
        own = list(inspect_samples(processes.shard(pending), num_classes, workers, progress))
        new = iter(processes.gather(own))
    inspections = [_from_remembered(*result) if result else next(new) for result in known]
    if remembered is None or not processes.is_main_process:
        return inspections
    current: dict[str, VerifiedSample] = {
        key: _to_remember(inspection, *inspection.size)
        for key, inspection in zip(keys, inspections, strict=True)
        if key and inspection.size
    }
    run_may_stop = any(inspection.problem for inspection in inspections)  # then no folder is created for this file
    if current.keys() != all_known.keys() and (remembered.parent.is_dir() or not run_may_stop):
        write_verified(remembered, current)
    return inspections


def _to_remember(inspection: Inspection, height: int, width: int) -> VerifiedSample:
    result = (height, width, inspection.image_digest, inspection.saliency_crc)
    return (*result, inspection.reviewed_digest) if inspection.reviewed_digest else result


def _from_remembered(
    height: int, width: int, image_digest: str | None, saliency_crc: int | None, reviewed_digest: str | None = None
) -> Inspection:
    return Inspection(
        size=(height, width), image_digest=image_digest, saliency_crc=saliency_crc, reviewed_digest=reviewed_digest
    )


def summarize_errors(errors: Sequence[Problem], count: str) -> str:
    """Return one message about bad images that names the first three; `count` is e.g. "2 of 9 images of photos"."""
    first = " ".join(str(problem) for problem in errors[:3])
    verb = "is" if len(errors) == 1 else "are"
    more = f" (and {len(errors) - 3:,} more)" if len(errors) > 3 else ""
    return (
        f"{count} {verb} bad: {first}{more} Correct them, or leave them out with --skip-bad; `tagmask check` lists all."
    )


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the files of one sample hold.

    Attributes:
        size: (H, W) of the image in pixels.
        saliency_crc: CRC-32 of the saliency file; None if there is none.
        mask_classes: the class ids that have pixels in the mask, ascending; None if there is no mask.
        image_digest: a digest of the bytes of the image file; None if it is at a URL.
        reviewed_digest: a digest of the bytes of the reviewed mask; None if there is none.
        reviewed_classes: the class ids that have pixels in the reviewed mask, ascending; None if there is none.
        problem: why the sample cannot be used; the other attributes are then None.
    """

    size: tuple[int, int] | None = None
    saliency_crc: int | None = None
    mask_classes: tuple[int, ...] | None = None
    image_digest: str | None = None
    reviewed_digest: str | None = None
    reviewed_classes: tuple[int, ...] | None = None
    problem: Problem | None = None


def inspect_samples(
    samples: Sequence[Sample], num_classes: int, workers: int, progress: Progress
) -> Iterator[Inspection]:
    """Decode the files of each sample, in order, with `workers` threads.

    Args:
        samples: the samples to inspect. If there is none, no progress is shown.
        num_classes: K; a mask with an id above it cannot be used.
        workers: the number of threads; with 0 or 1, the caller's thread decodes them itself.
        progress: reports each inspected sample.
    """
    if not samples:
        return
    inspect = partial(_inspect, num_classes=num_classes)
    with ThreadPoolExecutor(max(1, workers)) as pool, progress("check images", len(samples)) as advance:
        for start in range(0, len(samples), _CHUNK_SIZE):
            chunk = samples[start : start + _CHUNK_SIZE]
            for inspection in pool.map(inspect, chunk) if workers > 1 else map(inspect, chunk):
                yield inspection
                advance(1)


def _inspect_on_ray(
    samples: Sequence[Sample], num_classes: int, processes: Processes, progress: Progress
) -> list[Inspection]:
    from tagmask.engines import ray

    work = partial(_inspect_chunk, num_classes)
    with progress("check images", len(samples)) as advance:
        chunks = ray.map_chunks(lambda workers: partial(work, workers), samples, advance, processes.actors)
        return [inspection for chunk in chunks for inspection in chunk]


def _inspect_chunk(num_classes: int, workers: int, samples: Sequence[Sample]) -> list[Inspection]:
    return list(inspect_samples(samples, num_classes, workers, Reporter().progress))


def _inspect(sample: Sample, num_classes: int) -> Inspection:
    where = sample.image
    mask_classes = saliency_crc = image_digest = reviewed_digest = reviewed_classes = None
    try:
        content = read_bytes(where)
        if ShardRow.parse(where) or not is_url(where):
            image_digest = file_digest(content)
        height, width = decode_image(content, where).shape[:2]
        size = share((height, width))
        if sample.mask:
            where = _where(sample.mask, sample.image)
            if isinstance(sample.mask, CocoFileMask | CocoMask):
                _check_mask_size(sample.mask.size, size)  # before it is drawn, which takes time with the size
            mask_classes = _find_mask_classes(sample.mask.read(), size, num_classes)
        if sample.saliency:
            where = str(sample.saliency)
            saliency_crc = zlib.crc32(read_bytes(where))
            check_aspect_ratio(where, read_grey(where).shape, size)
        if sample.reviewed_mask:
            where = str(sample.reviewed_mask.path)
            reviewed_digest = file_digest(read_bytes(where))
            reviewed_classes = _find_mask_classes(sample.reviewed_mask.read(), size, num_classes)
        return Inspection(size, saliency_crc, mask_classes, image_digest, reviewed_digest, reviewed_classes)
    except StorageError:  # the image may be good: it must not be left out
        raise
    except DataError as error:
        return Inspection(problem=Problem.from_error(where, error))


def _where(mask: Mask, image: str) -> str:
    """Return what messages call a mask."""
    if isinstance(mask, ShardMask):
        return mask.address
    return str(mask.path) if isinstance(mask, PngMask) else f"the mask of {image}"


def file_digest(content: bytes) -> str:
    """Return the digest of the content of an image or of a reviewed mask."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _check_mask_size(mask_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    if mask_size != image_size:
        (h, w), (height, width) = mask_size, image_size
        hint = " (the EXIF data may rotate the image)" if (w, h) == image_size else ""
        raise DataError(f"has {w}×{h} pixels and its image {width}×{height}; give both the same size{hint}")


def _find_mask_classes(labels: np.ndarray, image_size: tuple[int, int], num_classes: int) -> tuple[int, ...]:
    """Return the class ids in a label map, ascending. Raises DataError if the label map does not fit its image."""
    _check_mask_size((labels.shape[0], labels.shape[1]), image_size)
    classes = share(tuple(present_classes(labels)))
    if classes and classes[-1] > num_classes:
        raise DataError(f"has pixels of class {classes[-1]}, but the largest class id is {num_classes}; correct it")
    return classes
