"""A finished run with known maps and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tagmask.artifacts import write_json
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.evaluate import Evaluation, evaluate_run
from tagmask.image_scores import update_image_scores
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure.image_score import ImageScore
from tagmask.progress import Reporter
from tagmask.recipe import Recipe
from tagmask.report.collect import collect_report
from tagmask.report.content import Report
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder

SIZE = (40, 48)


def maps_up_to(column: int, tags: tuple[int, ...]) -> ResponseMaps:
    """Return maps whose first class has activation 0.75 left of a column (of the 10×12 cells); all else is 0."""
    maps = np.zeros((len(tags), 10, 12), np.float32)
    maps[:1, :, :column] = 0.75
    return ResponseMaps(np.array(tags, int), maps, SIZE)


def labels_up_to(column: int, tags: tuple[int, ...]) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[:, :column] = tags[0] if tags else 0
    return labels


def write_stage_record(stage: StageFolder, num_images: int = 8) -> None:
    record = {"status": "done", "key": {}, "versions": {"torch": "2.6"}, "seconds": 4.0, "num_images": num_images}
    write_json(stage.record_path, record)


class FakeRun:
    """A finished run.

    Args:
        folder: where to write it.
        images: the training images.
        methods: the method of each stage.
        maps: for each stage that makes maps, the column up to which they are foreground.
        masks: for each stage that makes masks, the column up to which they are foreground.
        thresholds: for each stage that cuts maps, its threshold.json.
    """

    def __init__(
        self,
        folder: Path,
        images: TaggedImages,
        methods: dict[str, str],
        maps: dict[str, int],
        masks: dict[str, int],
        thresholds: dict[str, dict[str, object]],
    ) -> None:
        self.folder, self.images = RunFolder(folder), images
        self.recipe = Recipe.model_validate({"stages": {name: {"method": method} for name, method in methods.items()}})
        for name in methods:
            stage = self.folder.stage(name)
            write_stage_record(stage)
            for sample in images.samples:
                tags = sample.tags or ()
                if name in maps:
                    maps_up_to(maps[name], tags).save(stage.maps_path(sample.id))
                if name in masks:
                    write_label_map(stage.mask_path(sample.id), labels_up_to(masks[name], tags))
            if name in thresholds:
                write_json(stage.threshold_path, thresholds[name])

    def evaluation(self) -> Evaluation:
        return evaluate_run(self.recipe, self.folder, self.images, None, Compute(), Reporter(None))

    def report(self, held_out: TaggedImages | None = None) -> Report:
        scores: list[ImageScore] = []
        if self.recipe.latest("masks") and all(self.folder.stage(name).is_done for name in self.recipe.stages):
            scores = update_image_scores(self.recipe, self.folder, self.images, Compute(), Reporter(None))
        return collect_report(self.recipe, self.folder, self.images, held_out, self.evaluation(), scores)
