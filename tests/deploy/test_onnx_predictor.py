"""Prediction with an ONNX file: without PyTorch, and with the same masks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import tagmask
from tagmask import large_images
from tagmask.compute import Compute
from tagmask.errors import DataError, RecipeError, RunError
from tagmask.label_map import read_label_map, voc_palette
from tagmask.predict import Predictor
from tests.deploy.networks import CLASSES, random_images

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"a": (40, 57), "b/c": (131, 97), "d": (64, 64)}

WITHOUT_PYTORCH = """
import sys
blocked = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "segmentation_models_pytorch", "scipy", "numba",
           "joblib", "pycocotools", "shapely", "fsspec", "jinja2", "onnx", "onnxscript", "huggingface_hub")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocker())
from tagmask.cli import main
main()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed, (image_id, size) in enumerate(SIZES.items()):
        path = folder / f"{image_id}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random_images(1, *size, seed=seed)[0]).save(path)
    return folder


@pytest.fixture
def pytorch(stage_folder: Path) -> Predictor:
    return Predictor.load(stage_folder, Compute(precision="float32"), weights_key="of a test").single_pass()


def test_the_command_needs_no_pytorch_and_gives_its_masks(
    onnx_file: Path, photos: Path, pytorch: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "tags.csv").write_text(f"image,tags\nd.png,{CLASSES[1]}\n", encoding="utf-8")
    arguments = ["--tags", tmp_path / "tags.csv", "--json", "--out", tmp_path / "onnx"]
    command = [sys.executable, "-c", WITHOUT_PYTORCH, "predict", onnx_file, photos, *arguments]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert set(json.loads(result.stdout)["masks"]) == set(SIZES)
    expected = pytorch.predict_files([photos], tmp_path / "torch", tags=tmp_path / "tags.csv", quiet=True)
    shown = set()
    for image_id, path in expected.items():
        labels = read_label_map(tmp_path / "onnx" / "masks" / f"{image_id}.png", size=SIZES[image_id])
        assert (labels == read_label_map(path)).mean() > 0.9995
        shown |= set(np.unique(labels)) if image_id != "d" else set()
    assert shown == {0, 1, 2, 3}
    assert set(np.unique(read_label_map(expected["d"]))) == {0, 2}
    legends = [(tmp_path / name / "legend.txt").read_text(encoding="utf-8") for name in ("onnx", "torch")]
    assert legends[0] == legends[1]


def test_the_example_in_the_docs_needs_no_tagmask(onnx_file: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "guides" / "deploying.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "model.onnx").write_bytes(onnx_file.read_bytes())
    pixels = random_images(1, 70, 90)[0]
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", format="PNG")
    blocked = "import sys; sys.modules['torch'] = sys.modules['tagmask'] = None"
    command = [sys.executable, "-c", f"{blocked}\n{code}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    mask = Image.open(tmp_path / "mask.png")
    np.testing.assert_array_equal(np.asarray(mask), tagmask.load_onnx(onnx_file).predict(pixels))
    assert mask.getpalette()[:12] == voc_palette()[:12]
    shown = [["background", *CLASSES][label] for label in np.unique(mask)]
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == shown
    assert result.stderr == ""


def test_a_package_that_is_missing_is_one_sentence(onnx_file: Path, photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_PYTORCH, "predict", onnx_file, photos, "--out", tmp_path, "--also", "coco"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("tagmask: the package pycocotools is missing: install")
    assert "Traceback" not in result.stderr


def test_a_large_image_is_computed_in_the_same_tiles(
    onnx_file: Path, pytorch: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_images, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(large_images, "CORE_SIDE", 64)
    monkeypatch.setattr(large_images, "HALO", 32)
    image = random_images(1, 150, 170)[0]
    assert len(large_images.tiles((150, 170))) == 9
    labels = tagmask.load_onnx(onnx_file, device="cpu").predict(image)
    assert labels.shape == image.shape[:2]
    assert (labels == pytorch.predict(image)).mean() > 0.9995


def test_one_image_in_python(onnx_file: Path, pytorch: Predictor) -> None:
    predictor = tagmask.load_onnx(onnx_file)
    image = random_images(1, 50, 60)[0]
    assert predictor.classes == CLASSES
    assert set(np.unique(predictor.predict(image, tags=[CLASSES[2]]))) == {0, 3}
    assert not predictor.predict(image, tags=[]).any()
    with pytest.raises(DataError, match="is not a class of this network"):
        predictor.predict(image, tags=["bus"])
    with pytest.raises(ValueError, match="not uint8"):
        predictor.predict(image.astype(np.float32))


def test_masks_of_another_network_are_not_kept(onnx_file: Path, photos: Path, tmp_path: Path) -> None:
    tagmask.load_onnx(onnx_file).predict_files([photos / "a.png"], tmp_path / "out", quiet=True)
    model = onnx.load(onnx_file)
    model.doc_string = "another file"
    onnx.save(model, tmp_path / "other.onnx")
    other = tagmask.load_onnx(tmp_path / "other.onnx")
    with pytest.raises(RunError, match="another network"):
        other.predict_files([photos / "a.png"], tmp_path / "out", quiet=True)
    other.predict_files([photos / "a.png"], tmp_path / "out", redo=True, quiet=True)


def identity_model(metadata: str) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key="labels", value=metadata)
    return model


def test_other_files_are_refused(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no ONNX file"):
        tagmask.load_onnx(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(RunError, match="is not an ONNX file that can be used"):
        tagmask.load_onnx(tmp_path / "text.onnx")
    onnx.save(identity_model('["background", "cat"]'), tmp_path / "other.onnx")
    with pytest.raises(RunError, match="other inputs or outputs"):
        tagmask.load_onnx(tmp_path / "other.onnx")
    model = onnx.load(onnx_file)
    for labels in ("", "[]", "[1, 2]", "{", "[" * 100_000, '["background", "cat"]'):
        next(entry for entry in model.metadata_props if entry.key == "labels").value = labels
        onnx.save(model, tmp_path / "labels.onnx")
        with pytest.raises(RunError, match="is not an ONNX file that `tagmask export --format onnx` wrote"):
            tagmask.load_onnx(tmp_path / "labels.onnx")


@pytest.mark.parametrize("device", ["mps", "cuda:x", "cpu:1", "gpu"])
def test_a_device_that_onnxruntime_does_not_have(onnx_file: Path, device: str) -> None:
    with pytest.raises(RecipeError, match="is not a device of onnxruntime"):
        tagmask.load_onnx(onnx_file, device=device)
