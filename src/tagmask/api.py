"""The Python API: `tagmask.run` and `tagmask.load`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console

from tagmask.artifacts import digest, read_json, write_json, write_text
from tagmask.compute import Compute, Precision
from tagmask.data.check import verify_images
from tagmask.data.new_images import find_new_images
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.source import DataSource, in_classes
from tagmask.errors import DataError, RecipeError, RunError
from tagmask.evaluate import Evaluation, evaluate_maps, evaluate_run, latest, score_masks, segment_held_out
from tagmask.maps import ResponseMaps
from tagmask.measure import SegmentationReport
from tagmask.outputs.folder import target_of, write_outputs
from tagmask.pipeline import (
    RECIPE,
    RECORD,
    RUN,
    check_run_folder,
    check_stages,
    is_done,
    run_stages,
    with_added_stages,
    write_run_record,
)
from tagmask.predict import Predictor, predict_folder
from tagmask.progress import Reporter
from tagmask.recipe import Recipe, load_recipe, makers, recipe_with_stage
from tagmask.report.collect import collect_report, collect_threshold_report
from tagmask.report.page import write_report
from tagmask.stage import ARTIFACT_NAMES, ArtifactKind, maps_path, mask_path
from tagmask.text import did_you_mean, join_names

EVALUATION = "evaluation.json"
REPORT = "report.html"
THRESHOLDS = "thresholds.html"


@dataclass(frozen=True)
class Run:
    """A run folder: what a recipe made of a set of tagged images.

    Attributes:
        folder: where it is.
        recipe: the stages it went through.
        images, held_out: where the data came from.
    """

    folder: Path
    recipe: Recipe
    images: DataSource
    held_out: DataSource | None
    compute: Compute

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / REPORT

    @property
    def masks(self) -> Path:
        """The folder of the final masks of the training images, one indexed PNG each."""
        return self._stage("masks") / "masks"

    @property
    def maps_folder(self) -> Path:
        """The folder of the last response maps, one safetensors file a training image."""
        return self._stage("maps") / "maps"

    @cached_property
    def predictor(self) -> Predictor:
        """The final network. Raises RunError if the recipe trains none or the run has not come so far."""
        return Predictor.load(self._stage("segmenter"), self.compute)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    def predict(self, image: np.ndarray, tags: Sequence[str] | None = None) -> np.ndarray:
        """Segment one image [H, W, 3] uint8: a label map [H, W] uint8. See `Predictor.predict`."""
        return self.predictor.predict(image, tags)

    def maps(self, id: str) -> ResponseMaps:
        """The response maps of a training image, as the last stage that makes maps left them.

        Raises RunError where there are none of this id: an image's path in its set, without suffix.
        """
        file = maps_path(stage := self._stage("maps"), Sample(id, "", None))
        if is_done(stage / RECORD) and not file.exists():
            raise RunError(
                f"{self.folder} has no image {id!r}; ids are the images' paths in their set, without suffix."
            )
        return ResponseMaps.load(file)

    def mask_of(self, id: str) -> Path:
        """The final mask's file of a training image."""
        return mask_path(self._stage("masks"), Sample(id, "", None))

    def evaluate(self, *, quiet: bool = False) -> Evaluation:
        """Measure the run where truth is known; writes evaluation.json and the report anew."""
        reporter = _reporter(self.compute, quiet)
        return _measure_and_report(self, *read_data(self, self._skip_bad, reporter), reporter)

    def thresholds(
        self, data: DataSource | None = None, *, out: str | Path | None = None, quiet: bool = False
    ) -> Evaluation:
        """Measure all the run's response maps at every threshold; draws their curves on one page.

        Args:
            data: where the truth of the training images is; None: in the data that the run was made from.
            out: the page; None: thresholds.html in the run folder.

        Raises:
            DataError: no training image's truth is known. RunError: the run has no maps, or has not made them yet.
        """
        reporter = _reporter(self.compute, quiet)
        self._stage("maps")
        images = _verified(data or self.images, self._skip_bad or data is not None, self.compute, reporter)
        if data is not None:
            images = in_classes(images, data, self.images.read().classes)
        evaluation = evaluate_maps(self.recipe, self.folder, images, self.compute, reporter)
        if self.compute.is_main_process:
            write_report(
                collect_threshold_report(self.recipe, self.folder, evaluation), Path(out or self.folder / THRESHOLDS)
            )
        self.compute.barrier()
        return evaluation

    def add(
        self,
        method: str,
        settings: Iterable[str] = (),
        *,
        name: str | None = None,
        redo: bool = False,
        quiet: bool = False,
    ) -> Run:
        """Carry out one more stage on what the run has made, e.g. "infercam" for other maps.

        Args:
            method: a module of `tagmask.methods`, or the dotted name of any other.
            settings: "setting=value" of the stage.
            name: of the stage; None: the last part of the method's.
            redo: where the run has a stage of this name with other settings, make it anew, and what follows from it.

        Returns:
            The run with this stage; the report shows it, too.

        Raises:
            RecipeError: no such method or setting, or the run lacks what it needs.
            RunError: the run has a stage of this name with other settings, and `redo` was not said.
        """
        reporter = _reporter(self.compute, quiet)
        longer = replace(self, recipe=recipe_with_stage(self.recipe, method, settings, name))
        for stage in self.recipe.stages:
            same = longer.recipe.stages[stage] == self.recipe.stages[stage]
            if same and not is_done(self.folder / stage / RECORD):
                raise RunError(f"stage {stage!r} of {self.folder} is not finished: the command that began it goes on.")
        read = read_data(longer, self._skip_bad, reporter)
        check_stages(longer.recipe, read[0], self.folder, redo)
        run_stages(longer.recipe, read[0], self.folder, compute=self.compute, reporter=reporter, redo=redo)
        if self.compute.is_main_process:
            write_text(self.folder / RECIPE, longer.recipe.to_yaml())
        _measure_and_report(longer, *read, reporter)
        return longer

    def export(self, out: str | Path, form: str = "png", *, stage: str | None = None, quiet: bool = False) -> Path:
        """Write the masks of the training images for other tools.

        Args:
            form: "png" (indexed, with a legend), "coco" (RLE), "coco-polygons" or "overlays".
            stage: whose masks; None: the last stage's.

        Returns:
            The file or folder written.
        """
        if stage is not None and "masks" not in getattr(self.recipe.stages.get(stage), "makes", ()):
            makers = [name for name, method in self.recipe.stages.items() if "masks" in method.makes]
            raise RunError(f"stage {stage!r} of {self.folder} makes no masks{did_you_mean(stage, makers)}")
        folder = self.folder / stage if stage else self._stage("masks")
        target = target_of(Path(out), form)
        if target.exists():
            raise RunError(f"{target} exists already: remove it, or choose another --out.")
        images = self.images.read()
        samples = [s for s in images.samples if mask_path(folder, s).exists()]
        with _reporter(self.compute, quiet).progress(f"writing {form}", len(samples)) as advance:
            return write_outputs(samples, lambda s: mask_path(folder, s), images.classes, Path(out), form, advance)

    def predict_files(
        self,
        paths: Sequence[str | Path],
        out: str | Path,
        *,
        tags: str | Path | None = None,
        also: Iterable[str] = (),
        skip_bad: bool = False,
        redo: bool = False,
        quiet: bool = False,
    ) -> dict[str, Path]:
        """Segment images and folders of images: `out`/masks/<id>.png, and `also` in other forms (see `export`)."""
        reporter = _reporter(self.compute, quiet)
        forms = list(also)
        for form in forms:
            target_of(Path(out), form)  # refuses one that is not known, before the work
        table = None if tags is None else str(tags)
        found = find_new_images([str(path) for path in paths], self.classes, table, leave_out=[Path(out)])
        images = verify_images(found, skip_bad=skip_bad, workers=self.compute.workers, progress=reporter.progress)
        made = digest(read_json(self._stage("segmenter") / RECORD)["key"])
        masks = predict_folder(self.predictor, images, made, Path(out), reporter=reporter, redo=redo)
        for form in forms if self.compute.is_main_process else ():
            write_outputs(images.samples, lambda s: masks[s.id], self.classes, Path(out), form)
        return masks

    @property
    def _skip_bad(self) -> bool:
        """Whether the run was told to leave out images that cannot be used."""
        return bool(read_json(self.folder / RUN)["sources"]["skip_bad"])

    def _stage(self, kind: ArtifactKind) -> Path:
        stage = latest(self.recipe, kind)
        if stage is None:
            raise RunError(
                f"the run {self.folder} lacks {ARTIFACT_NAMES[kind]}: add a stage of {' or '.join(makers(kind))} to its recipe "
                f"({self.folder / RECIPE}) and `tagmask run` with that --recipe and the same --out."
            )
        return self.folder / stage


