"""Dry runs: their estimates, compared with the run itself; their errors; and that they leave no files behind."""

from __future__ import annotations

import doctest
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

import tagmask
from tagmask import expected_times
from tagmask.cli import main
from tagmask.compute import Compute
from tagmask.data.loading import ShuffledBatches
from tagmask.data.samples import Sample, TaggedImages
from tagmask.dryrun import DryRun, estimate, timing, weights
from tagmask.dryrun.estimate import available_disk_space
from tagmask.dryrun.subset import ImageSubset, choose_subset
from tagmask.dryrun.timing import LoopTimer, LoopTiming
from tagmask.dryrun.weights import ExternalWeights, find_external_weights
from tagmask.errors import DataError, RecipeError, RunError
from tagmask.methods.amn import Amn
from tagmask.methods.cam import Cam
from tagmask.methods.irn import Irn
from tagmask.methods.recam import ReCam
from tagmask.recipe import Recipe, load_recipe
from tagmask.stage_folder import StageFolder
from tagmask.training_curves import read_history
from tests.runs import SETTINGS, toy_run, write_toy

# 5 steps are 3 epochs of 8 images in batches of 4. With an epoch of the 4 images of the subset, they would be 5.
CHANGES = [*SETTINGS, "cam.epochs=1", "segment.epochs=null", "segment.steps=5", "segment.calibration_images=6"]
HALF = 4 * 40 * 48  # pixels of 4 of the 8 images


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run_folder(data: Path, result: DryRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the complete run, made after the dry run; its messages are in the file "log" beside it."""
    folder = tmp_path_factory.mktemp("runs")
    with redirect_stderr(io.StringIO()) as messages:
        run = toy_run(data, folder / "run", CHANGES, held_out=source(data), quiet=False, device="cpu")
    (folder / "log").write_text(messages.getvalue())
    return run.folder


@pytest.fixture(scope="module")
def result(data: Path, tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    """The dry run of the same run, with one step per training and half of the images."""
    temporary, folder = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setitem(estimate.MAX_STEPS, "cpu", 1)
        patch.setitem(estimate.NUM_PIXELS, "cpu", HALF)
        result = tagmask.dry_run(
            source(data), folder / "a" / "run", held_out=source(data), recipe="scratch", settings=CHANGES, device="cpu",
            workers=0, quiet=True,
        )  # fmt: skip
    assert list(temporary.iterdir()) == []
    assert list(folder.iterdir()) == []
    return result


def source(data: Path) -> tagmask.DataSource:
    return tagmask.DataSource(root=str(data), masks="masks")


def test_counts_equal_those_of_the_run(result: DryRun, run_folder: Path) -> None:
    counts = {(t.stage, t.description): (t.count, t.unit) for t in result.timings if t.unit}
    steps = {stage: 2 * len(read_history(StageFolder(run_folder / stage))) for stage in ("cam", "segment")}
    assert steps == {"cam": 2, "segment": 6}
    assert counts["cam", "training 1 epoch"] == (steps["cam"], "steps")
    assert counts["segment", "training 3 epochs"] == (5, "steps")  # the last epoch ends at the number of steps
    assert counts["segment", "calibrating"] == (6, "steps")
    loops = (("cam", "response maps"), ("pseudo_masks", "pseudo-masks"), ("segment", "masks of the network"))
    for stage, description in loops:
        num_files = len(list((run_folder / stage).glob("ma*s/*")))
        assert counts[stage, description] == (num_files, "images") == (8, "images")
    num_held_out = len(list((run_folder / "held_out").rglob("*.png")))
    assert counts["held-out images", "masks of the network"][0] == num_held_out == 8
    assert counts["the data", "check images"] == (8, "images")
    stages = list(dict.fromkeys(t.stage for t in result.timings))
    assert stages == ["the data", "cam", "pseudo_masks", "segment", "the report", "held-out images"]


def test_the_run_tells_the_time_that_is_left(run_folder: Path) -> None:
    lines = (run_folder.parent / "log").read_text().splitlines()
    stages = [line for line in lines if line.startswith("[")]
    assert len(stages) == 3
    assert all(re.search(r" \(about .*; the whole rest of the run about .*\)$", line) for line in stages), stages
    assert doctest.testmod(expected_times).failed == 0


def test_total_time_is_the_sum_of_its_parts(result: DryRun) -> None:
    assert result.seconds == pytest.approx(sum(t.seconds for t in result.timings))
    for t in result.timings:
        assert t.seconds >= t.seconds_per_unit * t.count > 0


def test_disk_space_is_that_of_the_run(result: DryRun, run_folder: Path) -> None:
    folders = {name: name for name in ("cam", "pseudo_masks", "segment")} | {"held-out images": "held_out"}
    for name, folder in folders.items():
        sizes = [file.stat().st_size for file in (run_folder / folder).rglob("*") if file.is_file()]
        in_blocks = sum(-(-size // 4096) * 4096 for size in sizes)
        assert result.disk[name] == pytest.approx(in_blocks, abs=3 * 4096)  # maps of more tags are larger
    network_size = (run_folder / "segment" / "segmenter.safetensors").stat().st_size
    assert result.disk["largest checkpoint"] > 2.5 * network_size  # it also holds the two averages of AdamW


def test_json(result: DryRun) -> None:
    values = json.loads(json.dumps(result.to_json()))
    assert set(values) == {"seconds", "disk_needed", "timings", "weights", "disk", "disk_free", "memory"}
    assert set(values["timings"][0]) == {"stage", "description", "unit", "count", "seconds_per_unit", "seconds"}
    assert set(values["memory"]) == {"process", "worker", "gpu"}
    assert values["disk_needed"] == sum(values["disk"].values())
    assert values["memory"]["process"] > 1e8


# Errors


def test_full_disk(result: DryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: paths.append(path) or SimpleNamespace(free=10_000_000))
    on_full_disk = replace(result, disk_free=available_disk_space(tmp_path / "not" / "yet"))
    assert paths == [tmp_path]
    message = r"run needs \d\d MB of disk space, but only 10 MB are free: free some space, or choose another --out"
    with pytest.raises(RunError, match=message):
        on_full_disk.check_disk_space("run")
    result.check_disk_space("run")
    (tmp_path / "maps").write_bytes(bytes(1000))  # of a run that is resumed
    assert available_disk_space(tmp_path) == 10_001_000


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), RunError, "stage 'cam' does not fit into the memory of cpu"),
        (MemoryError(), RunError, "stage 'cam' does not fit into the memory of cpu: lower its batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), RunError, "stage 'cam' does not fit into"),
        (RuntimeError("an illegal memory access"), RuntimeError, "an illegal memory access"),
    ],
)
def test_too_little_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type, sentence: str
) -> None:
    def run(method: Cam, context: object) -> None:
        raise error

    monkeypatch.setattr(Cam, "run", run)
    with pytest.raises(raised, match=sentence):
        tagmask.dry_run(source(data), tmp_path / "run", recipe="scratch", device="cpu", workers=0, quiet=True)


def test_errors_of_the_run(data: Path, tmp_path: Path) -> None:
    arguments = {"recipe": "scratch", "device": "cpu", "workers": 0, "quiet": True}
    with pytest.raises(DataError, match="does not exist"):
        tagmask.dry_run(tmp_path / "none", tmp_path / "run", **arguments)
    with pytest.raises(RunError, match="is not empty and holds no tagmask run"):
        tagmask.dry_run(source(data), data, **arguments)
    with pytest.raises(RecipeError, match=r"stage 'cam': weights file no\.pth does not exist"):
        tagmask.dry_run(source(data), tmp_path / "run", settings=["cam.weights=no.pth"], **arguments)
    (data / "untagged.csv").write_text("image,tags\n0.png,\n1.png,\n")
    with pytest.raises(DataError, match=r"untagged\.csv has no tag"):
        tagmask.dry_run(data, tmp_path / "run", tags=data / "untagged.csv", **arguments)


def test_stages_made_with_other_settings(data: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_run_timed", lambda *arguments: {})
    arguments = {"recipe": "scratch", "device": "cpu", "workers": 0, "quiet": True}
    tagmask.dry_run(source(data), run_folder, settings=CHANGES, **arguments)
    changes = [*CHANGES, "pseudo_masks.threshold=0.4"]
    message = r"pseudo_masks was made with other settings \(threshold .* → 0\.4\); .* add --redo"
    with pytest.raises(RunError, match=message):
        tagmask.dry_run(source(data), run_folder, settings=changes, **arguments)
    with pytest.raises(RunError, match="pseudo_masks was made with other settings"):
        tagmask.run(source(data), run_folder, settings=changes, **arguments)
    tagmask.dry_run(source(data), run_folder, settings=changes, redo=True, **arguments)


def test_memory_of_idle_workers() -> None:
    """In a process of its own, because the workers of this one can have used more memory before."""
    script = """
import operator
from joblib import delayed
from tagmask.compute import Compute
from tagmask.dryrun.estimate import peak_memory
from tagmask.progress import Reporter, run_in_workers

jobs = (delayed(operator.mul)(b"x", size) for size in (1, 400_000_000))
run_in_workers("large results", jobs, 2, 2, Reporter().progress)
print(peak_memory(Compute())["worker"])
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 400_000_000 < int(process.stdout) < 2_000_000_000


# Initial weights


def test_external_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cached = {("timm/resnet101.tv_in1k", "model.safetensors"): "/cache/file"}
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda repository, file: cached.get((repository, file)))
    assert find_external_weights(load_recipe("voc/cam")) == {
        "cam": ExternalWeights("resnet50.tv_in1k, pretrained", is_local=False),
        "irn": ExternalWeights("resnet50.tv_in1k, pretrained", is_local=False),
        "segment": ExternalWeights("resnet101.tv_in1k, pretrained", is_local=True),
    }
    assert find_external_weights(load_recipe("scratch")) == {}
    file = tmp_path / "w.pth"
    file.touch()
    with_file = load_recipe("small", [f"cam.weights={file}"])
    assert find_external_weights(with_file) == {"cam": ExternalWeights(str(file), is_local=True)}
    from_hub = Recipe(stages={"cam": Cam(backbone="hf-hub:timm/resnet101.tv_in1k")})
    assert find_external_weights(from_hub)["cam"].is_local


