"""Maps, masks and networks with a valid format but wrong content are refused in one sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tagmask.artifacts import write_arrays, write_json
from tagmask.errors import RunError
from tagmask.label_map import read_label_map, write_label_map
from tagmask.maps import ResponseMaps
from tagmask.measure.reports import SegmentationReport
from tagmask.models.backbone import Backbone
from tagmask.models.classifier import Classifier
from tagmask.models.label_conditioned import LabelConditionedNetwork
from tagmask.models.segmenter import Segmenter
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history

MAPS: dict[str, np.ndarray] = {
    "maps": np.full((2, 3, 4), 0.5, np.float16),
    "classes": np.array([1, 3], np.int32),
    "size": np.array([12, 13], np.int32),
    "background": np.zeros((3, 4), np.float16),
}
NAN = np.full((2, 3, 4), np.nan, np.float16)


@pytest.mark.parametrize(
    "change",
    [
        {"maps": None}, {"classes": None}, {"size": None}, {"maps": MAPS["maps"].astype(np.float32)},
        {"maps": MAPS["maps"][:1]}, {"maps": MAPS["maps"][:, :2]}, {"maps": MAPS["maps"][0]}, {"maps": NAN},
        {"maps": -MAPS["maps"]}, {"maps": MAPS["maps"] * 4}, {"maps": np.full((2, 3, 4), np.inf, np.float16)},
        {"classes": np.array([3, 1], np.int32)}, {"classes": np.array([1, 1], np.int32)},
        {"classes": np.array([0, 1], np.int32)}, {"classes": np.array([1, 4], np.int32)},
        {"classes": np.array([-1, 2], np.int32)}, {"classes": np.array([1.0, 3.0])},
        {"classes": np.array([[1, 3]], np.int32)}, {"classes": np.array(1, np.int32)},
        {"size": np.array([12], np.int32)}, {"size": np.array([12, 13, 3], np.int32)},
        {"size": np.array([-12, 13], np.int32)}, {"size": np.array([2**31 - 1, 2**31 - 1], np.int32)},
        {"size": np.array([0, 0], np.int32)}, {"size": np.array([12.0, 13.0])}, {"size": np.array([12, 17], np.int32)},
        {"background": NAN[0]}, {"background": MAPS["maps"]}, {"background": MAPS["background"][:2]},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_maps(tmp_path: Path, change: dict[str, np.ndarray | None]) -> None:
    path = tmp_path / "maps.safetensors"
    write_arrays(path, MAPS)
    assert ResponseMaps.load(path, size=(12, 13), num_classes=3).background is not None
    write_arrays(path, {name: array for name, array in {**MAPS, **change}.items() if array is not None})
    with pytest.raises(RunError, match=r"is damaged \(.*\): run the same `tagmask run` command again, which makes it"):
        ResponseMaps.load(path, num_classes=3)


def test_maps_of_another_image(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.safetensors", MAPS)
    with pytest.raises(RunError, match="has 13×12 pixels, not 12×12"):
        ResponseMaps.load(tmp_path / "a.safetensors", size=(12, 12))


def test_a_mask_of_another_image_or_with_other_classes(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.png", np.array([[0, 3, 255]]))
    assert read_label_map(tmp_path / "a.png", size=(1, 3), num_classes=3).tolist() == [[0, 3, 255]]
    with pytest.raises(RunError, match="has 3×1 pixels, its image 1×3"):
        read_label_map(tmp_path / "a.png", size=(3, 1))
    with pytest.raises(RunError, match="has the class id 3, but there are 2 classes"):
        read_label_map(tmp_path / "a.png", num_classes=2)


@pytest.mark.parametrize("size", [(100, 100), None])
def test_a_huge_mask_is_refused_before_it_is_decoded(
    tmp_path: Path, size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("L", (13_000, 13_000)).save(buffer, format="PNG", compress_level=1)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("it is decoded"))
    with pytest.raises(RunError, match="has 13000×13000 pixels"):
        read_label_map(tmp_path / "a.png", size=size)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("networks")
    backbone, classes = Backbone("test_resnet"), ("a", "b")
    networks = {
        "classifier": Classifier(backbone, classes),
        "label_conditioned": LabelConditionedNetwork(backbone, classes),
        "segmenter": Segmenter("deeplabv2", "test_resnet", classes),
    }
    for name, network in networks.items():
        network.save(root / name, test={"scales": [1.0], "crf": None})
    return {name: root / name for name in networks}


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("classifier", {"kind": "segmenter"}), ("classifier", {"kind": [1]}), ("classifier", {"classes": "ab"}),
    ("classifier", {"classes": ["a"]}), ("classifier", {"classes": [1, 2]}), ("classifier", {"classes": None}),
    ("classifier", {"classes": ["a"] * 300}), ("classifier", {"backbone": None}), ("classifier", {"backbone": {}}),
    ("classifier", {"backbone": {"name": "resnet18", "output_stride": 16, "options": {}}}),
    ("classifier", {"backbone": {"name": "no_such", "output_stride": 16, "options": {}}}),
    ("classifier", {"backbone": {"name": "test_resnet", "output_stride": 7, "options": {}}}),
    ("classifier", {"backbone": {"name": "test_resnet", "output_stride": 16, "options": {"in_chans": -1}}}),
    ("classifier", {"backbone": {"name": "test_resnet", "output_stride": 16, "options": {"no_such": 1}}}),
    ("classifier", {"backbone": {"name": "test_resnet", "output_stride": 16, "options": {}, "more": 1}}),
    ("label_conditioned", {"dropout": 3}), ("label_conditioned", {"dropout": "x"}),
    ("segmenter", {"network": {"architecture": "x", "backbone": "test_resnet", "output_stride": 16, "options": {}}}),
    ("segmenter", {"network": []}),
]  # fmt: skip
NETWORKS = {"classifier": Classifier, "label_conditioned": LabelConditionedNetwork, "segmenter": Segmenter}


@pytest.mark.parametrize(("name", "change"), CONFIGS, ids=lambda value: str(value)[:60])
def test_a_network_with_a_damaged_config(
    folders: dict[str, Path], name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    for file in folders[name].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    NETWORKS[name].load(tmp_path)
    write_json(tmp_path / "config.json", {**json.loads((tmp_path / "config.json").read_text()), **change})
    with pytest.raises(RunError) as error:
        NETWORKS[name].load(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_a_config_that_is_not_a_mapping(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "classifier.safetensors").write_bytes((folders["classifier"] / "classifier.safetensors").read_bytes())
    write_json(tmp_path / "config.json", [1])
    with pytest.raises(RunError, match="is not a mapping"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": None}, {"weight": torch.zeros(3, 4)}, {"more": torch.zeros(1)},
        {"weight": torch.full((2, 64), torch.nan)}, {"weight": torch.zeros(2, 64, dtype=torch.int32)},
        {"_map_weight": torch.zeros(5, 5)},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_network_with_damaged_weights(
    folders: dict[str, Path], change: dict[str, torch.Tensor | None], tmp_path: Path
) -> None:
    source = folders["classifier"]
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    weights = {**load_file(source / "classifier.safetensors"), **change}
    save_file({n: t for n, t in weights.items() if t is not None}, tmp_path / "classifier.safetensors")
    with pytest.raises(RunError, match=r"classifier\.safetensors is damaged"):
        Classifier.load(tmp_path)


@pytest.mark.parametrize("content", [{}, [1], [{}], [{"epoch": 0}], [{"epoch": 1, "loss": "x"}], [{"epoch": "x"}]])
def test_a_damaged_history(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "history.json", [{"epoch": 1, "loss": 0.5}])
    assert read_history(StageFolder(tmp_path)) == [{"epoch": 1, "loss": 0.5}]
    write_json(tmp_path / "history.json", content)
    with pytest.raises(RunError, match="is damaged"):
        read_history(StageFolder(tmp_path))


def test_scores_of_wrong_shapes() -> None:
    report = SegmentationReport(np.zeros((2, 3), np.int64), np.zeros(2), 0.0, 0.0, 0.0, 0.0, np.zeros(2)).to_json(["a"])
    for change in ({"confusion": [[1]]}, {"iou": []}, {"boundary_f_class": []}):
        with pytest.raises(ValueError, match="an array is"):
            SegmentationReport.from_json({**report, **change})