def run(
    images: str | Path | DataSource,
    out: str | Path,
    *,
    tags: str | Path | None = None,
    held_out: DataSource | None = None,
    recipe: str | Path | Recipe = "auto",
    settings: Iterable[str] = (),
    seed: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    skip_bad: bool = False,
    redo: bool = False,
    quiet: bool = False,
) -> Run:
    """Make masks and a segmentation network from tagged images.

    Called again with the same arguments it goes on where it stopped, or returns at once.

    Args:
        images: a folder (its layout is found out), or a `DataSource` that says more.
        out: the run folder to make or to go on with.
        tags: a table `image,tags` (CSV, TSV, JSON Lines).
        held_out: images with truth on which the final network is measured.
        recipe: a shipped recipe's name, a YAML file, a `Recipe`; "auto": "cam" with a GPU, else "small".
        settings: changes of single settings, "stage.setting=value".
        seed: instead of the recipe's.
        device: auto, cpu, cuda, cuda:1, mps.
        workers: processes that load images and compute CRFs; None: one a core.
        skip_bad: leave out images that cannot be used, instead of stopping.
        redo: make stages anew whose settings or inputs changed.
        quiet: print nothing.

    Raises:
        DataError, RecipeError, RunError: with one sentence that says what to do.
    """
    source = images if isinstance(images, DataSource) else DataSource(root=str(images), tags=tags and str(tags))
    compute = Compute.detect(device, precision, workers)
    chosen = resolve_recipe(recipe, settings, seed, compute)
    reporter = _reporter(compute, quiet)
    folder = Path(out)
    if compute.is_main_process:
        check_run_folder(folder)
    result = Run(folder, chosen, source, held_out, compute)
    read = read_data(result, skip_bad, reporter)
    chosen = with_added_stages(chosen, read[0], folder)
    compute.barrier()  # all have seen which there are
    result = replace(result, recipe=chosen)
    if compute.is_main_process:
        sources = {"images": source, "held_out": held_out}
        dumped = {name: s.absolute().model_dump(mode="json") if s else None for name, s in sources.items()}
        write_run_record(folder, chosen, read[0], {**dumped, "skip_bad": skip_bad}, redo)
    compute.barrier()
    left_out = sum(problem.severity == "error" for problem in read[0].problems)
    bad = f" ({left_out} bad ones left out)" if left_out else ""
    reporter.info(
        f"{len(read[0])} images{bad}, {len(read[0].classes)} classes ({join_names(read[0].classes, 10)}) → {folder}"
    )
    run_stages(chosen, read[0], folder, compute=compute, reporter=reporter, redo=redo)
    _measure_and_report(result, *read, reporter)
    return result


