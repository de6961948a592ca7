"""Warnings about tags."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.tag_warnings import count_co_occurrence, tag_warnings


def tagged(classes: str, tags: Iterable[str | None]) -> TaggedImages:
    """Return images of one-letter classes: tagged("ab", ["a", "ab", "", None])."""
    ids = [None if text is None else tuple(classes.index(name) + 1 for name in text) for text in tags]
    return TaggedImages(tuple(classes), tuple(Sample(str(i), f"{i}.jpg", t) for i, t in enumerate(ids)))


def test_good_tags_have_no_warning() -> None:
    assert tag_warnings(tagged("abc", ["a", "b", "c", "ab", "bc"] * 12)) == []


def test_classes_in_nearly_every_image() -> None:
    [warning] = tag_warnings(tagged("abc", ["ab", "ac", "ab", "ac", "ac", "ab", "ac", "ab", "abc", "c"] * 10))
    assert warning.startswith("(nearly) every image shows a (90 of 100 images): ")
    assert "add images without it, or leave it out" in warning
    assert tag_warnings(tagged("abc", ["ab", "ac", "ab", "ac", "ac", "ab", "ac", "b", "c", "bc"] * 10)) == []


def test_a_single_class_in_every_image_cannot_be_left_out() -> None:
    [warning] = tag_warnings(tagged("a", ["a"] * 60))
    assert warning.endswith("so add images without it.")
    assert not any("every" in warning for warning in tag_warnings(tagged("a", ["a", ""] * 60)))


def test_classes_that_always_occur_together() -> None:
    [warning] = tag_warnings(tagged("abc", ["ab"] * 25 + ["c"] * 25))
    assert "a and b (together in 25 of 25 images)" in warning
    [nearly] = tag_warnings(tagged("abc", ["ab"] * 38 + ["a", "b"] + ["c"] * 25))
    assert "a and b (together in 38 of 40 images)" in nearly
    assert tag_warnings(tagged("abc", ["ab"] * 20 + ["a"] * 5 + ["c"] * 30)) == []


def test_two_classes_in_every_image_are_named_once() -> None:
    [warning] = tag_warnings(tagged("abc", ["ab"] * 30 + ["abc"] * 30))
    assert warning.startswith("(nearly) every image shows a (60 of 60 images), b (60 of 60 images):")


def test_rare_and_missing_classes() -> None:
    missing, rare = tag_warnings(tagged("abcd", ["a"] * 30 + ["b"] * 30 + ["c"] * 9))
    assert missing == "there is no image of d: add images of them, or remove the class."
    assert rare.startswith("there are fewer than 10 images of c (9): ")


def test_untagged_and_few_images() -> None:
    untagged, few = tag_warnings(tagged("ab", ["a"] * 15 + ["b"] * 15 + [""] * 3))
    assert untagged.startswith("3 images have no tag and will be read as background only: ")
    assert few.startswith("there are only 33 images: ")


def test_no_tags_at_all_is_an_error_and_not_a_warning() -> None:
    for images in (tagged("a", ["", ""]), tagged("", ["", ""]), tagged("a", [None]), tagged("a", [])):
        assert tag_warnings(images) == []


def test_co_occurrence_is_the_product_of_multi_hot_tags() -> None:
    rng = np.random.default_rng(0)
    hot = rng.random((200, 5)) < 0.4
    images = tagged("abcde", ["".join(np.array(list("abcde"))[row]) for row in hot])
    np.testing.assert_array_equal(count_co_occurrence(images.samples, 5), hot.T.astype(int) @ hot.astype(int))
