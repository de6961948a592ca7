"""Looking at every file before anything is trained: what is broken, and what looks odd."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tagmask.data.images import check_shape, is_url, read_bytes, read_grey, read_image
from tagmask.data.misspelled_tags import MisspelledTag, misspelled_tags
from tagmask.data.samples import PngMask, Problem, Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.label_map import IGNORE_INDEX
from tagmask.progress import Progress
from tagmask.text import join_names

_CHUNK = 512  # images handed to the threads at a time, so that a million do not wait in memory
_SHOWN = 20  # of a long list


def verify_images(images: TaggedImages, *, skip_bad: bool, workers: int, progress: Progress) -> TaggedImages:
    """Decode every image, mask and saliency map, and fill in the images' sizes.

    Args:
        skip_bad: leave out what is bad (it is then among the `problems`) rather than raise.
        workers: threads; Pillow decodes outside Python's lock.

    Raises:
        DataError: an image, mask or tag is bad (the first three are named), or no image is left.
    """
    looks = list(look_at_all(images, workers, progress))
    found = [look.problem for look in looks if look.problem]
    errors = [problem for problem in images.problems if problem.severity == "error"] + found
    total = len(looks) + len(errors) - len(found)
    if errors and not skip_bad:
        raise DataError(_summary(errors, f"{len(errors):,} of {total:,} images of {images.name}"))
    samples = tuple(
        replace(sample, size=look.size)
        for sample, look in zip(images.samples, looks, strict=True)
        if look.problem is None
    )
    if not samples:
        reason = f" ({errors[0]})" if errors else ""
        raise DataError(f"{images.name} holds no image that can be used{reason}; give some, or correct them.")
    return replace(images, samples=samples, problems=(*images.problems, *found))


def _summary(errors: Sequence[Problem], count: str) -> str:
    reporter = " ".join(str(problem) for problem in errors[:3])
    verb = "is" if len(errors) == 1 else "are"
    more = f" (and {len(errors) - 3:,} more)" if len(errors) > 3 else ""
    return f"{count} {verb} bad: {reporter}{more} Correct them, or leave them out with --skip-bad; `tagmask check` lists all."


@dataclass(frozen=True)
class Look:
    """What one sample's files hold.

    Attributes:
        size: (H, W) of the image in pixels.
        mask_classes: the class ids that have pixels in the mask, ascending; None without a mask.
        fingerprint: of the image file's bytes, if asked for.
        problem: why the sample cannot be used; the rest is then not known.
    """

    size: tuple[int, int] | None = None
    mask_classes: tuple[int, ...] | None = None
    fingerprint: bytes | None = None
    problem: Problem | None = None


def look_at_all(images: TaggedImages, workers: int, progress: Progress, fingerprints: bool = False) -> Iterator[Look]:
    """Look at each sample, in order, in `workers` threads."""
    num_classes = len(images.classes)
    with ThreadPoolExecutor(max(1, workers)) as pool, progress("check images", len(images)) as advance:
        for start in range(0, len(images), _CHUNK):
            chunk = images.samples[start : start + _CHUNK]
            for look in pool.map(lambda sample: _look(sample, num_classes, fingerprints), chunk):
                yield look
                advance(1)


def _look(sample: Sample, num_classes: int, fingerprint: bool) -> Look:
    where = sample.image
    try:
        height, width = size = read_image(where).shape[:2]
        present = None
        if sample.mask:
            where = str(sample.mask.path) if isinstance(sample.mask, PngMask) else f"the mask of {sample.image}"
            present = _mask_classes(sample.mask.read(), size, num_classes)
        if sample.saliency:
            where = str(sample.saliency)
            check_shape(where, read_grey(where).shape, size)
        digest = None
        if fingerprint and not is_url(sample.image):
            digest = hashlib.blake2b(read_bytes(sample.image), digest_size=16).digest()
        return Look((height, width), present, digest)
    except DataError as error:
        return Look(problem=Problem.of(where, error))


def _mask_classes(labels: np.ndarray, size: tuple[int, int], num_classes: int) -> tuple[int, ...]:
    if labels.shape != size:
        (h, w), (height, width) = labels.shape, size
        turned = " (the image may be turned by its EXIF data)" if (w, h) == size else ""
        raise DataError(f"has {w}×{h} pixels, its image {width}×{height}; make them the same{turned}")
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    classes = tuple(label for label in present if label not in (0, IGNORE_INDEX))
    if classes and classes[-1] > num_classes:
        raise DataError(f"has pixels of class {classes[-1]}, and there are {num_classes} classes; correct it")
    return classes


@dataclass(frozen=True)
class Found:
    """How many there are of something, and the first of them."""

    count: int
    first: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, items: Sequence[tuple[str, ...]]) -> Found:
        return cls(len(items), tuple(items[:_SHOWN]))

    def __str__(self) -> str:
        return "; ".join(", ".join(item) for item in self.first[:3]) + "; ..." * (self.count > 3)


@dataclass(frozen=True)
class CheckReport:
    """What a set of tagged images holds. Counts are over the images that can be used.

    Attributes:
        n_images, n_bad: images that can be used, and that cannot.
        images_per_class: one number a class.
        tags_per_image: entry n is the number of images with n tags.
        n_untagged: images whose tags are not known (those known to show no class have 0 tags).
        n_masks, n_saliency: images that have them.
        co_occurrence: [K][K], images that have both classes; the diagonal is `images_per_class`.
        heights, widths: smallest, median, largest, in pixels.
        lookalikes: tags that may be misspelt.
        tags_without_pixels, pixels_without_tags: (image, class) where mask and tags disagree.
        duplicates: images whose files are the same bytes.
        problems: everything wrong or doubtful, in words.
    """

    name: str
    classes: tuple[str, ...]
    num_images: int
    num_bad: int
    images_per_class: tuple[int, ...]
    tags_per_image: tuple[int, ...]
    num_untagged: int
    num_masks: int
    num_saliency: int
    co_occurrence: tuple[tuple[int, ...], ...]
    heights: tuple[int, int, int] | None
    widths: tuple[int, int, int] | None
    misspelled_tags: tuple[MisspelledTag, ...]
    tags_without_pixels: Found
    pixels_without_tags: Found
    duplicates: Found
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing has to be left out."""
        return self.num_bad == 0 and self.num_images > 0

    @property
    def mean_tags(self) -> float:
        """Tags an image, over the images whose tags are known."""
        known = sum(self.tags_per_image)
        return sum(n * count for n, count in enumerate(self.tags_per_image)) / known if known else 0.0

    def to_json(self) -> dict[str, Any]:
        """All of it, as what `json.dumps` takes."""
        return {"ok": self.ok, "mean_tags": self.mean_tags, **asdict(self)}


