"""The data structures that all readers return."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagmask.data.samples import PngMask, Problem, Sample, TaggedImages, evenly_spaced
from tagmask.errors import DataError
from tagmask.text import did_you_mean, pluralize

ANIMALS = ("cat", "cow", "dog")


def png(path: Path) -> PngMask:
    Image.fromarray(np.array([[0, 1, 2, 3, 255]], np.uint8)).save(path)
    return PngMask(path)


def test_restrict_drops_tags_and_mask_pixels_of_other_classes(tmp_path: Path) -> None:
    samples = (Sample("a", "a.png", (1, 3), png(tmp_path / "a.png")), Sample("b", "b.png", None))
    kept = TaggedImages(ANIMALS, samples).restrict(["dog", "cow"])
    assert kept.classes == ("dog", "cow")
    assert kept.samples[0].tags == (1,)
    assert kept.samples[1].tags is None
    assert kept.samples[0].mask is not None
    assert kept.samples[0].mask.read().tolist() == [[0, 0, 2, 1, 255]]
    again = kept.restrict(["cow"])
    assert again.samples[0].tags == ()
    assert again.samples[0].mask is not None
    assert again.samples[0].mask.read().tolist() == [[0, 0, 1, 0, 255]]


def test_restrict_suggests_the_most_similar_class() -> None:
    with pytest.raises(DataError, match="'catt' is not one of the classes: did you mean 'cat'"):
        TaggedImages(ANIMALS, ()).restrict(["catt"])


def test_masks_of_a_restricted_set_share_one_lookup_table(tmp_path: Path) -> None:
    samples = tuple(Sample(str(i), "x", (), PngMask(tmp_path / f"{i}.png")) for i in range(100))
    kept = TaggedImages(ANIMALS, samples).restrict(["dog"])
    assert len(pickle.dumps(kept)) < 100 * 200


def test_a_problem_is_one_sentence() -> None:
    assert str(Problem("a.jpg", "is empty", "remove it")) == "a.jpg: is empty; remove it."
    assert str(Problem("a", "is 'catt'", "correct it: did you mean 'cat'?")).endswith("did you mean 'cat'?")


def test_problem_from_an_error() -> None:
    error = DataError("x/a b.jpg is damaged (it ends; early); replace or remove it.")
    assert Problem.from_error("x/a b.jpg", error) == Problem(
        "x/a b.jpg", "is damaged (it ends; early)", "replace or remove it"
    )
    assert Problem.from_error("x", DataError("no remedy.")).message == "no remedy"


def test_did_you_mean() -> None:
    assert did_you_mean("Cat", ANIMALS) == ": did you mean 'cat'?"
    assert did_you_mean("zebra", ANIMALS) == ": choose from cat, cow, dog"
    assert did_you_mean("zebra", []) == ""


def test_pluralize() -> None:
    assert [pluralize(count, "class") for count in (0, 1, 2000)] == ["0 classes", "1 class", "2,000 classes"]
    assert pluralize(2, "image") == "2 images"


def test_samples_are_evenly_spaced() -> None:
    samples = [Sample(f"{i}", f"{i}.jpg", None) for i in range(12)]
    assert [sample.id for sample in evenly_spaced(samples, 4)] == ["0", "3", "6", "9"]
    assert evenly_spaced(samples, 50) == samples
