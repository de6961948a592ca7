"""Scores of every training image of a run without ground truth, kept in scores.csv of the run folder."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from joblib import delayed
from pydantic import BaseModel, ValidationError

import tagmask
from tagmask.artifacts import digest, read_json, write_json, write_text
from tagmask.data.images import read_image
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.verify import ground_truth_fingerprint
from tagmask.errors import RunError
from tagmask.evaluate import read_ground_truth
from tagmask.measure.image_score import ImageScore, score_image
from tagmask.pipeline import fingerprint
from tagmask.progress import Reporter, run_in_workers
from tagmask.refine.image_threshold import expected_threshold, mean_root_num_tags
from tagmask.reviews import corrected_tags_entry
from tagmask.run_folder import RunFolder
from tagmask.stage_folder import StageFolder
from tagmask.text import did_you_mean

if TYPE_CHECKING:
    from tagmask.compute import Compute
    from tagmask.recipe import Recipe

SCORES_FILE = "scores.csv"
_CACHE_FILE = ".scores.json"  # the scores, and a digest of their inputs
_MAX_CACHE_BYTES = 2**30  # of millions of images

_SMALLEST_FIRST = ("color_contrast", "foreground", "miou")  # columns in which a small value is suspicious
_Fraction = float | None  # None: NaN, which JSON lacks


class _Cache(BaseModel):
    key: str
    scores: list[
        tuple[
            str, _Fraction, _Fraction, _Fraction, _Fraction, _Fraction, _Fraction, _Fraction, tuple[int, ...], int,
            int, _Fraction,
        ]
    ]  # fmt: skip


def update_image_scores(
    recipe: Recipe,
    folder: RunFolder,
    images: TaggedImages,
    compute: Compute,
    reporter: Reporter,
    *,
    stage: str | None = None,
) -> list[ImageScore]:
    """Score the masks of all training images, or read the scores if nothing has changed since they were written.

    A reviewed mask has no doubt. Writes `scores.csv`. Every process calls it; the main process does the work, in worker
    processes.

    Args:
        recipe: the stages.
        folder: the run folder.
        images: the training images.
        compute: device and processes.
        reporter: prints messages and progress.
        stage: the stage whose masks are scored; None: the last that makes masks.

    Returns:
        The scores, in the order of the images.

    Raises:
        RunError: no stage makes masks, or a stage is not finished.
    """
    sources = _ScoreSources.of_run(recipe, folder, images, stage)
    cache, table = folder.path / _CACHE_FILE, folder.path / SCORES_FILE
    inputs = [sources.key(), fingerprint(images), ground_truth_fingerprint(images), tagmask.__version__]
    tags = corrected_tags_entry(images)
    key = digest(inputs if tags is None else [*inputs, tags])
    scores = _read_cached(cache, key)
    compute.barrier()  # every process has read the scores before the main process writes them
    if compute.is_main_process:
        if scores is None:
            scores = _score_images(sources, images, compute, reporter)
            write_json(cache, {"key": key, "scores": [list(score.without_nan().values()) for score in scores]})
        content = format_csv(sort_scores(_without_doubt_about_reviewed_masks(scores, images)), images.classes)
        if not table.exists() or table.read_text(encoding="utf-8", errors="replace") != content:
            write_text(table, content)
    compute.barrier()
    scores = scores if scores is not None else _read_cached(cache, key) or []
    return _without_doubt_about_reviewed_masks(scores, images)


def _without_doubt_about_reviewed_masks(scores: Sequence[ImageScore], images: TaggedImages) -> list[ImageScore]:
    """Return the scores, those of images with a reviewed mask with the doubt 0.

    The scores in the cache are those before, so that a review, which changes little, does not make them again.
    """
    reviewed = {sample.id for sample in images.samples if sample.reviewed_mask}
    return [score._replace(doubt=0.0) if score.image in reviewed else score for score in scores]


@dataclass(frozen=True)
class _ScoreSources:
    """The stages that the scores are computed from.

    Attributes:
        masks: the folders of the stages that made masks from each other, in the order in which they ran.
        judged: the index in `masks` of the stage whose masks are scored.
        maps: the folder of the response maps that the first of the masks were cut from, if there is one.
        thresholds: the threshold at which they were cut, by number of tags; empty if it is not known.
        num_labels: number of classes and background.
    """

    masks: tuple[StageFolder, ...]
    judged: int
    maps: StageFolder | None
    thresholds: dict[int, float]
    num_labels: int

    @classmethod
    def of_run(cls, recipe: Recipe, folder: RunFolder, images: TaggedImages, stage: str | None = None) -> _ScoreSources:
        """Return the sources for the masks of a stage; later masks that were made from them are among them."""
        chains = [_chain_of_masks(recipe, name) for name in recipe.stages_making("masks")]
        chains = [chain for chain in chains if stage is None or stage in chain]
        if not chains:
            raise RunError(f"the run {folder.path} has no {f'masks of {stage!r}' if stage else 'masks'} to score.")
        chain = chains[-1]
        maps = recipe.maps_behind(chain[0])
        for name in [*chain, *([maps] if maps else [])]:
            if not folder.stage(name).is_done:
                raise RunError(
                    f"stage {name!r} of {folder.path} is not finished: run the original command again first."
                )
        return cls(
            masks=tuple(folder.stage(name) for name in chain),
            judged=chain.index(stage) if stage else len(chain) - 1,
            maps=folder.stage(maps) if maps else None,
            thresholds=_thresholds(folder.stage(chain[0]), images),
            num_labels=len(images.classes) + 1,
        )

    def key(self) -> list[object]:
        """Return everything in the run folder that the scores depend on."""
        stages = [*self.masks, *([self.maps] if self.maps else [])]
        keys = [(stage.name, key) for stage in stages if (key := stage.read_key_if_any()) is not None]
        return [keys, self.judged, sorted(self.thresholds.items())]

    def score(self, sample: Sample) -> ImageScore:
        """Score the mask of one image. Raises RunError or DataError if a file is missing, damaged or does not fit."""
        tags = sample.tags or ()
        masks = [stage.read_mask(sample.id) for stage in self.masks]
        height, width = masks[self.judged].shape
        try:
            return score_image(
                read_image(sample.image), masks, tags, self.num_labels, judged=self.judged, image_id=sample.id,
                maps=self.maps.read_maps(sample.id) if self.maps else None,
                threshold=self.thresholds.get(len(tags), math.nan),
                target=read_ground_truth(sample, (height, width)) if sample.mask else None,
            )  # fmt: skip
        except (ValueError, IndexError) as error:
            raise RunError(
                f"the masks and maps of image {sample.id} do not fit each other ({error}): remove the folder "
                f"{self.masks[0].path} and run the original command again."
            ) from error


def _chain_of_masks(recipe: Recipe, stage: str) -> list[str]:
    """Return the stages whose masks became those of a stage, one after the other, and last the stage itself."""
    source = recipe.stages[stage].inputs.get("masks")
    return [*(_chain_of_masks(recipe, source) if source else []), stage]


def _thresholds(stage: StageFolder, images: TaggedImages) -> dict[int, float]:
    """Return the threshold at which a stage cut maps, by the number of tags of the image; the expected one if each
    image has its own."""
    record = stage.read_threshold_if_any()
    if record is None:
        return {}
    numbers = {len(sample.tags or ()) for sample in images.samples}
    if not record.per_image:
        return dict.fromkeys(numbers, record.threshold)
    typical = mean_root_num_tags(sample.tags for sample in images.samples)
    return {number: expected_threshold(record.threshold, number, typical) for number in numbers}


def _score_images(
    sources: _ScoreSources, images: TaggedImages, compute: Compute, reporter: Reporter
) -> list[ImageScore]:
    if compute.engine == "ray":
        from tagmask.engines import ray

        work = partial(_score_chunk, sources)
        with reporter.progress("scoring the masks", len(images)) as advance:
            chunks = ray.map_chunks(lambda workers: partial(work, workers), images.samples, advance, compute.actors)
            return [score for chunk in chunks for score in chunk]
    return _score_chunk(sources, compute.workers, images.samples, reporter)


def _score_chunk(
    sources: _ScoreSources, workers: int, samples: Sequence[Sample], reporter: Reporter | None = None
) -> list[ImageScore]:
    jobs = (delayed(sources.score)(sample) for sample in samples)
    return run_in_workers("scoring the masks", jobs, len(samples), workers, (reporter or Reporter()).progress)


def sort_scores(scores: Iterable[ImageScore], column: str = "doubt") -> list[ImageScore]:
    """Return the scores with the images first that should be looked at first.

    Args:
        scores: the scores.
        column: a field of `ImageScore`. Its largest values come first; of "color_contrast", "foreground" and "miou" the
            smallest.

    Raises:
        RunError: there is no such column.
    """
    columns = ImageScore._fields[1:]
    if column not in columns:
        raise RunError(f"there is no column {column!r} to sort by{did_you_mean(column, columns)}")

    def place(score: ImageScore) -> float:
        value = getattr(score, column)
        number = float(len(value) if isinstance(value, tuple) else value)
        return math.inf if math.isnan(number) else number if column in _SMALLEST_FIRST else -number

    return sorted(scores, key=place)


def format_csv(scores: Iterable[ImageScore], classes: Sequence[str]) -> str:
    """Return the scores as CSV, one image per line; NaN becomes an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(ImageScore._fields)
    for score in scores:
        row = score.to_json(classes)
        row["missing_tags"] = "; ".join(row["missing_tags"])
        writer.writerow([round(value, 4) if isinstance(value, float) else value for value in row.values()])
    return buffer.getvalue()


def _read_cached(path: Path, key: str) -> list[ImageScore] | None:
    """Read the scores of an earlier call; None if they were computed from something else, or cannot be read."""
    try:
        cache = _Cache.model_validate(read_json(path, _MAX_CACHE_BYTES))
    except (RunError, ValidationError):
        return None
    if cache.key != key:
        return None
    return [ImageScore._make(math.nan if value is None else value for value in row) for row in cache.scores]