def check(images: TaggedImages, *, workers: int, progress: Progress) -> CheckReport:
    """Look at every image, mask and saliency map and at the tags as a whole."""
    looks = list(look_at_all(images, workers, progress, fingerprints=True))
    good = [(sample, look) for sample, look in zip(images.samples, looks, strict=True) if look.problem is None]
    samples = [sample for sample, _ in good]
    errors = [*images.problems, *(look.problem for look in looks if look.problem)]
    tags = _multi_hot(samples, len(images.classes))
    together = tags.T @ tags
    num_tags = Counter(len(sample.tags) for sample in samples if sample.tags is not None)
    counts = dict(zip(images.classes, together.diagonal().tolist(), strict=True))
    sizes = np.array([look.size for _, look in good])
    missing, extra = _disagreements(good, images.classes)
    report = CheckReport(
        name=images.name,
        classes=images.classes,
        num_images=len(good),
        num_bad=sum(problem.severity == "error" for problem in errors),
        images_per_class=tuple(counts.values()),
        tags_per_image=tuple(num_tags[n] for n in range(max(num_tags, default=0) + 1)),
        num_untagged=sum(sample.tags is None for sample in samples),
        num_masks=sum(sample.mask is not None for sample in samples),
        num_saliency=sum(sample.saliency is not None for sample in samples),
        co_occurrence=tuple(map(tuple, together.tolist())),
        heights=_spread(sizes[:, 0]) if good else None,
        widths=_spread(sizes[:, 1]) if good else None,
        misspelled_tags=misspelled_tags(counts),
        tags_without_pixels=Found.of(missing),
        pixels_without_tags=Found.of(extra),
        duplicates=Found.of(_duplicates(good)),
        problems=tuple(errors),
    )
    return replace(report, problems=(*errors, *_doubts(report)))


def _multi_hot(samples: Sequence[Sample], num_classes: int) -> np.ndarray:
    tags = np.zeros((len(samples), num_classes), np.int64)
    for row, sample in zip(tags, samples, strict=True):
        row[[tag - 1 for tag in sample.tags or ()]] = 1
    return tags


def _spread(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _disagreements(
    good: Sequence[tuple[Sample, Look]], classes: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """(image, class) of tags without pixels, and of pixels without tag."""
    missing: list[tuple[str, ...]] = []
    extra: list[tuple[str, ...]] = []
    for sample, look in good:
        if sample.tags is not None and look.mask_classes is not None:
            tags, pixels = set(sample.tags), set(look.mask_classes)
            missing += [(sample.id, classes[k - 1]) for k in sorted(tags - pixels)]
            extra += [(sample.id, classes[k - 1]) for k in sorted(pixels - tags)]
    return missing, extra


def _duplicates(good: Sequence[tuple[Sample, Look]]) -> list[tuple[str, ...]]:
    same: dict[bytes, list[str]] = {}
    for sample, look in good:
        if look.fingerprint:
            same.setdefault(look.fingerprint, []).append(sample.id)
    return [tuple(ids) for ids in same.values() if len(ids) > 1]


def _doubts(report: CheckReport) -> Iterator[Problem]:
    def doubt(what: str, fix: str) -> Problem:
        return Problem(report.name, what, fix, "warning")

    for slip in report.misspelled_tags:
        what = f"the tag {slip.name!r} (in {slip.count}) looks like {slip.meant!r} (in {slip.meant_count})"
        yield doubt(what, "correct it if they are the same")
    for name in report.classes:
        if "," in name or "|" in name:
            yield doubt(f"the tag {name!r} may be several in one", 'separate tags by ";" in the table, if it is')
    for names, what in (
        ([name for name, n in zip(report.classes, report.images_per_class, strict=True) if n == 0], "no image"),
        ([name for name, n in zip(report.classes, report.images_per_class, strict=True) if n == 1], "one image only"),
    ):
        if names:
            yield doubt(f"there is {what} of {join_names(names, 10)}", "add images of them")
    if len(report.classes) == 1:
        yield doubt("there is one class only", "add images without it, if there are none, to tell it from the rest")
    if report.tags_without_pixels.count:
        what = f"{report.tags_without_pixels.count} tags have no pixels in the mask ({report.tags_without_pixels})"
        yield doubt(what, "correct the tags or the masks")
    if report.pixels_without_tags.count:
        what = f"{report.pixels_without_tags.count} classes in masks have no tag ({report.pixels_without_tags})"
        yield doubt(what, "correct the tags or the masks")
    if report.duplicates.count:
        what = f"{report.duplicates.count} images are there more than once ({report.duplicates})"
        yield doubt(what, "remove the copies, or give one image all the tags")
