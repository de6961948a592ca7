"""Tests of measuring images in worker processes."""

from pathlib import Path

import numpy as np
import pytest

from tagmask import image_metrics
from tagmask.compute import Compute
from tagmask.data.samples import PngMask, Sample, TaggedImages
from tagmask.errors import DataError
from tagmask.evaluate import score_maps, score_masks
from tagmask.label_map import write_label_map
from tagmask.maps import ResponseMaps, grid_size
from tagmask.measure.metrics import ActivationStatsMetric, SegmentationMetric
from tagmask.progress import Reporter
from tagmask.stage_folder import StageFolder

NUM_IMAGES = 12


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    """A stage with masks and maps of noise."""
    rng = np.random.default_rng(0)
    stage = StageFolder(tmp_path / "stage")
    for i in range(NUM_IMAGES):
        write_label_map(stage.mask_path(f"image{i}"), rng.integers(0, 4, (30, 20 + i)).astype(np.uint8))
        maps = rng.random((2, *grid_size((30, 20 + i)))).astype(np.float32)
        ResponseMaps(np.array([1, 3]), maps, (30, 20 + i)).save(stage.maps_path(f"image{i}"))
    return stage


@pytest.fixture
def images(tmp_path: Path) -> TaggedImages:
    """Images with ground truth of noise."""
    rng = np.random.default_rng(1)
    samples = []
    for i in range(NUM_IMAGES):
        path = tmp_path / "truth" / f"image{i}.png"
        write_label_map(path, np.kron(rng.integers(0, 4, (3, 1)), np.ones((10, 20 + i))).astype(np.uint8))
        samples.append(Sample(f"image{i}", f"image{i}.png", (1, 3), PngMask(path), size=(30, 20 + i)))
    return TaggedImages(("a", "b", "c"), tuple(samples), name="train")


def test_workers_give_the_bits_of_one_process(
    stage: StageFolder, images: TaggedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Compute(workers=1)
    masks = score_masks(images, stage, alone, Reporter()).to_json(images.classes)
    maps = score_maps(images, stage, alone, Reporter()).to_json(images.classes)
    monkeypatch.setattr(image_metrics, "TRIAL_SECONDS", 0)
    monkeypatch.setattr(image_metrics, "MIN_SECONDS", 0)
    chunks = []
    results_from_workers = image_metrics.results_from_workers

    def record(description: str, jobs: object, num_workers: int) -> object:
        chunks.append(num_workers)
        return results_from_workers(description, jobs, num_workers)  # type: ignore[arg-type]

    monkeypatch.setattr(image_metrics, "results_from_workers", record)
    workers = Compute(workers=2)
    assert score_masks(images, stage, workers, Reporter()).to_json(images.classes) == masks
    assert score_maps(images, stage, workers, Reporter()).to_json(images.classes) == maps
    assert chunks == [2, 2]
    stage.mask_path("image11").unlink()
    with pytest.raises(DataError, match=r"there is no mask .*image11"):
        score_masks(images, stage, workers, Reporter())


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_division_among_processes_changes_no_bit(world_size: int) -> None:
    """Metrics of the shards, added up as torch.distributed adds them, equal those of all images in order."""
    rng = np.random.default_rng(2)
    pairs = [(rng.integers(0, 3, (17, 23)), np.repeat(rng.integers(0, 3, (17, 1)), 23, 1)) for _ in range(30)]
    maps = rng.random((30, 2, 17, 23)).astype(np.float32)
    whole, whole_stats = SegmentationMetric(3), ActivationStatsMetric()
    parts = [(SegmentationMetric(3), ActivationStatsMetric()) for _ in range(world_size)]
    for i, (preds, target) in enumerate(pairs):
        for metric, stats in [(whole, whole_stats), parts[i % world_size]]:
            metric.update(preds, target)
            stats.update(maps[i], [1, 2], target)
    (metric, stats), *others = parts
    for other, other_stats in others:
        metric.merge_state(other)
        stats.merge_state(other_stats)
    assert metric.compute().to_json(("a", "b")) == whole.compute().to_json(("a", "b"))
    assert stats.compute() == whole_stats.compute()


def test_without_the_boundary_f_score(stage: StageFolder, images: TaggedImages) -> None:
    with_boundary = score_masks(images, stage, Compute(), Reporter())
    without = score_masks(images, stage, Compute(), Reporter(), boundary=False)
    assert 0 < with_boundary.boundary_f < 1
    assert np.isnan(without.boundary_f)
    expected = with_boundary._replace(boundary_f=np.nan, boundary_f_class=np.full(4, np.nan))
    assert without.to_json(images.classes) == expected.to_json(images.classes)
