"""A dry run: what it says of a run, against that run; and that nothing is left of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

import tagmask
from tagmask.cli import main
from tagmask.data.samples import Sample, TaggedImages
from tagmask.dryrun import DryRun, clock, downloads, dry_run
from tagmask.dryrun.subset import ImageSubset
from tagmask.dryrun.timing import LoopTimer, Timing
from tagmask.dryrun.weights import weights_from_outside, without_downloads
from tagmask.errors import DataError, RecipeError, RunError
from tagmask.methods.amn import Amn
from tagmask.methods.cam import Cam
from tagmask.methods.irn import Irn
from tagmask.recipe import Recipe, load_recipe
from tagmask.training import read_history
from tests.runs import SETTINGS, toy_run, write_toy

# Five steps are three epochs of the eight pictures in batches of four, but would be five of four pictures
CHANGES = [*SETTINGS, "cam.epochs=1", "segment.epochs=null", "segment.steps=5"]
HALF = 4 * 40 * 48  # pixels of four of the eight pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_run(data, tmp_path_factory.mktemp("runs") / "run", CHANGES, held_out=source(data)).folder


@pytest.fixture(scope="module")
def rehearsed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    """Of the same run: one step of each training, and half of the pictures."""
    temporary, folder = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setitem(dry_run.STEPS, "cpu", 1)
        patch.setitem(dry_run.PIXELS, "cpu", HALF)
        found = tagmask.dry_run(
            source(data), folder / "a" / "run", held_out=source(data), recipe="scratch", settings=CHANGES, device="cpu",
            workers=0, quiet=True,
        )  # fmt: skip
    assert list(temporary.iterdir()) == []
    assert list(folder.iterdir()) == []
    return found


def source(data: Path) -> tagmask.DataSource:
    return tagmask.DataSource(root=str(data), masks="masks")


def test_it_counts_what_the_run_does(rehearsed: DryRun, real: Path) -> None:
    units = {(t.stage, t.what): (t.units, t.unit) for t in rehearsed.timings if t.unit}
    steps = {stage: 2 * len(read_history(real / stage)) for stage in ("cam", "segment")}
    assert steps == {"cam": 2, "segment": 6}
    assert units["cam", "training 1 epochs"] == (steps["cam"], "steps")
    assert units["segment", "training 3 epochs"] == (steps["segment"], "steps")
    for stage, what in (("cam", "response maps"), ("crf", "pseudo-masks (CRF)"), ("segment", "masks from the network")):
        made = len(list((real / stage).glob("ma*s/*")))
        assert units[stage, what] == (made, "images") == (8, "images")
    assert units["held_out", "masks from the network"][0] == len(list((real / "held_out").rglob("*.png")))
    assert units["the data", "check images"] == (8, "images")  # all of them
    parts = list(dict.fromkeys(t.stage for t in rehearsed.timings))
    assert parts == ["the data", "cam", "crf", "segment", "the report", "held_out"]


def test_the_time_of_all_is_that_of_its_parts(rehearsed: DryRun) -> None:
    assert rehearsed.seconds == pytest.approx(sum(t.seconds for t in rehearsed.timings))
    for timing in rehearsed.timings:
        assert timing.seconds >= timing.each * timing.units > 0


def test_the_disk_is_the_run_s(rehearsed: DryRun, real: Path) -> None:
    for stage in ("cam", "crf", "segment", "held_out"):
        blocks = sum(-(-f.stat().st_size // 4096) * 4096 for f in (real / stage).rglob("*") if f.is_file())
        assert rehearsed.disk[stage] == pytest.approx(blocks, abs=3 * 4096)  # maps of more tags are larger
    weights = (real / "segment" / "segmenter.safetensors").stat().st_size
    assert rehearsed.disk["a checkpoint"] > 2.5 * weights  # and AdamW's two averages


def test_json(rehearsed: DryRun) -> None:
    found = json.loads(json.dumps(rehearsed.to_json()))
    assert set(found) == {"seconds", "disk_needed", "timings", "weights", "disk", "disk_free", "memory"}
    assert set(found["timings"][0]) == {"stage", "what", "unit", "units", "each", "seconds"}
    assert set(found["memory"]) == {"process", "worker", "gpu"}
    assert found["disk_needed"] == sum(found["disk"].values())
    assert found["memory"]["process"] > 1e8


# What cannot be


def test_a_disk_that_is_full(rehearsed: DryRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=10_000_000))
    full = replace(rehearsed, disk_free=dry_run._free(tmp_path / "not" / "yet"))
    assert asked == [tmp_path]
    with pytest.raises(RunError, match=r"run would take 0\.\d GB, and 10 MB are free there: free some, or choose"):
        full.check(Path("run"))
    rehearsed.check(Path("run"))
    (tmp_path / "maps").write_bytes(bytes(1000))  # of a run that is to go on
    assert dry_run._free(tmp_path) == 10_001_000


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), RunError, "stage 'cam' does not fit into the memory of cpu"),
        (MemoryError(), RunError, "stage 'cam' does not fit into the memory of cpu: lower its batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), RunError, "stage 'cam' does not fit into"),
        (RuntimeError("an illegal memory access"), RuntimeError, "an illegal memory access"),
    ],
)
def test_memory_that_does_not_suffice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: type, sentence: str
) -> None:
    def run(method: Cam, context: object) -> None:
        raise error

    monkeypatch.setattr(Cam, "run", run)
    with pytest.raises(raised, match=sentence):
        tagmask.dry_run(source(data), tmp_path / "run", recipe="scratch", device="cpu", workers=0, quiet=True)


def test_what_the_run_would_refuse(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = {"recipe": "scratch", "device": "cpu", "workers": 0, "quiet": True}
    with pytest.raises(DataError, match="does not exist"):
        tagmask.dry_run(tmp_path / "none", tmp_path / "run", **refuse)
    with pytest.raises(RunError, match="is not empty and holds no tagmask run"):
        tagmask.dry_run(source(data), data, **refuse)
    with pytest.raises(RecipeError, match=r"stage 'cam': weights file no\.pth does not exist"):
        tagmask.dry_run(source(data), tmp_path / "run", settings=["cam.weights=no.pth"], **refuse)
    (data / "untagged.csv").write_text("image,tags\n0.png,\n1.png,\n")
    with pytest.raises(DataError, match="there is nothing to learn from"):
        tagmask.dry_run(data, tmp_path / "run", tags=data / "untagged.csv", **refuse)


def test_stages_made_with_other_settings(data: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "_carry_out", lambda *arguments: {})
    common = {"recipe": "scratch", "device": "cpu", "workers": 0, "quiet": True}
    tagmask.dry_run(source(data), real, settings=CHANGES, **common)
    changes = [*CHANGES, "crf.threshold=0.4"]
    with pytest.raises(RunError, match=r"crf was made with other settings \(threshold .* → 0\.4\); .* say --redo"):
        tagmask.dry_run(source(data), real, settings=changes, **common)
    with pytest.raises(RunError, match="crf was made with other settings"):
        tagmask.run(source(data), real, settings=changes, **common)
    tagmask.dry_run(source(data), real, settings=changes, redo=True, **common)


def test_the_memory_of_workers_that_wait_for_more() -> None:
    """In a process of its own: the workers of this one may have used more before."""
    script = """
