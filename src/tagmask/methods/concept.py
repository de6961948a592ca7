"""Concept: SAM 3 is asked for some of the tags by their words, and the response maps judge what it finds.

Carion et al., "SAM 3: Segment Anything with Concepts", arXiv 2511.16719. That the maps judge is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from tagmask.artifacts import atomic_write, read_bytes
from tagmask.data.loading import load_image_batches
from tagmask.data.samples import TaggedImages
from tagmask.errors import RecipeError
from tagmask.label_map import MAX_BYTES, read_label_map, write_label_map
from tagmask.large_images import reduced_size
from tagmask.maps import ResponseMaps
from tagmask.models.concept_finder import ConceptFinder
from tagmask.models.weights_license import report_restriction, restriction_of_hub_model
from tagmask.refine.concepts import apply_instances, instances_that_pass
from tagmask.stage import ArtifactKind, MakeFiles, Method, StageContext
from tagmask.text import did_you_mean, join_first_names, shorten

Prompt = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Concept(Method):
    """Replace classes of the masks by what SAM 3 finds with their words, where the response maps agree.

    SAM 3 is asked for those tags of an image that are in `classes`. An instance counts if its score is above
    `min_score`, and if no other tag of the image has a higher mean activation in it. In the new mask,

    - a class that is asked for and has such instances consists of them, and of no other pixels: its other pixels in the
      old mask become background;
    - all other classes keep their pixels of the old mask, and so do background and ignored pixels, except where there
      is an instance: it wins over every old pixel;
    - where instances overlap, the higher score wins.
    """

    needs: ClassVar[tuple[ArtifactKind, ...]] = ("maps", "masks")
    makes: ClassVar[tuple[ArtifactKind, ...]] = ("masks",)

    classes: tuple[str, ...] = Field(
        (), description="the classes that SAM 3 is asked for, at least one; the others keep their pixels"
    )
    prompts: dict[str, Prompt] = Field(
        {}, description="for a class, the words that SAM 3 is asked for in place of the name, e.g. {crane: crane bird}"
    )
    min_score: float = Field(0.5, ge=0, lt=1, description="an instance counts if its score is above this, from 0 to 1")
    sam: str = Field(
        "facebook/sam3",
        description="SAM 3 for transformers, on the Hugging Face Hub (owner/name) or in a local folder",
    )

    @model_validator(mode="after")
    def _prompts_are_of_classes(self) -> Self:
        for name in self.prompts:
            if name not in self.classes:
                raise ValueError(f"prompts has {shorten(name)!r}, which is not in classes: add it there")
        return self

    def check_images(self, images: TaggedImages) -> None:
        self.prompts_by_id(images.classes)

    def prompts_by_id(self, names: Sequence[str]) -> dict[int, str]:
        """Return the words that SAM 3 is asked for, by class id.

        Args:
            names: all classes of the images.

        Raises:
            RecipeError: no class is asked for, or one that does not exist.
        """
        if not self.classes:
            raise RecipeError(
                "the method concept has no classes: name those that SAM 3 is asked for, e.g. "
                f"classes: [{names[0]}]; choose from {join_first_names(names, 20)}."
            )
        for name in self.classes:
            if name not in names:
                raise RecipeError(
                    f"{shorten(name)!r} in the classes of the method concept is not one of the classes of the images"
                    f"{did_you_mean(name, names)}"
                )
        return {names.index(name) + 1: self.prompts.get(name, name) for name in self.classes}

    def run(self, context: StageContext) -> None:
        prompts = self.prompts_by_id(context.images.classes)
        if any(prompts.keys() & set(sample.tags or ()) for sample in context.images.samples):
            restriction = restriction_of_hub_model(self.sam, "sam3")
            report_restriction(restriction, context.folder.path, context.compute, context.reporter)
        context.make_files("masks", self.prepare_masks)

    def prepare_masks(self, context: StageContext) -> MakeFiles:
        """Return the function that makes the masks; SAM 3 is loaded when the first image needs it."""
        return partial(self._write_missing_masks, cache(partial(self._load_sam, context)))

    def _load_sam(self, context: StageContext) -> ConceptFinder:
        context.reporter.info(f"  loading {self.sam}; the first time it is downloaded, unless it is a local folder")
        prompts = self.prompts_by_id(context.images.classes)
        return ConceptFinder(self.sam, prompts, self.min_score, context.compute.device)

    def _write_missing_masks(self, load_sam: Callable[[], ConceptFinder], context: StageContext) -> None:
        prompts = self.prompts_by_id(context.images.classes)
        path = context.folder.mask_path
        asked = [[sample] for sample in context.images.samples if prompts.keys() & set(sample.tags or ())]
        others = [[sample] for sample in context.images.samples if not prompts.keys() & set(sample.tags or ())]
        for (sample,) in context.pending_shard(others, path):
            with atomic_write(path(sample.id)) as temporary:
                temporary.write_bytes(read_bytes(context.inputs["masks"].mask_path(sample.id), MAX_BYTES))
        if not (groups := context.pending_shard(asked, path)):
            return
        find = load_sam()
        with context.reporter.progress("masks of SAM 3", len(groups)) as advance:
            for (sample,), pixels in load_image_batches(groups, context.compute):
                maps = ResponseMaps.load(context.inputs["maps"].maps_path(sample.id))
                tags = [class_id for class_id in maps.classes.tolist() if class_id in prompts]
                instances = find(pixels[0].permute(1, 2, 0).numpy(), tags)
                counting = instances_that_pass(instances, maps.resized(reduced_size(maps.size)))
                labels = read_label_map(context.inputs["masks"].mask_path(sample.id), size=maps.size)
                write_label_map(path(sample.id), apply_instances(labels, counting))
                advance(1)