def test_backbone_of_external_weights() -> None:
    stages = {
        "cam": Cam(),
        "recam": ReCam(),
        "amn": Amn(backbone="resnet101", weights="none"),
        "irn": Irn(weights="pretrained"),
    }
    assert find_external_weights(Recipe(stages=stages))["irn"].source == "resnet50, pretrained"  # of the classifier
    with_weights = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
    backbone = sorted({*timm.list_models()} - with_weights)[0]
    with pytest.raises(RecipeError, match=f"stage 'cam': timm has no pretrained weights of '{backbone}'"):
        find_external_weights(Recipe(stages={"cam": Cam(backbone=backbone)}))


def test_methods_download_nothing_and_learn_almost_nothing() -> None:
    stages = estimate._for_dry_run(load_recipe("voc/amn")).stages
    sources = {name: initial.source for name, m in stages.items() if (initial := m.initial_weights())}
    assert set(sources.values()) == {"none"}
    assert set(sources) == {"cam", "amn", "irn", "segment"}
    rates = {f"{name}.{k}": v for name, m in stages.items() for k, v in m.model_dump().items() if k.endswith("lr")}
    assert max(rates.values()) < 1e-6
    assert len(rates) == 9
    initial = estimate._for_dry_run(load_recipe("scratch")).stages["segment"].initial_weights()
    assert initial is not None
    assert initial.source == "classifier"


