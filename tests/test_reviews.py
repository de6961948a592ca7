"""What people have reviewed: its effect on the images, and which stages are made again because of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tagmask.artifacts import digest, read_json, write_json, write_text
from tagmask.compute import Compute
from tagmask.data.samples import PngMask, ReviewedMask, Sample, TaggedImages
from tagmask.data.source import DataSource
from tagmask.data.verify import file_digest
from tagmask.errors import RunError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps
from tagmask.methods.cam import Cam
from tagmask.methods.pseudo_masks import PseudoMasks
from tagmask.pipeline import fingerprint, run_stages, stage_keys, with_added_stages, write_run_record
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.review_folder import ReviewedImage, ReviewFolder
from tagmask.reviews import describe_changed_reviews, reviewed_masks_entry, with_reviews
from tagmask.run_folder import RunFolder, RunSources
from tagmask.stage import ArtifactKind, Method, StageContext

IMAGES = TaggedImages(("a", "b"), tuple(Sample(name, f"{name}.png", (1,), size=(4, 4)) for name in "wxyz"))


class Maps(Method):
    """Write empty maps, and say what the stage sees of reviews."""

    makes: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    text: str = ""

    def run(self, context: StageContext) -> None:
        seen = [(s.id, s.tags, s.reviewed is not None) for s in context.images.samples]
        write_json(context.folder.path / "seen.json", seen)
        for sample in context.images.samples:
            if "maps" in self.makes:
                ResponseMaps(np.zeros(0, int), np.zeros((0, 1, 1)), (4, 4)).save(context.folder.maps_path(sample.id))
            elif not context.folder.mask_path(sample.id).exists():
                write_label_map(context.folder.mask_path(sample.id), np.zeros((4, 4), np.uint8))


class LearnedMaps(Maps):
    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    learns_from_pixels: ClassVar[bool] = True


class OtherMaps(Maps):
    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)


class Masks(Maps):
    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps",)
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)


def recipe(text: str = "") -> Recipe:
    """Return a recipe in which "plain" and "other" do not depend on the pixels, and "late" only through its input."""
    stages = {
        "plain": Maps(), "other": OtherMaps(), "learned": LearnedMaps(text=text), "late": OtherMaps(),
        "masks": Masks(inputs={"maps": "other"}),
    }  # fmt: skip
    return Recipe(stages=stages)


class Messages(Reporter):
    """Keep the messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def info(self, text: str) -> None:
        self.messages.append(text)


def run(folder: Path, images: TaggedImages = IMAGES, chosen: Recipe | None = None, redo: bool = False) -> str:
    """Run the recipe; return what it says that it makes again."""
    chosen, reporter = chosen or recipe(), Messages()
    write_run_record(RunFolder(folder), chosen, images, RunSources(images=DataSource(root="toy")), redo=redo)
    run_stages(chosen, images, RunFolder(folder), compute=Compute(), reporter=reporter, redo=redo)
    return "; ".join(message for message in reporter.messages if message.endswith(" again"))


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name / "seen.json").stat().st_mtime_ns for name in recipe().stages}


@pytest.fixture
def review(tmp_path: Path) -> ReviewFolder:
    return ReviewFolder(tmp_path / "review")


def reviewed(review: ReviewFolder, images: TaggedImages = IMAGES) -> TaggedImages:
    """Return the images with the reviews of the folder, with the digests that `verify_images` fills in."""
    images = with_reviews(images, review.read_reviews())
    samples = tuple(
        replace(s, reviewed=s.reviewed and replace(s.reviewed, digest=mask and file_digest(mask.path.read_bytes())))
        for s, mask in ((sample, sample.reviewed_mask) for sample in images.samples)
    )
    return replace(images, samples=samples)