import operator
from joblib import delayed
from tagmask.compute import Compute
from tagmask.progress import in_parallel, no_progress
from tagmask.dryrun.dry_run import _memory

in_parallel("much", (delayed(operator.mul)(b"x", size) for size in (1, 400_000_000)), 2, 2, no_progress)
print(_memory(Compute())["worker"])
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 400_000_000 < int(found.stdout) < 2_000_000_000


# Weights


def test_weights_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = {("timm/resnet101.tv_in1k", "model.safetensors"): "/cache/file"}
    monkeypatch.setattr(downloads, "try_to_load_from_cache", lambda repository, file: here.get((repository, file)))
    assert weights_from_outside(load_recipe("voc/cam")) == {
        "cam": {"weights": "resnet50.tv_in1k, pretrained", "here": False},
        "irn": {"weights": "resnet50.tv_in1k, pretrained", "here": False},
        "segment": {"weights": "resnet101.tv_in1k, pretrained", "here": True},
    }
    assert weights_from_outside(load_recipe("scratch")) == {}
    file = tmp_path / "w.pth"
    file.touch()
    changed = load_recipe("small", [f"cam.weights={file}"])
    assert weights_from_outside(changed) == {"cam": {"weights": str(file), "here": True}}
    hub = Recipe(stages={"cam": Cam(backbone="hf-hub:timm/resnet101.tv_in1k")})
    assert weights_from_outside(hub)["cam"]["here"]
    of_two = {"cam": Cam(), "amn": Amn(backbone="resnet101", weights="none"), "irn": Irn(weights="pretrained")}
    assert weights_from_outside(Recipe(stages=of_two))["irn"]["weights"] == "resnet50, pretrained"  # the classifier's
    without = sorted({*timm.list_models()} - {name.partition(".")[0] for name in timm.list_models(pretrained=True)})[0]
    with pytest.raises(RecipeError, match=f"timm has no pretrained weights of '{without}'"):
        weights_from_outside(Recipe(stages={"cam": Cam(backbone=without)}))