# Parts


def images_of_sizes(sizes: list[tuple[int, int]]) -> TaggedImages:
    return TaggedImages(("a",), tuple(Sample(str(i), "", (1,), size=size) for i, size in enumerate(sizes)))


def test_subset() -> None:
    rng = np.random.default_rng(0)
    images = images_of_sizes([(int(h), int(w)) for h, w in rng.integers(50, 500, (1000, 2))])
    area = np.array([h * w for h, w in (s.size for s in images.samples)])
    subset = choose_subset(images, 20 * area.mean())
    assert 16 <= len(subset.images) <= 24
    assert subset.num_images == 1000
    assert subset.image_factor == pytest.approx(1000 / len(subset.images))
    assert images.samples[int(area.argmax())] in subset.images.samples
    chosen = [s.size[0] * s.size[1] for s in subset.images.samples if s.size]
    assert subset.pixel_factor * np.mean(chosen) == pytest.approx(area.mean())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 64])
def test_subset_of_few_images_is_all_of_them(n: int) -> None:
    images = images_of_sizes([(10, 10)] * n)
    subset = choose_subset(images, 1e9)
    assert subset.images == images
    assert subset.image_factor == 1
    assert subset.pixel_factor == 1


def test_subset_has_images_of_equal_size_and_a_tag() -> None:
    images = images_of_sizes([(10, 20)] * 400 + [(20, 10)] * 400)
    subset = choose_subset(images, 16 * 200)
    assert sorted(s.size for s in subset.images.samples) == [(10, 20)] * 8 + [(20, 10)] * 8
    samples = tuple(replace(s, tags=(1,) if s.id == "77" else ()) for s in images.samples)
    assert any(s.tags for s in choose_subset(replace(images, samples=samples), 4 * 200).images.samples)


