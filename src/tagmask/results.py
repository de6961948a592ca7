"""A run folder as a Python object: read its results, extend them, export them and apply its network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tagmask.artifacts import digest, write_text
from tagmask.compute import Compute, Engine, Precision, Processes, default_workers, may_have_several_processes
from tagmask.data.samples import Sample, TaggedImages
from tagmask.data.source import DataSource, align_classes
from tagmask.data.verify import verify_images
from tagmask.deploy.formats import NETWORK_FORMATS
from tagmask.errors import RunError
from tagmask.evaluate import Evaluation
from tagmask.folder_lock import lock_folder
from tagmask.judge import Recommendation, mask_keys
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps
from tagmask.pipeline import check_processes, check_stages, run_stages
from tagmask.progress import Reporter, make_reporter
from tagmask.recipe import Recipe, load_recipe, methods_making, recipe_with_stage
from tagmask.review_folder import ReviewFolder
from tagmask.run_data import read_run_data
from tagmask.run_folder import RunFolder
from tagmask.stage import ARTIFACT_NAMES, ArtifactKind
from tagmask.stage_folder import StageFolder
from tagmask.stage_shards import FileKind
from tagmask.text import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from tagmask.import_masks import ImportedMasks
    from tagmask.measure.image_score import ImageScore
    from tagmask.predict import Predictor

THRESHOLDS_FILE = "thresholds.html"


class Run:
    """A run folder: what a recipe made from a set of tagged images. `run` and `load` return it.

    Args:
        folder: the run folder.
        images: where the training images come from.
        held_out: where the held-out images come from, or None.
        device, precision, workers: see `run`.
        engine, actors: see `Processes`.

    Example:
        >>> run = tagmask.load("run")
        >>> run.classes
        ('dog', 'person')
        >>> run.load_mask("beach/001").shape
        (40, 48)
    """

    def __init__(
        self,
        folder: str | Path,
        images: DataSource,
        held_out: DataSource | None = None,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        workers: int | None = None,
        engine: Engine = "local",
        actors: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.images = images
        self.held_out = held_out
        self._files = RunFolder(self.folder)
        self._device, self._precision, self._workers = device, precision, workers
        self._engine, self._actors = engine, actors

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe of the run with every setting, including the stages that were added to it."""
        return load_recipe(str(self._files.recipe_path))

    @cached_property
    def compute(self) -> Compute:
        """Device, precision, workers and distributed rank."""
        compute = Compute.detect(self._device, self._precision, self._workers)
        return replace(compute, engine=self._engine, actors=self._actors)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names; class id k of a label map is `classes[k - 1]`."""
        return self._files.read_record().classes

    @property
    def report(self) -> Path:
        """The path of the HTML report."""
        return self._files.report_path

    @property
    def masks_dir(self) -> Path:
        """The folder with the final masks of the training images (`recommended_stage`): indexed PNGs or shards."""
        return self._recommended_folder.path / "masks"

    @property
    def maps_dir(self) -> Path:
        """The folder with the last response maps of the training images: safetensors or shards."""
        return self.latest_stage("maps").path / "maps"

    @property
    def recommendation(self) -> Recommendation | None:
        """Which stage probably has the best masks, and why. None if the run is not finished, or makes no masks."""
        recommendation = Recommendation.read_if_any(self._files)
        is_current = recommendation is not None and recommendation.keys == mask_keys(self.recipe, self._files)
        return recommendation if is_current else None

    @property
    def recommended_stage(self) -> str:
        """The name of the stage whose masks are the final ones: the recommended one, or else the last that makes masks.

        Raises:
            RunError: no stage makes masks.
        """
        return self._recommended_folder.name

    @property
    def _recommended_folder(self) -> StageFolder:
        latest, recommendation = self.latest_stage("masks"), self.recommendation
        return latest if recommendation is None else self._files.stage(recommendation.stage)

    @property
    def evaluation(self) -> Evaluation:
        """What was measured when the report was last updated."""
        return Evaluation.read(self._files.evaluation_path)

    @cached_property
    def predictor(self) -> Predictor:
        """The final segmentation network. Raises RunError if the run has none, or not yet."""
        from tagmask.predict import Predictor
        from tagmask.region_vote import RegionVote

        stage = self.latest_stage("segmenter")
        load_regions = partial(RegionVote.load, self.recipe, self._files, stage.name, self.compute)
        return Predictor.load(stage.path, self.compute, digest(stage.read_key_if_any()), load_regions)

    def predict(self, image: np.ndarray, tags: Sequence[str] | None = None) -> np.ndarray:
        """Segment one image with the final network: a label map [H, W] uint8. See `Predictor.predict`.

        Example:
            >>> image = tagmask.read_image("photos/beach/001.jpg")
            >>> labels = tagmask.load("run").predict(image, tags=["dog"])
            >>> labels.shape == image.shape[:2], int(labels.max()) <= 1
            (True, True)
        """
        return self.predictor.predict(image, tags)

    def mask_path(self, image_id: str) -> Path:
        """Return the path of the final mask of a training image; its id is its path in the data set, without suffix.

        If the masks are in shards, there is no such file: use `load_mask`.
        """
        return self._recommended_folder.mask_path(image_id)

    def load_mask(self, image_id: str) -> np.ndarray:
        """Read the final mask of a training image: label map [H, W] uint8. Raises RunError if there is none."""
        stage = self._recommended_folder
        self._check_exists(stage, "masks", image_id)
        return stage.read_mask(image_id, num_classes=len(self.classes))

    def load_maps(self, image_id: str) -> ResponseMaps:
        """Read the last response maps of a training image. Raises RunError if there are none.

        Example:
            >>> maps = tagmask.load("run").load_maps("beach/001")
            >>> maps.classes, maps.size
            (array([1, 2], dtype=int32), (40, 48))
        """
        stage = self.latest_stage("maps")
        self._check_exists(stage, "maps", image_id)
        return stage.read_maps(image_id, num_classes=len(self.classes))

    def run_stage(
        self,
        method: str,
        settings: Iterable[str] = (),
        *,
        name: str | None = None,
        redo: bool = False,
        quiet: bool = False,
    ) -> Run:
        """Run one more stage on the results of a finished run, e.g. "infercam" for other maps, and update the report.

        Args:
            method: a module of `tagmask.methods`, or the dotted name of a module of your own.
            settings: "setting=value" of the stage.
            name: the name of the stage; None: the last part of the method's name.
            redo: replace a stage of this name that has other settings, and run the stages again that depend on it.
            quiet: print nothing.

        Returns:
            The run with the new stage.

        Raises:
            RecipeError: there is no such method or setting, or the run lacks something that the method needs.
            RunError: the run is not finished, or it has a stage of this name with other settings and `redo` is False.
        """
        from tagmask.report.update import update_report

        reporter = make_reporter(quiet)
        recipe = recipe_with_stage(self.recipe, method, settings, name)
        for stage in self.recipe.stages:
            unchanged = recipe.stages[stage] == self.recipe.stages[stage]
            if unchanged and not self._files.stage(stage).is_done:
                raise RunError(
                    f"stage {stage!r} of {self.folder} is not finished: run the original command again first."
                )
        images, held_out = self.read_and_verify_images(reporter)
        with lock_folder(self.folder, self.compute):
            check_processes(recipe, self.compute.world_size)
            check_stages(recipe, images, self._files, redo=redo)
            run_stages(recipe, images, self._files, compute=self.compute, reporter=reporter, redo=redo)
            if self.compute.is_main_process:
                write_text(self._files.recipe_path, recipe.to_yaml())
            self.compute.barrier()
            update_report(recipe, self._files, images, held_out, self.compute, reporter)
        return self._reopened()

    def update_report(self, *, quiet: bool = False) -> Evaluation:
        """Measure the run again, write `evaluation.json` and the report, and return the figures."""
        from tagmask.report.update import update_report

        reporter = make_reporter(quiet)
        images, held_out = self.read_and_verify_images(reporter)
        with lock_folder(self.folder, self.compute):
            return update_report(self.recipe, self._files, images, held_out, self.compute, reporter, measure_all=True)

    def scores(self, *, stage: str | None = None, quiet: bool = False) -> list[ImageScore]:
        """Score the masks of the training images without ground truth, and write `scores.csv`.

        Args:
            stage: the stage whose masks are scored; None: `recommended_stage`.
            quiet: print nothing.

        Returns:
            The scores by descending doubt: the first images are those to look at first.

        Raises:
            RunError: no stage makes masks, or a stage is not finished.

        Example:
            >>> scores = tagmask.load("run").scores(quiet=True)
            >>> sorted(score.image for score in scores)
            ['beach/001', 'beach/002', 'beach/003']
            >>> scores[0].doubt >= scores[-1].doubt
            True
        """
        from tagmask.image_scores import sort_scores, update_image_scores

        reporter, stage = make_reporter(quiet), stage or self.recommended_stage
        images, _ = self.read_and_verify_images(reporter)
        return sort_scores(update_image_scores(self.recipe, self._files, images, self.compute, reporter, stage=stage))

    def write_threshold_report(
        self, data: DataSource | None = None, *, out: str | Path | None = None, quiet: bool = False
    ) -> Evaluation:
        """Measure all response maps of the run at every threshold, and write their curves to one HTML page.

        Args:
            data: training images with ground truth; None: the data that the run was made from.
            out: the path of the page; None: thresholds.html in the run folder.
            quiet: print nothing.

        Raises:
            DataError: no training image has ground truth.
            RunError: the run has no response maps, or has not made them yet.
        """
        from tagmask.report.update import write_threshold_report

        reporter = make_reporter(quiet)
        self.latest_stage("maps")
        if data is None:
            images, _ = self.read_and_verify_images(reporter)
        else:
            images = verify_images(data.read(), skip_bad=True, workers=self.compute.workers, progress=reporter.progress)
            images = align_classes(images, data, self.classes)
        page = Path(out or self.folder / THRESHOLDS_FILE)
        return write_threshold_report(self.recipe, self._files, images, page, self.compute, reporter)

    def export(
        self,
        out: str | Path,
        format: str = "png",
        *,
        stage: str | None = None,
        partial: bool = False,
        quiet: bool = False,
        **settings: Any,
    ) -> Path:
        """Write the masks of the training images for other tools, or the network ("onnx", "hub").

        Args:
            out: the folder to write to.
            format: "png", "coco" or another name that `tagmask export --help` lists.
            stage: the stage whose masks or network are written; None: the reviewed masks of `review`, and for images
                without one those of `recommended_stage`; or the last network.
            partial: write the masks that exist, even if the stage has not made all of them.
            quiet: print nothing.
            settings: the options of `tagmask export` for masks: `min_area` and `simplify` (in pixels), `fill_holes`,
                `images` ("copy", "link" or "none"), `subset` and `competition`.

        Returns:
            The folder that was written: `out`/`format`. It appears when it is complete.

        Raises:
            RunError: the stage makes no masks, or has not made all of them and `partial` is False; the format does not
                exist, a setting is not valid, or the output exists already; or the network cannot be exported.

        Example:
            >>> tagmask.load("run").export("exported", "coco-polygons", min_area=50, quiet=True).as_posix()
            'exported/coco-polygons'
        """
        from tagmask.outputs.formats import OUTPUT_FORMATS
        from tagmask.outputs.settings import ExportSettings
        from tagmask.outputs.writer import output_path, write_masks_as

        if format not in (known := {**OUTPUT_FORMATS, **NETWORK_FORMATS}):
            raise RunError(f"format {format!r} is not known{did_you_mean(format, known)}")
        export_settings = ExportSettings(**settings)
        if format in NETWORK_FORMATS:
            if partial or export_settings != ExportSettings():
                raise RunError(f"the format {format!r} writes the network: leave out the options of masks and images.")
            return self._export_network(Path(out), format, stage, quiet=quiet)
        folder = self.stage_with_masks(stage)
        target = output_path(Path(out), format)
        if target.exists():
            raise RunError(f"{target} exists already: remove it, or choose another --out.")
        images = self.images.read()
        samples = [sample for sample in images.samples if folder.has_file("masks", sample.id)]
        if not partial:
            folder.check_complete(len(samples), len(images))
        reporter = make_reporter(quiet)
        reviewed = set() if stage else self.review.read_ground_truth().keys() & {sample.id for sample in samples}
        message = f"the masks of {folder.name}, {len(samples)} of {len(images)} images"
        reporter.info(f"{message}; reviewed masks: {len(reviewed)}" if reviewed else message)

        def read_mask(sample: Sample) -> np.ndarray:
            if sample.id in reviewed:
                return read_label_map(self.review.mask_path(sample.id), size=sample.size)
            return folder.read_mask_of(sample)

        with reporter.progress(f"writing {format}", len(samples)) as advance:
            return write_masks_as(samples, read_mask, images.classes, Path(out), format, export_settings, advance)

    def _export_network(self, out: Path, format: str, stage: str | None, *, quiet: bool) -> Path:
        from tagmask.deploy.trained_network import TrainedNetwork
        from tagmask.deploy.writer import write_network_as

        makers = self.recipe.stages_making("segmenter")
        if stage is not None and stage not in makers:
            raise RunError(
                f"stage {stage!r} of {self.folder} trains no segmentation network{did_you_mean(stage, makers)}"
            )
        folder = self._files.stage(stage) if stage else self.latest_stage("segmenter")
        evaluation = self.evaluation if self._files.evaluation_path.exists() else Evaluation(self.classes)
        return write_network_as(TrainedNetwork(folder, self.recipe, evaluation), out, format, make_reporter(quiet))

    def import_masks(
        self,
        path: str | Path,
        format: str,
        *,
        stage: str | None = None,
        only_changed: bool = False,
        quiet: bool = False,
    ) -> ImportedMasks:
        """Read masks that were corrected in an annotation tool, and keep them in the run folder as reviewed masks.

        Args:
            path: a zip archive, a folder or a file that the annotation tool has exported.
            format: "cvat", "label-studio", "coco" or "png".
            stage: the stage whose masks were exported; None: `recommended_stage`.
            only_changed: leave out masks without a change, in place of keeping them as accepted.
            quiet: print nothing.

        Returns:
            Which masks were accepted and corrected.

        Raises:
            DataError: the file is damaged, or does not fit the run; nothing has changed then.
            RunError: the stage makes no masks, or a mask is missing.
        """
        from tagmask.corrections.known_images import KnownImages
        from tagmask.import_masks import import_masks

        folder, images = self.stage_with_masks(stage), self.images.read()
        samples = [sample for sample in images.samples if folder.has_file("masks", sample.id)]
        known = KnownImages(samples, images.classes, folder.read_mask)
        with make_reporter(quiet).progress(f"importing {format}", len(samples)) as advance:
            return import_masks(self.review, Path(path), format, known, only_changed=only_changed, advance=advance)

    @property
    def review(self) -> ReviewFolder:
        """The reviewed masks of the run."""
        return self._files.review

    def predict_files(
        self,
        paths: Sequence[str | Path],
        out: str | Path,
        *,
        tags: str | Path | None = None,
        split: str | None = None,
        also: Iterable[str] = (),
        competition: Literal["comp5", "comp6"] = "comp6",
        single_pass: bool = False,
        regions: bool = False,
        skip_bad: bool = False,
        redo: bool = False,
        quiet: bool = False,
    ) -> dict[str, Path]:
        """Segment image files and folders of images with the final network: writes `out`/masks/<id>.png.

        The arguments are those of `Predictor.predict_files`.

        Returns:
            The path of each image's mask, by id.
        """
        if (recommendation := self.recommendation) and recommendation.undertrained:
            make_reporter(quiet).info(f"warning: {recommendation.reason}")
        return self.predictor.predict_files(
            paths, out, tags=tags, split=split, also=also, competition=competition, single_pass=single_pass,
            regions=regions, skip_bad=skip_bad, redo=redo, quiet=quiet,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """Return a summary for notebooks: stages, figures and the path of the report."""
        from tagmask.report.notebook import summary_html

        return summary_html(self)

    @property
    def _skip_bad(self) -> bool:
        """Whether the run leaves out images that cannot be read."""
        return self._files.read_record().sources.skip_bad

    def _reopened(self) -> Run:
        run = Run(
            self.folder, self.images, self.held_out,
            device=self._device, precision=self._precision, workers=self._workers,
        )  # fmt: skip
        run.__dict__["compute"] = self.compute
        return run

    def latest_stage(self, kind: ArtifactKind) -> StageFolder:
        """Return the folder of the last stage that makes an artifact. Raises RunError if there is none."""
        name = self.recipe.latest(kind)
        if name is None:
            raise RunError(
                f"the run {self.folder} lacks {ARTIFACT_NAMES[kind]}: add a stage of "
                f"{' or '.join(methods_making(kind))} with `tagmask add-stage`, or to its recipe "
                f"({self._files.recipe_path}) and run `tagmask run` with this --recipe and the same --out."
            )
        return self._files.stage(name)

    def stage_with_masks(self, name: str | None) -> StageFolder:
        """Return the folder of a stage, or of the recommended one. Raises RunError if it makes no masks."""
        makers = self.recipe.stages_making("masks")
        if name is not None and name not in makers:
            raise RunError(f"stage {name!r} of {self.folder} makes no masks{did_you_mean(name, makers)}")
        return self._files.stage(name) if name else self._recommended_folder

    def _check_exists(self, stage: StageFolder, kind: FileKind, image_id: str) -> None:
        if stage.is_done and not stage.has_file(kind, image_id):
            raise RunError(
                f"{self.folder} has no image {image_id!r}; the id of an image is its path in the data set, without "
                "suffix."
            )

    def read_and_verify_images(
        self, reporter: Reporter, skip_bad: bool | None = None
    ) -> tuple[TaggedImages, TaggedImages | None]:
        """Read and verify the training images, with their reviews, and the held-out images; see `read_run_data`."""
        skip_bad = self._skip_bad if skip_bad is None else skip_bad
        if may_have_several_processes():
            processes: Processes = self.compute
        else:  # a finished run ends without importing PyTorch
            workers = default_workers() if self._workers is None else self._workers
            processes = Processes(workers=workers, engine=self._engine, actors=self._actors)
        reviews = processes.from_main_process(self.review.read_reviews)  # others can change them
        return read_run_data(
            self.images, self.held_out, skip_bad=skip_bad, workers=processes.workers, reporter=reporter,
            processes=processes, folder=self._files, reviews=reviews,
        )  # fmt: skip
