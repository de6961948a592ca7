"""A few images for a quick try."""

from __future__ import annotations

import pytest

from tagmask.data.limit import limit_images
from tagmask.data.samples import Sample, TaggedImages
from tagmask.errors import DataError


def tagged(*tags: tuple[int, ...] | None) -> TaggedImages:
    return TaggedImages(
        ("a", "b", "c"), tuple(Sample(f"{i:03}", f"{i}.jpg", t) for i, t in enumerate(tags)), name="set"
    )


def test_every_class_occurs_and_the_order_is_kept() -> None:
    images = tagged(*[(1,)] * 50, (2,), *[(1,)] * 50, (3,), ())
    limited = limit_images(images, 5)
    ids = [sample.id for sample in limited.samples]
    assert len(ids) == 5
    assert ids == sorted(ids)
    assert {"050", "101"} < set(ids)
    assert limited == limit_images(images, 5)
    assert (limited.classes, limited.name) == (images.classes, images.name)


def test_an_image_of_several_classes_counts_for_all() -> None:
    assert [s.id for s in limit_images(tagged((1,), (2,), (1, 2, 3)), 1).samples] == ["002"]


def test_sets_that_are_small_enough_are_not_changed() -> None:
    images = tagged((1,), None)
    assert limit_images(images, 2) is images


def test_a_limit_that_is_too_small() -> None:
    with pytest.raises(DataError, match="a limit of 2 images leaves out classes of set: raise it to 3 or more"):
        limit_images(tagged((1,), (2,), (3,)), 2)