def test_epoch_can_be_larger_than_the_number_of_images() -> None:
    sampler = ShuffledBatches(3, 4, seed=0, compute=Compute(), epoch_size=9)
    assert len(sampler) == 2
    indices = [index for batch in sampler for _, index in batch]
    assert len(indices) == 8
    assert set(indices) == {0, 1, 2}


def test_loop_timer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 0.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    subset = ImageSubset(images_of_sizes([(10, 10)] * 4), num_images=8, pixel_factor=2.0)
    timer = LoopTimer(None, tmp_path)
    with timer.time_stage("cam", subset):
        now += 3
        for description, total, unit in (("training", 100, "steps"), ("maps", 4, "images")):
            with timer.progress(description, total, unit) as advance:  # type: ignore[arg-type]
                for seconds in (5, 1, 2, 3):
                    now += seconds
                    advance(1)
                now += 1
    assert timer.timings == [
        LoopTiming("cam", "training", "steps", 100, 2, 12 - 4 * 2 + 100 * 2),  # the start of the loop counts once
        LoopTiming("cam", "maps", "images", 8, 4, 12 - 4 * 2 + 8 * 4),
        LoopTiming("cam", "outside of loops", None, 1, 3, 3),
    ]


# Command line


def test_command(
    result: DryRun,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[tuple[object, dict[str, object]]] = []
    weights = {"cam": ExternalWeights("resnet50, pretrained", is_local=False)}
    returned = replace(result, weights=weights, timings=(LoopTiming("cam", "maps", "images", 9000, 1.5, 13_800),))

    def dry_run(images: object, out: object, **arguments: object) -> DryRun:
        calls.append((out, arguments))
        return returned

    def command(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tagmask", "run", str(data), "--out", str(tmp_path / "run"), *options])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    monkeypatch.setattr("tagmask.dryrun.dry_run", dry_run)
    code, out, _ = command("--dry-run", "--recipe", "scratch", "--set", "cam.epochs=1", "--workers", "2")
    assert code == 0
    assert calls[0][0] == tmp_path / "run"
    assert calls[0][1]["settings"] == ["cam.epochs=1"]
    assert calls[0][1]["workers"] == 2
    assert not calls[0][1]["redo"]
    assert command("--dry-run", "--redo")[0] == 0
    assert calls[1][1]["redo"]
    for part in ("9,000 images", "1.5 s", "3 h 50 min", "weights of cam: resnet50, pretrained, to be downloaded"):
        assert part in out
    assert json.loads(command("--dry-run", "--json")[1])["seconds"] == 13_800
    returned = replace(returned, disk_free=1_000_000)
    code, out, error = command("--dry-run", "--quiet")
    assert (code, out) == (1, "")
    assert re.match(rf"tagmask: {tmp_path / 'run'} needs \d\d MB of disk space, but only 1 MB are free", error)
