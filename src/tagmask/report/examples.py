"""Collect the example images of a report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagmask.data.images import is_file, read_image
from tagmask.data.samples import PngMask, Sample, TaggedImages, evenly_spaced
from tagmask.evaluate import held_out_folder
from tagmask.maps import ResponseMaps
from tagmask.recipe import Recipe
from tagmask.report.content import Example, Picture
from tagmask.report.drawing import draw_mask, resize_picture
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder

NUM_EXAMPLES, NUM_WORST, NUM_HELD_OUT = 10, 6, 4
MAX_MAPS = 6  # response maps that are shown of one image, the strongest ones


@dataclass(frozen=True)
class ExampleStages:
    """The stages whose results the examples show; None where the run has no such stage.

    Attributes:
        folder: the run folder.
        maps: the response maps that became the final masks.
        cut_stage: the response maps that were last cut at one threshold for all images.
        cut_threshold: this threshold.
        refined: the last masks before the final ones.
        final: the final masks.
    """

    folder: RunFolder
    maps: StageFolder | None = None
    cut_stage: StageFolder | None = None
    cut_threshold: float = 0.0
    refined: StageFolder | None = None
    final: StageFolder | None = None

    @classmethod
    def of_run(cls, recipe: Recipe, folder: RunFolder) -> ExampleStages:
        """Return the stages of a run."""
        maskers = recipe.stages_making("masks")
        maps = recipe.maps_behind(maskers[-1]) if maskers else recipe.latest("maps")
        cut_stage, cut_threshold = None, 0.0
        for name in maskers:
            cut, record = recipe.maps_behind(name), folder.stage(name).read_threshold_if_any()
            if cut and record and not record.per_image:
                cut_stage, cut_threshold = folder.stage(cut), record.threshold
        return cls(
            folder,
            maps=folder.stage(maps) if maps else None,
            cut_stage=cut_stage,
            cut_threshold=cut_threshold,
            refined=folder.stage(maskers[-2]) if len(maskers) > 1 else None,
            final=folder.stage(maskers[-1]) if maskers else None,
        )

    def captions(self, recommended: str | None = None) -> dict[str, str]:
        """Return the caption of each column; the recommended stage is marked."""
        captions = {"image": ""}
        if self.maps:
            captions["map"] = f"response maps of {self.maps.name}; red is the strongest activation"
        if self.cut_stage:
            captions["cut map"] = f"maps of {self.cut_stage.name}, cut at the threshold {self.cut_threshold:.2f}"
        for column, stage in (("refined", self.refined), ("final", self.final)):
            if stage:
                captions[column] = f"masks of {stage.name}" + ", recommended" * (stage.name == recommended)
        return {**captions, "ground truth": "the correct mask, given for comparison"}

    def example(self, sample: Sample, note: str = "") -> Example:
        """Return an image with the results of all stages."""
        image, maps = read_image(sample.image), []
        label_maps: dict[str, np.ndarray] = {}
        files: dict[str, str] = {}
        if self.maps:
            maps = draw_maps(
                image, self.maps.read_maps(sample.id), self._relative(self.maps.file_address("maps", sample.id))
            )
        if self.cut_stage:
            label_maps["cut map"] = self.cut_stage.read_maps(sample.id).label_map(self.cut_threshold)
        for column, stage in (("refined", self.refined), ("final", self.final)):
            if stage:
                files[column] = stage.file_address("masks", sample.id)
                label_maps[column] = stage.read_mask(sample.id)
        pictures = {"map": maps} if self.maps else {}
        return Example(sample.id, note, {**pictures, **self._masks(sample, image, label_maps, files)}, sample.tags)

    def held_out_examples(self, masks: StageFolder, samples: Sequence[Sample]) -> list[Example]:
        """Return examples of the masks that the final network predicted without tags."""
        examples = []
        for sample in evenly_spaced(samples, NUM_HELD_OUT):
            image, files = read_image(sample.image), {"final": masks.file_address("masks", sample.id)}
            pictures = self._masks(sample, image, {"final": masks.read_mask(sample.id)}, files)
            examples.append(Example(sample.id, "held-out image, segmented without its tags", pictures, sample.tags))
        return examples

    def _masks(
        self, sample: Sample, image: np.ndarray, label_maps: Mapping[str, np.ndarray], files: Mapping[str, str]
    ) -> dict[str, list[Picture]]:
        """Return the pictures of the image, of label maps and of the ground truth, if there is one."""
        pictures = {"image": [Picture(resize_picture(image), file=self._relative(sample.image))]}
        for column, labels in label_maps.items():
            file = self._relative(files[column]) if column in files else ""
            pictures[column] = [Picture(draw_mask(image, labels), file=file)]
        if sample.mask is not None:
            file = self._relative(sample.mask.path) if isinstance(sample.mask, PngMask) else ""
            pictures["ground truth"] = [Picture(draw_mask(image, sample.mask.read()), file=file)]
        return pictures

    def _relative(self, path: str | Path) -> str:
        return relative_path(path, self.folder.path)


def relative_path(path: str | Path, folder: Path) -> str:
    """Return a path relative to a folder, with slashes; empty if it is a URL, in a shard or on another drive."""
    if not is_file(path):
        return ""
    try:
        return Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix()
    except ValueError:
        return ""


def held_out_examples(stages: ExampleStages, folder: RunFolder, held_out: TaggedImages) -> list[Example]:
    """Return examples of held-out images; none if no network has segmented them."""
    masks = held_out_folder(folder, held_out)
    return stages.held_out_examples(masks, held_out.samples) if masks.is_done else []


def draw_maps(image: np.ndarray, maps: ResponseMaps, file: str) -> list[Picture]:
    """Return one picture per class, in the order of their ids; of many classes, those with the most activation."""
    strongest = np.argsort(-maps.maps.sum(axis=(1, 2), dtype=np.float64), kind="stable")[:MAX_MAPS]
    pictures = []
    for k in sorted(strongest.tolist()):
        own = ResponseMaps(maps.classes[k : k + 1], maps.maps[k : k + 1], maps.size)
        pictures.append(Picture(resize_picture(np.array(own.figure(image))), int(maps.classes[k]), file))
    return pictures