def load(folder: str | Path, *, device: str = "auto", precision: Precision = "auto", workers: int | None = None) -> Run:
    """Open a run folder. Raises RunError if it is none."""
    path = Path(folder)
    if not (path / RUN).exists():
        raise RunError(f"{path} is not a tagmask run (it has no {RUN}): give the folder that `tagmask run --out` made.")
    sources = read_json(path / RUN)["sources"]
    held_out = DataSource(**sources["held_out"]) if sources["held_out"] else None
    recipe = load_recipe(str(path / RECIPE))
    return Run(path, recipe, DataSource(**sources["images"]), held_out, Compute.detect(device, precision, workers))


def resolve_recipe(recipe: str | Path | Recipe, settings: Iterable[str], seed: int | None, compute: Compute) -> Recipe:
    """The recipe that the arguments of `run` mean."""
    if recipe == "auto":
        recipe = "small" if compute.device.type == "cpu" else "cam"
    if isinstance(recipe, Recipe):
        if list(settings):
            raise RecipeError("settings change a recipe that is given by name or file; this one is a Recipe already.")
        chosen = recipe
    else:
        chosen = load_recipe(str(recipe), settings)
    return chosen if seed is None else chosen.with_seed(seed)


def score(
    run_or_masks: str | Path, data: DataSource, *, device: str = "auto", workers: int | None = None, quiet: bool = False
) -> tuple[tuple[str, ...], SegmentationReport]:
    """Measure against the truth of `data` a run's network, or a folder of label maps `<id>.png` of any tool.

    The network sees the images as if nothing were known of them. Images without truth are left out.

    Returns:
        The class names, and the scores.

    Raises:
        DataError: no truth is known. RunError: neither a run, nor masks of these images.
    """
    folder = Path(run_or_masks)
    opened = load(folder, device=device, workers=workers) if (folder / RUN).exists() else None
    compute = opened.compute if opened else Compute.detect(device, workers=workers)
    reporter = _reporter(compute, quiet)
    images = _verified(data, False, compute, reporter)
    if opened:
        if others := [name for name in images.classes if name not in opened.classes]:
            reporter.info(f"of no class of the network, and measured as background: {', '.join(others)}")
        images = in_classes(images, data, opened.classes)
    known = images.select(lambda sample: sample.mask is not None)
    if not len(known):
        raise DataError(f"no image of {images.name} has a true mask to measure against: give --masks FOLDER.")
    if opened:
        stage = opened._stage("segmenter").name
        folder = segment_held_out(opened.recipe, folder, stage, known, compute, reporter) / "masks"
    elif not any((folder / f"{sample.id}.png").exists() for sample in known.samples):
        raise RunError(f"{folder} holds neither a run nor a mask named after any of the images (<id>.png).")
    return known.classes, score_masks(known, lambda sample: folder / f"{sample.id}.png", compute, reporter)


