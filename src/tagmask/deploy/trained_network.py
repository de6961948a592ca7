"""`TrainedNetwork`: the segmentation network of a run, with what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

from tagmask.artifacts import RUN_AGAIN, read_model
from tagmask.evaluate import Evaluation
from tagmask.measure import SegmentationReport
from tagmask.models.saved_network import CONFIG_FILE
from tagmask.models.segmenter import SegmenterConfig
from tagmask.recipe import Recipe
from tagmask.stage_folder import StageFolder


@dataclass(frozen=True)
class TrainedNetwork:
    """The segmentation network of a finished stage.

    Attributes:
        stage: the folder of the stage.
        recipe: the recipe of the run.
        evaluation: what was measured.
    """

    stage: StageFolder
    recipe: Recipe
    evaluation: Evaluation

    def read_config(self) -> SegmenterConfig:
        """Read config.json. Raises RunError if the file is missing or damaged."""
        return read_model(self.stage.path / CONFIG_FILE, SegmenterConfig, remedy=RUN_AGAIN)

    def scores(self) -> dict[str, SegmentationReport]:
        """Return the scores of the network's masks, by "training images (NAME)" and "held-out images (NAME)"."""
        by_stage: dict[str, dict[str, SegmentationReport]] = {}
        for entry, report in self.evaluation.scores.items():
            stage, _, images = entry.removesuffix(")").partition(" (")
            by_stage.setdefault(stage, {})[images] = report
        own = by_stage.pop(self.stage.name, {})
        training = {images for others in by_stage.values() for images in others}  # only networks see held-out images
        return {f"{'training' if name in training else 'held-out'} images ({name})": own[name] for name in own}

    def initial_weights(self) -> str:
        """Return where the weights of the encoder came from first: "pretrained", "none" or the path of a file."""
        name = self.stage.name
        while True:
            method = self.recipe.stages[name]
            initial = method.initial_weights()
            if initial is not None and initial.source != "classifier":
                return initial.source
            name = method.inputs["classifier"]
