"""A whole run and new images on CUDA, against the results on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagmask.compute import Compute, Precision
from tagmask.label_map import read_label_map
from tagmask.predict import Predictor
from tests.deploy.conftest import stage_folder  # noqa: F401
from tests.deploy.networks import CLASSES, random_images
from tests.gpu.conftest import CPU, CUDA, Record
from tests.runs import toy_run, write_toy

SIZES = {"a": (40, 57), "b/c": (70, 50), "d": (64, 64), "e": (64, 64)}
LIMITS = {"float32": 0.99, "bfloat16": 0.95}  # smallest share of equal pixels
CASES = [
    pytest.param(*device.values, precision, marks=device.marks)
    for device, precisions in ((CPU, ("float32",)), (CUDA, ("float32", "bfloat16")))
    for precision in precisions
]


@pytest.mark.parametrize(("device", "precision"), CASES)
def test_masks_of_new_images(
    device: str,
    precision: Precision,
    stage_folder: Path,  # noqa: F811
    record: Record,
    tmp_path: Path,
) -> None:
    for seed, (image_id, size) in enumerate(SIZES.items()):
        path = tmp_path / "photos" / f"{image_id}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(random_images(1, *size, seed=seed)[0]).save(path)
    (tmp_path / "tags.csv").write_text(f"image,tags\nd.png,{CLASSES[1]}\n", encoding="utf-8")
    labels: list[np.ndarray] = []
    for compute in (Compute(precision="float32"), Compute(torch.device(device), precision)):
        several_scales = Predictor.load(stage_folder, compute, weights_key="of a test")
        for predictor in (several_scales, several_scales.single_pass()):
            out = tmp_path / f"out{len(labels)}"
            masks = predictor.predict_files([tmp_path / "photos"], out, tags=tmp_path / "tags.csv", quiet=True)
            assert set(masks) == set(SIZES)
            assert set(np.unique(read_label_map(masks["d"]))) <= {0, 2}
            in_memory = predictor.predict(random_images(1, *SIZES["b/c"], seed=1)[0])
            np.testing.assert_array_equal(in_memory, read_label_map(masks["b/c"]))
            labels.append(np.concatenate([read_label_map(masks[image_id]).ravel() for image_id in SIZES]))
    expected, actual = np.stack(labels[:2]), np.stack(labels[2:])
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    share = float((expected == actual).mean())
    record("equal pixels", f"{100 * share:.2f} %", f"≥ {100 * LIMITS[precision]:.0f} %")
    assert share >= LIMITS[precision]


@pytest.mark.parametrize("device", [CUDA])
def test_a_whole_run(device: str, record: Record, tmp_path: Path) -> None:
    """With workers, the report and the recommendation: it must finish, and measure what the CPU does."""
    data = write_toy(tmp_path / "data")
    settings = ["cam.epochs=8"]
    runs = [toy_run(data, tmp_path / name, settings, device=name, workers=2) for name in ("cpu", device)]
    best = [next(iter(run.evaluation.maps.values())).curve.best_miou for run in runs]
    record("mIoU of the maps, CPU and CUDA", f"{best[0]:.3f} {best[1]:.3f}", "± 0.05")
    assert best[1] == pytest.approx(best[0], abs=0.05)
    masks = runs[1].predict_files([data / "0.png"], tmp_path / "out", quiet=True)
    assert read_label_map(masks["0"]).shape == (40, 48)