def _reporter(compute: Compute, quiet: bool) -> Reporter:
    return Reporter(None if quiet or not compute.is_main_process else Console(stderr=True))


def _verified(source: DataSource, skip_bad: bool, compute: Compute, reporter: Reporter) -> TaggedImages:
    return verify_images(source.read(), skip_bad=skip_bad, workers=compute.workers, progress=reporter.progress)


def read_data(run: Run, skip_bad: bool, reporter: Reporter) -> tuple[TaggedImages, TaggedImages | None]:
    """A run's images and held-out images, verified, with one class list. Raises DataError."""
    images = _verified(run.images, skip_bad, run.compute, reporter)
    held_out = _verified(run.held_out, skip_bad, run.compute, reporter) if run.held_out else None
    if held_out is not None and run.held_out is not None:
        held_out = in_classes(held_out, run.held_out, images.classes)
    if held_out is not None and held_out.name == images.name:
        held_out = replace(held_out, name=f"{held_out.name}, held out")
    return images, held_out


def _measure_and_report(
    run: Run, images: TaggedImages, held_out: TaggedImages | None, reporter: Reporter
) -> Evaluation:
    evaluation = evaluate_run(run.recipe, run.folder, images, held_out, run.compute, reporter)
    if run.compute.is_main_process:
        write_json(run.folder / EVALUATION, evaluation.to_json())
        write_report(collect_report(run.recipe, run.folder, images, held_out, evaluation), run.report)
    run.compute.barrier()
    return evaluation
