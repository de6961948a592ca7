"""Tests that every method must pass.

Derive a test class from `MethodContract`, and set the method and toy settings.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file

from tagmask import stage_shards
from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.execution import Execution
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods.cam import Cam
from tagmask.methods.irn import Irn
from tagmask.methods.pseudo_masks import PseudoMasks
from tagmask.models.classifier import Classifier
from tagmask.progress import Reporter
from tagmask.stage import Method, StageContext
from tagmask.stage_folder import StageFolder
from tagmask.stage_shards import FILE_SUFFIXES
from tagmask.training_curves import read_history

TOY_CAM: dict[str, Any] = {
    "backbone": "test_resnet", "weights": "none", "output_stride": 8, "frozen_stride": 0, "freeze_norm": False,
    "epochs": 1, "batch_size": 4, "crop_size": 32, "long_side_range": [40, 48], "lr": 0.01, "head_lr": 0.01,
    "scales": [1.0, 0.5],
}  # fmt: skip

MakeContext = Callable[..., StageContext]
"""Makes the context of a stage: make_context(name, images=..., seed=..., maps=folder, ...)."""


@pytest.fixture(scope="session")
def earlier_stages(tmp_path_factory: pytest.TempPathFactory, toy_images: TaggedImages) -> dict[str, Path]:
    """Run toy stages; returns the folder of the stage that made each kind of artifact."""
    folder = tmp_path_factory.mktemp("earlier_stages")
    cam, masks, irn = (StageFolder(folder / name) for name in ("cam", "pseudo_masks", "irn"))
    context = StageContext(cam, toy_images, Compute(), Reporter(), {}, seed=0)
    Cam(**TOY_CAM).run(context)
    PseudoMasks(threshold=0.3).run(replace(context, folder=masks, inputs={"maps": cam}))
    Irn(epochs=1, batch_size=4, crop_size=64, pair_radius=4).run(
        replace(context, folder=irn, inputs={"maps": cam, "classifier": cam})
    )
    return {"classifier": cam.path, "maps": cam.path, "masks": masks.path, "boundary": irn.path}


class MethodContract:
    """The tests of a method.

    Attributes:
        method: the method.
        settings: toy settings.
        trains: whether the method trains a network.
        finished_folder: the folder of the finished stage, after the first call of `finished`.
    """

    method: ClassVar[type[Method]]
    settings: ClassVar[dict[str, Any]] = {}
    trains: ClassVar[bool] = True
    finished_folder: ClassVar[Path]

    def context(
        self, make_context: MakeContext, earlier_stages: dict[str, Path], name: str = "stage", **changes: Any
    ) -> StageContext:
        """Return the context of a stage folder of this name, which does not exist yet."""
        inputs = {kind: earlier_stages[kind] for kind in self.method(**self.settings).required_inputs()}
        return make_context(name, **inputs, **changes)

    def run(
        self, make_context: MakeContext, earlier_stages: dict[str, Path], name: str = "stage", **changes: Any
    ) -> StageContext:
        """Run the method with its toy settings in a stage folder of this name."""
        context = self.context(make_context, earlier_stages, name, **changes)
        self.method(**self.settings).run(context)
        return context

    def finished(self, make_context: MakeContext, earlier_stages: dict[str, Path]) -> StageContext:
        """Return the context of a finished stage, whose files the test can change: the method runs once per class."""
        cls = type(self)
        if "finished_folder" not in vars(cls):
            cls.finished_folder = self.run(make_context, earlier_stages, "finished").folder.path
        context = self.context(make_context, earlier_stages)
        shutil.copytree(cls.finished_folder, context.folder.path)
        return context

    def test_training_writes_finite_losses(self, make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
        if not self.trains:
            pytest.skip("the method trains nothing")
        history = read_history(self.finished(make_context, earlier_stages).folder)
        assert history
        assert all(np.isfinite(epoch["loss"]) for epoch in history)

    def test_maps_have_the_documented_shape_and_range(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        if "maps" not in self.method.makes:
            pytest.skip("the method makes no maps")
        context = self.finished(make_context, earlier_stages)
        for sample in context.images.samples:  # one of them has no tags, another one has all
            maps = ResponseMaps.load(context.folder.maps_path(sample.id))
            assert tuple(maps.classes) == sample.tags
            assert maps.size == sample.size
            assert maps.maps.shape == (len(sample.tags or ()), *grid_size(maps.size))
            assert np.isfinite(maps.maps).all()
            assert maps.maps.size == 0 or (maps.maps.min() >= 0 and maps.maps.max() <= 1)

    def test_shards_hold_the_same_files(
        self, make_context: MakeContext, earlier_stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("pyarrow", reason="install tagmask[shards]")
        monkeypatch.setattr(stage_shards, "IMAGES_PER_SHARD", 3)
        kinds = {"maps", "masks"} & set(self.method(**self.settings).made_artifacts())
        files = self.finished(make_context, earlier_stages)
        changed = {"execution": Execution(storage="shards")}
        context = replace(self.context(make_context, earlier_stages, "shards"), **changed)
        shutil.copytree(files.folder.path, context.folder.path)  # so that networks are not trained again
        for kind in FILE_SUFFIXES:
            shutil.rmtree(context.folder.path / kind, ignore_errors=True)
        self.method(**self.settings).run(context)
        for kind in kinds:
            for sample in context.images.samples:
                assert not context.folder.file_path(kind, sample.id).exists()
                assert context.folder.read_file(kind, sample.id)[0] == files.folder.read_file(kind, sample.id)[0]

    def test_masks_contain_only_tagged_classes(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        if "masks" not in self.method.makes:
            pytest.skip("the method makes no masks")
        context = self.finished(make_context, earlier_stages)
        for sample in context.images.samples:
            labels = read_label_map(context.folder.mask_path(sample.id))
            assert labels.shape == sample.size
            assert set(np.unique(labels)) <= {0, 255, *(sample.tags or ())}

    def test_results_depend_only_on_the_seed(self, make_context: MakeContext, earlier_stages: dict[str, Path]) -> None:
        first = self.finished(make_context, earlier_stages)
        second = self.run(make_context, earlier_stages, "second")
        assert self.files(first) == self.files(second)
        assert self.is_same(first.folder.path, second.folder.path)
        if self.trains:
            other_seed = self.run(make_context, earlier_stages, "other_seed", seed=1)
            assert not self.is_same(first.folder.path, other_seed.folder.path)

    def test_resume_makes_only_missing_files_and_with_the_same_bytes(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        context = self.finished(make_context, earlier_stages)
        files = [context.folder.path / name for name in self.files(context) if name.suffix in (".safetensors", ".png")]
        removed = {file.parent: file for file in files}  # the weights, and the last map, mask, seed, ...
        assert {folder.name for folder in removed} >= {"maps", "masks"} & set(self.method.makes)
        contents = {file: file.read_bytes() for file in files}
        times = {file: file.stat().st_mtime_ns for file in files if file not in removed.values()}
        for file in removed.values():
            file.unlink()
        self.run(make_context, earlier_stages)
        assert {file: file.read_bytes() for file in files} == contents
        assert {file: file.stat().st_mtime_ns for file in times} == times

    def test_a_checkpoint_of_a_finished_training_is_removed(
        self, make_context: MakeContext, earlier_stages: dict[str, Path]
    ) -> None:
        """A process that is killed right after it has written the weights leaves its checkpoint behind."""
        if not self.trains:
            pytest.skip("the method trains nothing")
        folder = self.finished(make_context, earlier_stages).folder.path
        [weights], checkpoint = folder.glob("*.safetensors"), folder / "training" / "last.ckpt"
        written = weights.stat().st_mtime_ns
        assert not checkpoint.parent.exists()
        checkpoint.parent.mkdir()
        checkpoint.touch()
        self.run(make_context, earlier_stages)
        assert not checkpoint.parent.exists()
        assert weights.stat().st_mtime_ns == written  # nothing was trained again

    def test_inference_stride_changes_the_stride_of_the_classifier(
        self, make_context: MakeContext, earlier_stages: dict[str, Path], tmp_path: Path
    ) -> None:
        """The maps are those of a classifier that was saved with this stride."""
        if "inference_stride" not in self.method.model_fields or not self.method.needs:
            pytest.skip("the method does not make maps with an earlier classifier")
        Classifier.load(earlier_stages["classifier"], output_stride=32).save(tmp_path / "stride_32")
        untrained = {"epochs": 0} if self.trains else {}
        contexts = []
        for name, folder, change in (
            ("plain", earlier_stages["classifier"], {}),
            ("changed", earlier_stages["classifier"], {"inference_stride": 32}),
            ("expected", tmp_path / "stride_32", {}),
        ):
            contexts.append(make_context(name, classifier=folder))
            self.method(**{**self.settings, **untrained, **change}).run(contexts[-1])
        plain, changed, expected = (context.folder.path / "maps" for context in contexts)
        assert self.is_same(changed, expected)
        assert not self.is_same(changed, plain)

    def test_a_data_set_with_one_class(
        self, make_context: MakeContext, earlier_stages: dict[str, Path], toy_images: TaggedImages
    ) -> None:
        if self.method.needs:
            pytest.skip("the earlier stages were made with all classes")
        self.run(make_context, earlier_stages, images=toy_images.restrict(["green"]))

    @staticmethod
    def files(context: StageContext) -> list[Path]:
        """Return the paths of all files of the stage, relative to its folder."""
        return sorted(f.relative_to(context.folder.path) for f in context.folder.path.rglob("*") if f.is_file())

    @staticmethod
    def is_same(first: Path, second: Path) -> bool:
        """Return whether two folders hold the same weights, maps and masks."""
        for file in sorted(first.rglob("*")):
            other = second / file.relative_to(first)
            if file.suffix == ".png" and file.read_bytes() != other.read_bytes():
                return False
            if file.suffix == ".safetensors":
                a, b = load_file(file), load_file(other)
                if any(not np.array_equal(a[name], b[name]) for name in a):
                    return False
        return True
