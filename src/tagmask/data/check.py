"""The report of `tagmask check`: what a data set holds, what is wrong with it, and what should be checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from tagmask.data.everyday_nouns import are_everyday_nouns
from tagmask.data.misspelled_tags import MisspelledTag, find_misspelled_tags
from tagmask.data.samples import Problem, Sample, TaggedImages
from tagmask.data.tag_warnings import count_co_occurrence, tag_warnings
from tagmask.data.verify import Inspection, inspect_samples
from tagmask.large_images import is_large
from tagmask.progress import Progress
from tagmask.text import pluralize, shorten

_MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Occurrences:
    """How often something occurs in a data set, with examples.

    Attributes:
        count: the number of occurrences.
        examples: the first 20 occurrences, each a tuple of image ids and class names.
    """

    count: int
    examples: tuple[tuple[str, ...], ...]

    @classmethod
    def from_items(cls, items: Sequence[tuple[str, ...]]) -> Self:
        """Count the items, and keep the first ones as examples."""
        return cls(len(items), tuple(items[:_MAX_EXAMPLES]))

    def __str__(self) -> str:
        return "; ".join(", ".join(item) for item in self.examples[:3]) + "; ..." * (self.count > 3)


@dataclass(frozen=True)
class CheckReport:
    """What a set of tagged images holds. All counts are over the images that can be used.

    Attributes:
        name: the name of the set.
        classes: the K class names.
        num_images: the number of images that can be used.
        num_bad: the number of images that cannot be used.
        images_per_class: [K], the number of images of each class.
        tags_per_image: entry n is the number of images with n tags.
        num_untagged: the number of images without any tag.
        num_masks: the number of images with a ground-truth mask.
        num_saliency: the number of images with a saliency map.
        num_reviewed: the number of images with a reviewed mask.
        co_occurrence: [K][K], the number of images that show both classes. The diagonal is `images_per_class`.
        heights, widths: the smallest, median and largest side in pixels; None if there are no images.
        largest: the image with the most pixels: its id, and its megapixels; None if there are no images.
        num_large: the number of images that are reduced or cut into tiles (`tagmask.large_images`).
        misspelled_tags: tags that may be misspelled.
        tags_without_pixels: (image id, class name) of each tag whose class is not in the mask: the ground truth, or
            else the reviewed mask.
        pixels_without_tags: (image id, class name) of each class in such a mask without a tag.
        duplicates: ids of images whose files are identical.
        problems: all errors and warnings about single items.
        tag_warnings: sentences about the tags of the whole set (`tagmask.data.tag_warnings`).
        everyday_nouns: whether all classes are nouns that a model with text prompts would know.
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
    num_reviewed: int
    co_occurrence: tuple[tuple[int, ...], ...]
    heights: tuple[int, int, int] | None
    widths: tuple[int, int, int] | None
    largest: tuple[str, float] | None
    num_large: int
    misspelled_tags: tuple[MisspelledTag, ...]
    tags_without_pixels: Occurrences
    pixels_without_tags: Occurrences
    duplicates: Occurrences
    problems: tuple[Problem, ...]
    tag_warnings: tuple[str, ...]
    everyday_nouns: bool

    @property
    def ok(self) -> bool:
        """Whether there are images with tags, and all images can be used."""
        return self.num_bad == 0 and any(self.images_per_class)

    @property
    def mean_tags(self) -> float:
        """The mean number of tags of the images whose tags are known."""
        known = sum(self.tags_per_image)
        return sum(n * count for n, count in enumerate(self.tags_per_image)) / known if known else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the report as a dictionary that `json.dumps` accepts."""
        return {"ok": self.ok, "mean_tags": self.mean_tags, **asdict(self)}


def check_images(images: TaggedImages, *, workers: int, progress: Progress) -> CheckReport:
    """Decode every image, mask and saliency map, and report on the data set.

    Args:
        images: the images as the reader returned them.
        workers: the number of threads.
        progress: reports each inspected image.
    """
    inspections = list(inspect_samples(images.samples, len(images.classes), workers, progress))
    usable = [
        (sample, inspection)
        for sample, inspection in zip(images.samples, inspections, strict=True)
        if inspection.problem is None
    ]
    samples = [sample for sample, _ in usable]
    problems = [*images.problems, *(inspection.problem for inspection in inspections if inspection.problem)]
    co_occurrence = count_co_occurrence(samples, len(images.classes))
    if samples and not co_occurrence.any():
        problems.append(Problem(images.name, "no image has a tag", "add the tags of the images"))
    num_tags = Counter(len(sample.tags) for sample in samples if sample.tags is not None)
    images_per_class = dict(zip(images.classes, co_occurrence.diagonal().tolist(), strict=True))
    sizes = np.array([inspection.size for _, inspection in usable])
    tags_without_pixels, pixels_without_tags = _compare_tags_and_masks(usable, images.classes)
    report = CheckReport(
        name=images.name,
        classes=images.classes,
        num_images=len(usable),
        num_bad=sum(problem.severity == "error" for problem in problems),
        images_per_class=tuple(images_per_class.values()),
        tags_per_image=tuple(num_tags[n] for n in range(max(num_tags, default=0) + 1)),
        num_untagged=sum(not sample.tags for sample in samples),
        num_masks=sum(sample.mask is not None for sample in samples),
        num_saliency=sum(sample.saliency is not None for sample in samples),
        num_reviewed=sum(sample.reviewed is not None for sample in samples),
        co_occurrence=tuple(map(tuple, co_occurrence.tolist())),
        heights=_min_median_max(sizes[:, 0]) if usable else None,
        widths=_min_median_max(sizes[:, 1]) if usable else None,
        largest=_find_largest(usable),
        num_large=sum(is_large(inspection.size) for _, inspection in usable if inspection.size),
        misspelled_tags=find_misspelled_tags(images_per_class),
        tags_without_pixels=Occurrences.from_items(tags_without_pixels),
        pixels_without_tags=Occurrences.from_items(pixels_without_tags),
        duplicates=Occurrences.from_items(_find_duplicates(usable)),
        problems=tuple(problems),
        tag_warnings=tuple(tag_warnings(replace(images, samples=tuple(samples)))),
        everyday_nouns=are_everyday_nouns(images.classes),
    )
    return replace(report, problems=(*problems, *_warnings(report)))


def _min_median_max(values: np.ndarray) -> tuple[int, int, int]:
    return int(values.min()), int(np.median(values)), int(values.max())


def _find_largest(usable: Sequence[tuple[Sample, Inspection]]) -> tuple[str, float] | None:
    """Return the id and the megapixels of the image with the most pixels."""
    pixels = ((size[0] * size[1], sample.id) for sample, inspection in usable if (size := inspection.size))
    count, image_id = max(pixels, default=(0, ""))
    if not count:
        return None
    return image_id, round(count / 1e6, 2)


def _compare_tags_and_masks(
    usable: Sequence[tuple[Sample, Inspection]], classes: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return (image id, class name) of each tag without pixels, and of each class with pixels but without a tag."""
    tags_without_pixels: list[tuple[str, ...]] = []
    pixels_without_tags: list[tuple[str, ...]] = []
    for sample, inspection in usable:
        mask_classes = inspection.mask_classes if sample.mask else inspection.reviewed_classes
        if sample.tags is not None and mask_classes is not None:
            tags, pixels = set(sample.tags), set(mask_classes)
            tags_without_pixels += [(sample.id, classes[k - 1]) for k in sorted(tags - pixels)]
            pixels_without_tags += [(sample.id, classes[k - 1]) for k in sorted(pixels - tags)]
    return tags_without_pixels, pixels_without_tags