def test_nothing_is_downloaded_and_hardly_anything_learnt() -> None:
    changed = without_downloads(load_recipe("voc/amn")).stages
    assert {name: m.weights for name, m in changed.items()} == dict.fromkeys(changed, "none")  # type: ignore[attr-defined]
    rates = {f"{n}.{k}": v for n, m in changed.items() for k, v in m.model_dump().items() if k.endswith("lr")}
    assert max(rates.values()) < 1e-6
    assert len(rates) == 7
    scratch = load_recipe("scratch")
    assert without_downloads(scratch).stages["segment"].weights == "classifier"  # type: ignore[attr-defined]


# The parts


def images(sizes: list[tuple[int, int]]) -> TaggedImages:
    return TaggedImages(("a",), tuple(Sample(str(i), "", (1,), size=size) for i, size in enumerate(sizes)))


def test_few_images_stand_for_many() -> None:
    rng = np.random.default_rng(0)
    many = images([(int(h), int(w)) for h, w in rng.integers(50, 500, (1000, 2))])
    area = np.array([h * w for h, w in (s.size for s in many.samples)])
    few = ImageSubset.of(many, 20 * area.mean())
    assert len(few) == 1000
    assert 16 <= len(few.samples) <= 24
    assert many.samples[int(area.argmax())] in few.samples
    chosen = [s.size[0] * s.size[1] for s in few.samples if s.size]
    assert few.pixels * np.mean(chosen) == pytest.approx(area.mean())
    assert few.samples[999] in few.samples
    assert [few.samples[i].id for i in range(len(few.samples))] == [s.id for s in few.samples]
    half = few.select(lambda s: s in few.samples[: len(few.samples) // 2])
    assert len(half) == pytest.approx(500, abs=25)
    assert len(half.select(lambda s: False).select(lambda s: True)) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 64])
def test_few_images_are_all_where_they_are_few(n: int) -> None:
    few = ImageSubset.of(images([(10, 10)] * n), 1e9)
    assert len(few) == len(few.samples) == n
    assert few.pixels == 1


def test_images_of_one_size_go_together_and_one_has_tags() -> None:
    many = images([(10, 20)] * 400 + [(20, 10)] * 400)
    few = ImageSubset.of(many, 16 * 200)
    assert sorted(s.size for s in few.samples) == [(10, 20)] * 8 + [(20, 10)] * 8
    rarely = replace(many, samples=tuple(replace(s, tags=(1,) if s.id == "77" else ()) for s in many.samples))
    assert any(s.tags for s in ImageSubset.of(rarely, 4 * 200).samples)


def test_the_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 0.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    few = replace(ImageSubset.of(images([(10, 10)] * 8), 400), pixels=2.0)  # four stand for eight of twice the size
    timed = LoopTimer(None, tmp_path)
    with timed.part("cam", few):
        now += 3
        for what, total, unit in (("training", 100, "steps"), ("maps", 4, "images")):
            with timed.progress(what, total, unit) as advance:
                for seconds in (5, 1, 2, 3):
                    now += seconds
                    advance(1)
                now += 1
    assert timed.timings == [
        Timing("cam", "training", "steps", 100, 2, 12 - 4 * 2 + 100 * 2),  # the first costs more, once
        Timing("cam", "maps", "images", 8, 4, 12 - 4 * 2 + 8 * 4),
        Timing("cam", "all besides", "", 1, 3, 3),
    ]


# The command line


def test_the_command(
    rehearsed: DryRun,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[object, dict[str, object]]] = []
    weights = {"cam": {"weights": "resnet50, pretrained", "here": False}}
    found = replace(rehearsed, weights=weights, timings=(Timing("cam", "maps", "images", 9000, 1.5, 13_800),))

    def dry_run(images: object, out: object, **arguments: object) -> DryRun:
        asked.append((out, arguments))
        return found

    def command(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tagmask", "run", str(data), "--out", str(tmp_path / "run"), *options])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    monkeypatch.setattr("tagmask.dryrun.rehearse", dry_run)
    code, out, _ = command("--dry-run", "--recipe", "scratch", "--set", "cam.epochs=1", "--workers", "2")
    assert code == 0
    assert asked[0][0] == tmp_path / "run"
    assert asked[0][1]["settings"] == ["cam.epochs=1"]
    assert asked[0][1]["workers"] == 2
    assert not asked[0][1]["redo"]
    assert command("--dry-run", "--redo")[0] == 0
    assert asked[1][1]["redo"]
    for part in ("9,000 images", "1.5 s", "3 h 50 min", "weights of cam: resnet50, pretrained, to be downloaded"):
        assert part in out
    assert json.loads(command("--dry-run", "--json")[1])["seconds"] == 13_800
    found = replace(found, disk_free=1_000_000)
    code, out, error = command("--dry-run", "--quiet")
    assert (code, out) == (1, "")
    assert error.startswith(f"tagmask: {tmp_path / 'run'} would take 0.1 GB, and 1 MB are free there")
