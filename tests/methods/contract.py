"""What every method promises: derive a test class from `MethodContract`, and name the method and its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from safetensors.numpy import load_file

from tagmask.compute import Compute
from tagmask.data.samples import TaggedImages
from tagmask.label_map import read_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.methods.cam import Cam
from tagmask.methods.pseudo_masks import PseudoMasks
from tagmask.models.classifier import Classifier
from tagmask.progress import Reporter
from tagmask.run_folder import StageFolder
from tagmask.stage import Method, StageContext
from tagmask.training import read_history

TOY_CAM: dict[str, Any] = {
    "backbone": "resnet18", "weights": "none", "output_stride": 8, "frozen_stride": 0, "freeze_norm": False,
    "epochs": 1, "batch_size": 4, "crop_size": 32, "long_side_range": [40, 48], "lr": 0.01, "head_lr": 0.01, "scales": [1.0, 0.5],
}  # fmt: skip

MakeContext = Callable[..., StageContext]


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory, toy_images: TaggedImages) -> dict[str, Path]:
    """Return the folders of earlier stages by kind of artifact: a toy CAM and its pseudo-masks."""
    folder = tmp_path_factory.mktemp("earlier")
    cam, masks = StageFolder(folder / "cam"), StageFolder(folder / "pseudo_masks")
    context = StageContext(cam, toy_images, Compute(), Reporter(), {}, seed=0)
    Cam(**TOY_CAM).run(context)
    PseudoMasks(threshold=0.3).run(replace(context, folder=masks, inputs={"maps": cam}))
    return {"classifier": cam.path, "maps": cam.path, "masks": masks.path}


class MethodContract:
    """Tests of any method. Subclass it with `method` and toy `settings` (and `trains = False` if nothing learns)."""

    method: ClassVar[type[Method]]
    settings: ClassVar[dict[str, Any]] = {}
    trains: ClassVar[bool] = True

    def run(
        self, make_context: MakeContext, earlier: dict[str, Path], name: str = "stage", **changes: Any
    ) -> StageContext:
        needs = {kind: earlier[kind] for kind in self.method.needs}
        context = make_context(name, **needs, **changes)
        self.method(**self.settings).run(context)
        return context

    def test_it_trains_a_step(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        if not self.trains:
            pytest.skip("nothing is trained")
        history = read_history(self.run(make_context, earlier).folder)
        assert history
        assert all(np.isfinite(epoch["loss"]) for epoch in history)

    def test_maps_have_the_promised_shape_and_range(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        if "maps" not in self.method.makes:
            pytest.skip("it makes no maps")
        context = self.run(make_context, earlier)
        for sample in context.images.samples:  # among them one without a tag, and one with all
            maps = ResponseMaps.load(context.folder.maps_path(sample.id))
            assert tuple(maps.classes) == sample.tags
            assert maps.size == sample.size
            assert maps.maps.shape == (len(sample.tags or ()), *grid_size(maps.size))
            assert np.isfinite(maps.maps).all()
            assert maps.maps.size == 0 or (maps.maps.min() >= 0 and maps.maps.max() <= 1)

    def test_masks_hold_tagged_classes_alone(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        if "masks" not in self.method.makes:
            pytest.skip("it makes no masks")
        context = self.run(make_context, earlier)
        for sample in context.images.samples:
            labels = read_label_map(context.folder.mask_path(sample.id))
            assert labels.shape == sample.size
            assert set(np.unique(labels)) <= {0, 255, *(sample.tags or ())}

    def test_it_is_deterministic_by_seed(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        first = self.run(make_context, earlier, "first")
        again = self.run(make_context, earlier, "again")
        assert self.files(first) == self.files(again)
        assert self.same(first.folder.path, again.folder.path)
        if self.trains:
            assert not self.same(first.folder.path, self.run(make_context, earlier, "other", seed=1).folder.path)

    def test_it_makes_again_only_what_is_missing(self, make_context: MakeContext, earlier: dict[str, Path]) -> None:
        context = self.run(make_context, earlier)
        made = sorted(f for f in context.folder.path.rglob("*") if f.is_file() and f.suffix in (".safetensors", ".png"))
        victim, kept = made[-1], made[0]
        before, stamp = victim.read_bytes(), kept.stat().st_mtime_ns
        victim.unlink()
        self.run(make_context, earlier)
        assert victim.read_bytes() == before
        assert kept == victim or kept.stat().st_mtime_ns == stamp

    def test_a_checkpoint_that_outlived_its_training_is_removed(
        self, make_context: MakeContext, earlier: dict[str, Path]
    ) -> None:
        """Whoever is killed when the weights are written leaves it."""
        if not self.trains:
            pytest.skip("nothing is trained")
        checkpoint = self.run(make_context, earlier).folder.path / "training" / "last.ckpt"
        assert not checkpoint.parent.exists()
        checkpoint.parent.mkdir()
        checkpoint.touch()
        self.run(make_context, earlier)
        assert not checkpoint.parent.exists()

    def test_maps_at_another_stride(self, make_context: MakeContext, earlier: dict[str, Path], tmp_path: Path) -> None:
        """`map_stride` makes the maps of a classifier that has this stride."""
        if "inference_stride" not in self.method.model_fields or not self.method.needs:
            pytest.skip("it takes no classifier's stride")
        Classifier.load(earlier["classifier"], output_stride=32).save(tmp_path / "coarse")
        untrained = {"epochs": 0} if self.trains else {}
        contexts = []
        for name, folder, change in (
            ("plain", earlier["classifier"], {}),
            ("changed", earlier["classifier"], {"inference_stride": 32}),
            ("expected", tmp_path / "coarse", {}),
        ):
            contexts.append(make_context(name, classifier=folder))
            self.method(**{**self.settings, **untrained, **change}).run(contexts[-1])
        plain, changed, expected = (context.folder.path / "maps" for context in contexts)
        assert self.same(changed, expected)
        assert not self.same(changed, plain)

    def test_a_single_class_is_enough(
        self, make_context: MakeContext, earlier: dict[str, Path], tmp_path: Path, toy_images: TaggedImages
    ) -> None:
        if self.method.needs:
            pytest.skip("it follows the stages before it")
        one = toy_images.restrict(["green"])
        self.run(make_context, earlier, images=one)

    @staticmethod
    def files(context: StageContext) -> list[Path]:
        return sorted(f.relative_to(context.folder.path) for f in context.folder.path.rglob("*") if f.is_file())

    @staticmethod
    def same(first: Path, second: Path) -> bool:
        """Whether two folders hold the same weights, maps and masks."""
        for file in sorted(first.rglob("*")):
            other = second / file.relative_to(first)
            if file.suffix == ".png" and file.read_bytes() != other.read_bytes():
                return False
            if file.suffix == ".safetensors":
                a, b = load_file(file), load_file(other)
                if any(not np.array_equal(a[name], b[name]) for name in a):
                    return False
        return True