def _find_duplicates(usable: Sequence[tuple[Sample, Inspection]]) -> list[tuple[str, ...]]:
    counts = Counter(inspection.image_digest for _, inspection in usable)
    ids_by_digest: dict[str, list[str]] = {}
    for sample, inspection in usable:
        if inspection.image_digest and counts[inspection.image_digest] > 1:
            ids_by_digest.setdefault(inspection.image_digest, []).append(sample.id)
    return [tuple(ids) for ids in ids_by_digest.values()]


def _warnings(report: CheckReport) -> Iterator[Problem]:
    def warning(message: str, fix: str) -> Problem:
        return Problem(report.name, message, fix, "warning")

    for tag in report.misspelled_tags:
        count, suggestion_count = pluralize(tag.count, "image"), pluralize(tag.suggestion_count, "image")
        message = f"the tag {shorten(tag.name)!r} ({count}) may mean {shorten(tag.suggestion)!r} ({suggestion_count})"
        yield warning(message, "correct it if both are the same")
    for name in report.classes:
        if "," in name or "|" in name:
            message = f"the tag {shorten(name)!r} may be several tags in one"
            yield warning(message, 'separate tags by ";" in the table if it is')
    for occurrences, noun, message, fix in (
        (report.tags_without_pixels, "tag", "the masks have no pixels for {}", "correct the tags or the masks"),
        (report.pixels_without_tags, "class", "the masks show {} without a tag", "correct the tags or the masks"),
        (report.duplicates, "image", "there are copies of {}", "remove the copies, or give one image all the tags"),
    ):
        if occurrences.count:
            yield warning(f"{message.format(pluralize(occurrences.count, noun))} ({occurrences})", fix)