def labels(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


def test_exactly_the_stages_that_depend_on_masks_are_made_again(tmp_path: Path, review: ReviewFolder) -> None:
    folder = tmp_path / "run"
    assert run(folder) == ""
    before = times(folder)
    review.record("x", "corrected", labels(2), source="test")
    review.record("y", "rejected", None, source="test")
    review.record("z", "draft", labels(2), source="test")
    images = reviewed(review)
    assert run(folder, images) == "1 reviewed mask and 1 rejected mask: makes learned, late, masks again"
    after = times(folder)
    assert {name for name in before if after[name] != before[name]} == {"learned", "late", "masks"}
    for name in ("learned", "late", "masks"):
        seen = {image_id for image_id, _, sees in _seen(folder, name) if sees}
        assert seen == {"x", "y"}, name
    values = {s.id: read_label_map(folder / "masks" / "masks" / f"{s.id}.png").max() for s in IMAGES.samples}
    assert values == {"w": 0, "x": 2, "y": 0, "z": 0}
    assert run(folder, images) == ""
    assert times(folder) == after


def _seen(folder: Path, stage: str) -> list[tuple[str, list[int], bool]]:
    """Return the id and the tags of the images that a stage has got, and whether they were reviewed."""
    return [tuple(sample) for sample in read_json(folder / stage / "seen.json")]  # type: ignore[misc]


def test_methods_that_do_not_depend_on_pixels_do_not_see_them(tmp_path: Path, review: ReviewFolder) -> None:
    review.record("x", "corrected", labels(2), source="test")
    run(tmp_path / "run", reviewed(review))
    assert not any(sees for name in ("plain", "other") for _, _, sees in _seen(tmp_path / "run", name))


def test_the_sentence_counts_what_has_changed(tmp_path: Path, review: ReviewFolder) -> None:
    folder, again = tmp_path / "run", "makes learned, late, masks again"
    review.record("w", "accepted", labels(1), source="test")
    assert run(folder, reviewed(review)) == ""  # the first run makes nothing again
    for image_id in "xyz":
        review.record(image_id, "corrected", labels(1), source="test")
    assert run(folder, reviewed(review)) == f"3 more reviewed masks: {again}"
    review.record("w", "open", None, source="test")
    assert run(folder, reviewed(review)) == f"1 fewer reviewed mask: {again}"
    review.record("x", "corrected", labels(2), source="test")
    assert run(folder, reviewed(review)) == f"changed reviewed masks: {again}"
    review.record("x", "rejected", None, source="test")
    assert run(folder, reviewed(review)) == f"1 fewer reviewed mask and 1 rejected mask: {again}"


def test_corrected_tags_make_every_stage_again(tmp_path: Path, review: ReviewFolder) -> None:
    folder = tmp_path / "run"
    run(folder)
    before = times(folder)
    review.record("y", "rejected", None, source="test", tags=("b", "a"))
    review.record("z", "rejected", None, source="test", tags=("a",))  # as in the data set
    images = reviewed(review)
    expected = "2 rejected masks and 1 tag correction: makes plain, other, learned, late, masks again"
    assert run(folder, images) == expected
    assert not before.items() & times(folder).items()
    assert _seen(folder, "plain") == [("w", [1], False), ("x", [1], False), ("y", [1, 2], False), ("z", [1], False)]
    assert fingerprint(images) == fingerprint(IMAGES)  # that of the data set
    review.record("y", "open", None, source="test")
    assert run(folder, reviewed(review)).endswith(
        "1 fewer rejected mask and 1 fewer tag correction: makes plain, other, learned, late, masks again"
    )


def test_other_changes_need_redo_although_reviews_have_changed_too(tmp_path: Path, review: ReviewFolder) -> None:
    folder = tmp_path / "run"
    run(folder)
    review.record("x", "corrected", labels(2), source="test")
    with pytest.raises(RunError, match=r"learned was made with other settings \(text '' → 'new'\).* add --redo"):
        run(folder, reviewed(review), recipe("new"))
    other = replace(IMAGES, samples=(replace(IMAGES.samples[0], digest="changed"), *IMAGES.samples[1:]))
    with pytest.raises(RunError, match="other images or tags"):
        run(folder, reviewed(review, other))
    # late has the changed input, so it is not made again because of the review
    assert run(folder, reviewed(review), recipe("new"), redo=True) == "1 reviewed mask: makes masks again"


def test_added_stages_stay_when_reviews_change(tmp_path: Path, review: ReviewFolder) -> None:
    folder = RunFolder(tmp_path / "run")
    first = Recipe(stages={"cam": Cam()})
    extended = Recipe(stages={**first.stages, "pseudo_masks": PseudoMasks()})
    write_text(folder.recipe_path, extended.to_yaml())
    for name, key in stage_keys(extended, IMAGES, folder).items():
        folder.stage(name).begin(key, Compute())
    review.record("x", "corrected", labels(2), source="test", tags=("b",))
    images = reviewed(review)
    assert list(with_added_stages(first, images, folder).stages) == ["cam", "pseudo_masks"]
    changed = replace(images, samples=images.samples[:2])
    assert list(with_added_stages(first, changed, folder).stages) == ["cam"]


def test_without_reviews_the_keys_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """Finished runs stay finished."""
    keys = stage_keys(recipe(), IMAGES, RunFolder(tmp_path))
    assert {tuple(sorted(key)) for key in keys.values()} == {("images", "inputs", "method", "seed", "settings")}
    assert keys["late"]["inputs"] == {"maps": digest(keys["learned"])}
    assert keys["late"]["images"] == digest([("a", "b"), [(s.id, s.tags, s.size, s.digest) for s in IMAGES.samples]])


def test_a_resumed_stage_gets_its_reviewed_masks(tmp_path: Path, review: ReviewFolder) -> None:
    folder = tmp_path / "run"
    review.record("x", "corrected", labels(2), source="test")
    images = reviewed(review)
    run(folder, images)
    mask = folder / "masks" / "masks" / "x.png"
    expected = mask.read_bytes()
    mask.unlink()
    assert run(folder, images) == ""
    assert mask.read_bytes() == expected
    assert read_json(folder / "masks" / "stage.json")["status"] == "done"


def test_reviews_replace_tags_and_earlier_reviewed_masks() -> None:
    earlier = ReviewedMask(PngMask(Path("earlier.png")))
    images = replace(IMAGES, samples=tuple(replace(sample, reviewed=earlier) for sample in IMAGES.samples))
    reviews = {
        "w": ReviewedImage(Path("new.png")),
        "x": ReviewedImage(None, True, ("b", "unknown")),
        "y": ReviewedImage(Path("new.png"), tags=()),
        "z": ReviewedImage(tags=("b",)),
        "not of this run": ReviewedImage(is_rejected=True),
    }
    w, x, y, z = with_reviews(images, reviews).samples
    assert (w.reviewed_mask, w.tags, w.data_tags) == (PngMask(Path("new.png")), (1,), (1,))
    assert (x.reviewed_mask, x.tags, x.data_tags) == (None, (2,), (1,))
    assert x.reviewed is not None
    assert (y.tags, y.data_tags) == ((), (1,))
    assert (z.reviewed, z.tags, z.data_tags) == (earlier, (2,), (1,))
    assert with_reviews(images, {}) is images


def test_the_description_survives_a_changed_record() -> None:
    new = {"reviewed": reviewed_masks_entry(with_reviews(IMAGES, {"w": ReviewedImage(is_rejected=True)}))}
    for old in ({"reviewed": 3}, {"reviewed": {"rejected": "many"}}, {"reviewed": None}):
        assert describe_changed_reviews([(old, new)]) == "1 rejected mask"
    assert describe_changed_reviews([]) == ""
