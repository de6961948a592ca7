"""ONNX files, computed by onnxruntime, against PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import tagmask
from tagmask.deploy import onnx_export
from tagmask.deploy.onnx_export import export_onnx
from tagmask.errors import RunError
from tagmask.label_map import voc_palette
from tagmask.models.segmenter import DEEPLAB_V2, SMP_ARCHITECTURES, Segmenter
from tests.deploy.networks import CLASSES, make_network, random_images, single_pass

SHAPES = ((1, 197, 131), (2, 64, 96), (1, 33, 250), (3, 20, 25))


def assert_equal_to_pytorch(path: Path, architecture: str, backbone: str = "test_resnet") -> None:
    """Compare a file, computed without tagmask, with the network of `make_network`."""
    network = make_network(architecture, backbone)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        images = random_images(*shape, seed=7)
        mask, confidence = session.run(["mask", "confidence"], {"image": images})
        expected_mask, expected_confidence = single_pass(network, images)
        assert (mask.dtype, mask.shape) == (np.uint8, shape)
        assert (confidence.dtype, confidence.shape) == (np.float32, shape)
        np.testing.assert_allclose(confidence, expected_confidence, atol=1e-3)
        assert (mask == expected_mask).mean() > 0.9995


def test_the_file_gives_the_masks_of_pytorch_at_any_size(onnx_file: Path) -> None:
    assert_equal_to_pytorch(onnx_file, DEEPLAB_V2)


def test_the_file_is_valid_and_says_what_its_labels_are(onnx_file: Path) -> None:
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["labels"]) == ["background", *CLASSES]
    assert np.ravel(json.loads(metadata["colors"])).tolist() == voc_palette()[:12]
    assert metadata["tagmask_version"] == tagmask.__version__
    assert (metadata["architecture"], metadata["backbone"]) == (DEEPLAB_V2, "test_resnet")
    assert {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    } == {
        "image": ["batch", "height", "width", 3], "mask": ["batch", "height", "width"],
        "confidence": ["batch", "height", "width"], "logits": ["batch", 4, "height", "width"],
    }  # fmt: skip


def test_a_file_that_differs_from_pytorch_gets_no_name(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(network: Segmenter) -> onnx.ModelProto:
        model = onnx.load(onnx_file)
        del model.metadata_props[:]
        return model

    monkeypatch.setattr(onnx_export, "_trace", trace)
    network = make_network(DEEPLAB_V2)
    export_onnx(network, tmp_path / "same.onnx")
    with torch.no_grad():
        network.head_parameters()[1].add_(torch.tensor([0.0, 0.5, 0.0, 0.0]))
    with pytest.raises(RunError, match=r"the file gives another result than PyTorch in .* % of an image of 131×197"):
        export_onnx(network, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["same.onnx"]


def test_a_network_that_cannot_be_traced_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network(DEEPLAB_V2)
    monkeypatch.setattr(type(network.net[1]), "forward", lambda self, x: x[:, :4] if x.mean() > 0 else -x[:, :4])
    with pytest.raises(RunError, match=r"^architecture 'deeplabv2' with backbone 'test_resnet' cannot be exported"):
        export_onnx(network, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(RunError, match=r"tagmask\[onnx\]"):
        export_onnx(make_network(DEEPLAB_V2), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SMP_ARCHITECTURES)
def test_every_architecture_of_smp_can_be_exported(architecture: str, tmp_path: Path) -> None:
    export_onnx(make_network(architecture), tmp_path / "model.onnx")
    assert_equal_to_pytorch(tmp_path / "model.onnx", architecture)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_kinds_of_backbones_can_be_exported(backbone: str, tmp_path: Path) -> None:
    export_onnx(make_network(DEEPLAB_V2, backbone), tmp_path / "model.onnx")
    assert_equal_to_pytorch(tmp_path / "model.onnx", DEEPLAB_V2, backbone)


@pytest.mark.slow
def test_a_backbone_with_the_padding_same_is_exported_in_reasonable_time(tmp_path: Path) -> None:
    """Its sizes as timm computes them made the tracer busy for more than ten minutes."""
    export_onnx(make_network("DeepLabV3Plus", "tf_mobilenetv3_small_minimal_100"), tmp_path / "model.onnx")
    assert_equal_to_pytorch(tmp_path / "model.onnx", "DeepLabV3Plus", "tf_mobilenetv3_small_minimal_100")
