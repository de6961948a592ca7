"""Commands on shards give what they give on files."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
import torch

from tagmask.data.held_out import held_out_source
from tagmask.data.shard_writer import pack_shards
from tagmask.data.source import DataSource
from tagmask.progress import Reporter
from tagmask.run_data import read_run_data
from tests.cli.runner import RunCommand, RunFailing
from tests.runs import contents, toy_run
from tests.storage import MakeStorage
from tests.storage import contents as stored

SHARDS = [f"data-0000{i}-of-00003.parquet" for i in range(3)]


@pytest.fixture(scope="session")
def shards(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data set in three shards."""
    out = tmp_path_factory.mktemp("shards")
    images = DataSource(root=str(data), masks="masks").read()
    pack_shards(images, str(out), images_per_shard=3, progress=Reporter().progress)
    return out


def test_shard_and_check(command: RunCommand, data: Path, make_storage: MakeStorage) -> None:
    out = make_storage("s3")
    arguments = ["shard", data, "--masks", "masks", "--out", out, "--images-per-shard", "3"]
    result = command(*arguments, "--json")
    assert result.status == 0, result.err
    size = sum(map(len, stored(out).values()))
    assert result.json == {
        "shards": [f"{out}/{name}" for name in SHARDS], "kept": 0, "images": 8, "bytes": size, "problems": []
    }  # fmt: skip
    assert command(*arguments).out == f"8 images in 3 shards (0 MB, 3 of them kept) in {out}\n"
    from_shards, from_files = command("check", out, "--json"), command("check", data, "--masks", "masks", "--json")
    assert from_shards.status == from_files.status == 0
    assert from_shards.json | {"name": ""} == from_files.json | {"name": ""}


def test_a_run_is_the_same_byte_for_byte(finished: Path, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    toy_run(shards, run, source=DataSource(root=str(shards)))
    expected, made = contents(finished), contents(run)
    of_stages = {name for name in expected if name.startswith(("cam/", "segment/"))}
    assert len(of_stages) > 20
    for name in of_stages:
        assert made[name] == expected[name], name
    assert (run / "report.html").exists()


def test_held_out_shards(command: RunCommand, data: Path, shards: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    for split in ("train", "val"):
        table = tmp_path / "tags.csv"
        lines = (data / "tags.csv").read_text().splitlines()
        rows = [f"{line},{'val' if i > 5 else 'train'}" for i, line in enumerate(lines[1:])]
        table.write_text("\n".join([lines[0] + ",split", *rows]))
        arguments = ["--masks", "masks", "--tags", table, "--split", split]
        assert command("shard", data, "--out", both, *arguments).status == 0
    for training, val in (
        (DataSource(root=str(both), split="train"), "val"),
        (DataSource(root=str(data), masks="masks"), str(shards)),
        (DataSource(root=str(data), masks="masks"), f"memory://{_copy_to_memory(shards)}"),
    ):
        images, held_out = read_run_data(
            training, held_out_source(training, val), skip_bad=False, workers=1, reporter=Reporter()
        )
        assert held_out is not None
        assert held_out.classes == images.classes == ("blue", "green", "red")
        assert [s.id for s in held_out.samples] == (["6", "7"] if val == "val" else [str(i) for i in range(8)])


def _copy_to_memory(folder: Path) -> str:
    system = fsspec.filesystem("memory")
    for file in folder.iterdir():
        system.pipe_file(f"{folder.name}/{file.name}", file.read_bytes())
    return folder.name


def test_evaluate_and_saliency(
    command: RunCommand, data: Path, shards: Path, tmp_path: Path, with_tokencut: list[str]
) -> None:
    on = {"files": [data, "--masks", "masks"], "shards": [shards]}
    scores = {
        name: command("evaluate", data / "masks", "--data", *arguments, "--workers", "0", "--json")
        for name, arguments in on.items()
    }
    assert scores["shards"].json == scores["files"].json
    assert scores["shards"].json["miou"] == 1
    for name, (images, *_) in on.items():
        result = command("saliency", images, *with_tokencut, "--out", tmp_path / name / "saliency", "--workers", "0")
        assert result.status == 0, result.err
    assert contents(tmp_path / "shards") == contents(tmp_path / "files")


def test_settings_without_effect(fails: RunFailing, data: Path, shards: Path, tmp_path: Path) -> None:
    sentence = fails("shard", data, "--saliency", "x", "--out", tmp_path / "out")
    assert sentence == "shards hold no saliency files: leave out --saliency here, and give it to `tagmask run`."
    assert "'tags' has no effect" in fails("check", shards, "--format", "shards", "--tags", data / "tags.csv")
    assert "holds no shards" in fails("check", data, "--format", "shards")
    assert "holds no shards; name a table" in fails("check", "memory://nothing")


def test_a_full_disk_or_missing_permission_is_one_sentence(fails: RunFailing, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("shard", data, "--out", tmp_path / "file" / "out")


def test_predict_and_evaluate(
    command: RunCommand, fails: RunFailing, finished: Path, shards: Path, make_storage: MakeStorage, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    out = make_storage("memory")
    arguments = ["predict", finished, shards, "--out", out, "--workers", "0", "--device", "cpu", "--single-pass"]
    first = command(*arguments, "--shard", "1/2")
    assert (first.status, first.out) == (0, f"5 masks in 2 shards in {out}\n")
    made = command(*arguments, "--json").json
    assert made == {
        "shards": [f"{out}/{name}" for name in SHARDS], "kept": 2, "masks": 8, "left_out": [], "failed": {}
    }  # fmt: skip
    scores = command("evaluate", out, "--data", shards, "--workers", "0", "--json")
    assert scores.status == 0, scores.err
    assert set(scores.json) >= {"miou", "pixel_accuracy"}
    assert "another network" in fails(*(a for a in arguments if a != "--single-pass"))

    copy = tmp_path / "copy"
    copy.mkdir()
    for name in SHARDS:
        (copy / name).write_bytes((shards / name).read_bytes() if name != SHARDS[1] else b"damaged")
    result = command(*arguments[:2], copy, "--out", tmp_path / "out", *arguments[5:], "--json")
    assert result.status == 1
    assert list(result.json["failed"]) == [str(copy / SHARDS[1])]
    assert "1 of 3 shards have no masks" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--also", "coco"], "--also has no effect on shards"),
        (["--tags", "t.csv"], "--tags has no effect on shards"),
        (["--shard", "5"], "write it as i/n"),
        (["--split", "val"], "no shards of the split 'val'"),
        (["--engine", "dask"], "'dask' is not one of 'local', 'ray'"),
    ],
)
def test_options_of_predict(
    command: RunCommand, finished: Path, shards: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = command("predict", finished, shards, "--out", tmp_path / "out", *options)
    assert result.status in (1, 2)
    assert message in result.error_text
    result = command("predict", finished, shards.parent, "--out", tmp_path / "out", "--shard", "1/2")
    assert "make them with `tagmask shard`" in result.error_text
