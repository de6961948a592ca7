"""Prediction on shards: the same bytes whoever makes them, and whatever fails in between."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import tagmask
from tagmask import segment_shard
from tagmask.api import evaluate_predictions
from tagmask.data.samples import Sample
from tagmask.data.shard_file import OpenShard
from tagmask.data.shard_writer import pack_shards
from tagmask.data.source import DataSource
from tagmask.data.storage import find_file
from tagmask.errors import DataError, RunError, StorageError
from tagmask.execution import parse_part
from tagmask.label_map import read_label_map
from tagmask.models.segmenter import Segmenter
from tagmask.predict_shards import ShardPredictions, predict_shards
from tagmask.progress import Reporter
from tests.command_processes import start_command
from tests.runs import write_toy
from tests.storage import KINDS, MakeStorage, contents, file_system

CLASSES = ("blue", "green", "red")
SECOND = "data-00001-of-00004.parquet"
ARGUMENTS = {"device": "cpu", "precision": "float32", "workers": 0, "quiet": True}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("files") / "toy")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights, in a folder of the format hub."""
    return save_network(tmp_path_factory.mktemp("network"), seed=0)


def save_network(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    Segmenter("Unet", "test_resnet", CLASSES).save(folder, test={"scales": [1.0], "crf": None})
    return folder


@pytest.fixture(scope="module")
def shards(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy images in four shards."""
    return pack(data, str(tmp_path_factory.mktemp("shards")))


def pack(data: Path, out: str) -> Path:
    images = DataSource(root=str(data), masks="masks").read()
    pack_shards(images, out, images_per_shard=2, progress=Reporter().progress)
    return Path(out)


@pytest.fixture(scope="module")
def expected(network: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process without workers makes."""
    out = tmp_path_factory.mktemp("expected")
    predict(network, shards, out)
    return contents(str(out))


def predict(network: Path, shards: Path | str, out: Path | str, **arguments: object) -> ShardPredictions:
    made = predict_shards(network, shards, out, **(ARGUMENTS | arguments))  # type: ignore[arg-type]
    made.check()
    return made


def test_masks_are_those_of_files(network: Path, data: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    files = tagmask.load(network, device="cpu", precision="float32", workers=0).predict_files(
        [data / f"{i}.png" for i in range(8)], tmp_path / "files", quiet=True
    )
    (tmp_path / "shards").mkdir()
    found: dict[str, bytes] = {}
    for name, content in expected.items():
        (tmp_path / "shards" / name).write_bytes(content)
        file = find_file(str(tmp_path / "shards" / name))
        assert file is not None
        shard = OpenShard.open(file)
        index = shard.read_index("masks")
        found |= dict(zip(index.ids, shard.read_group(0, "mask").to_pylist(), strict=True))
        for image_id, tags in zip(index.ids, index.tags, strict=True):
            labels = read_label_map(files[image_id])
            assert tags == tuple(sorted(set(np.unique(labels).tolist()) - {0}))
    assert found == {image_id: path.read_bytes() for image_id, path in files.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_in_any_storage(
    network: Path, data: Path, kind: str, make_storage: MakeStorage, expected: dict[str, bytes], tmp_path: Path
) -> None:
    images, masks = make_storage(kind), make_storage(kind)
    if kind != "folder":
        system, path = file_system(images)
        system.makedirs(path, exist_ok=True)
    pack(data, images)
    assert predict(network, images, masks).num_images == 8
    made = contents(masks)
    assert made == expected
    assert all(outcome.kept for outcome in predict(network, images, masks).outcomes)
    assert contents(masks) == made


def test_the_same_bytes_from_workers_and_parts(
    network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    predict(network, shards, tmp_path / "workers", workers=2)
    assert contents(str(tmp_path / "workers")) == expected
    first = predict(network, shards, tmp_path / "parts", part=(1, 2))
    assert [Path(outcome.task.out_url).name[5:10] for outcome in first.outcomes] == ["00000", "00002"]
    predict(network, shards, tmp_path / "parts", part=(2, 2))
    assert contents(str(tmp_path / "parts")) == expected


def test_parts() -> None:
    assert parse_part(None) is None
    assert parse_part("2/3") == (2, 3)
    for text in ("0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3"):
        with pytest.raises(RunError, match="is not a part: write it as i/n"):
            parse_part(text)


# What fails in between


def test_a_killed_process_loses_nothing(
    network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["predict", network, shards, "--out", out, "--workers", "0", "--device", "cpu"]
    process = start_command([*map(str, command), "--precision", "float32"], tmp_path / "log")
    deadline = time.monotonic() + 120
    while not list(out.glob("*.parquet")) and process.exitcode is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    for name, content in contents(str(out)).items():
        if not name.endswith(".tmp"):
            assert content == expected[name]
    for file in out.glob(".*.tmp"):
        os.utime(file, (0, 0))
    predict(network, shards, out)
    assert contents(str(out)) == expected


def test_a_killed_worker_loses_nothing(
    network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, read = os.getpid(), Sample.read_reduced_image

    def read_or_die(sample: Sample) -> np.ndarray:
        if os.getpid() != main and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(sample)

    monkeypatch.setattr(Sample, "read_reduced_image", read_or_die)
    predict(network, shards, tmp_path / "out", workers=1)
    assert (tmp_path / "killed").exists()
    assert contents(str(tmp_path / "out")) == expected


def test_a_damaged_shard_does_not_stop_the_others(
    network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    copy, out = tmp_path / "copy", tmp_path / "out"
    copy.mkdir()
    for file in shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    good = (copy / SECOND).read_bytes()
    (copy / SECOND).write_bytes(good[:2000] + b"x" * 1000 + good[3000:])
    made = predict_shards(network, copy, out, **ARGUMENTS)  # type: ignore[arg-type]
    assert [outcome.error is None for outcome in made.outcomes] == [True, False, True, True]
    with pytest.raises(RunError, match=rf"^1 of 4 shards have no masks: .*{SECOND}.*damaged.*makes only these\.$"):
        made.check()
    assert contents(str(out)).keys() == expected.keys() - {SECOND}
    (copy / SECOND).write_bytes(good)
    assert [outcome.kept for outcome in predict(network, copy, out).outcomes] == [True, False, True, True]
    assert contents(str(out)) == expected
    (copy / SECOND).unlink()
    with pytest.raises(DataError, match=f"lacks {SECOND}; run the command again that made them. With --skip-bad"):
        predict(network, copy, out)


@pytest.fixture
def failing_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets a share of all calls of fsspec's memory file system fail."""
    rng, share = random.Random(0), [0.0]

    def failing(call: Callable[..., object]) -> Callable[..., object]:
        def fail_or_call(*args: object, **options: object) -> object:
            if rng.random() < share[0]:
                raise ConnectionError("the storage is tired")
            return call(*args, **options)

        return fail_or_call

    for name in ("cat_file", "get_file", "put_file", "info"):
        monkeypatch.setattr(MemoryFileSystem, name, failing(getattr(MemoryFileSystem, name)))
    monkeypatch.setattr(segment_shard, "RETRY_SECONDS", 0.0)

    def set_share(value: float) -> None:
        share[0] = value

    return set_share


def test_storage_that_fails_now_and_then(
    network: Path, data: Path, make_storage: MakeStorage, failing_memory: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    images, masks, other = (make_storage("memory") for _ in range(3))
    pack(data, images)
    predict(network, images, masks)
    failing_memory(0.15)
    for _ in range(20):
        made = predict_shards(network, images, other, skip_bad=True, **ARGUMENTS)  # type: ignore[arg-type]
        assert not any(outcome.left_out for outcome in made.outcomes)
        if not made.failed:
            break
    failing_memory(0)
    assert contents(other) == contents(masks)
    failing_memory(1)
    made = predict_shards(network, images, make_storage("memory"), skip_bad=True, **ARGUMENTS)  # type: ignore[arg-type]
    assert len(made.failed) == 4
    assert all("tired" in str(outcome.error) and "3 attempts" in str(outcome.error) for outcome in made.outcomes)


def test_storage_that_fails_makes_no_image_bad(
    data: Path, make_storage: MakeStorage, failing_memory: Callable[[float], None]
) -> None:
    from tagmask.data.verify import verify_images

    root = make_storage("memory")
    pack(data, root)
    images = DataSource(root=root).read()
    failing_memory(1)
    with pytest.raises(StorageError, match="tired"):
        verify_images(images, skip_bad=True, workers=2, progress=Reporter().progress)
    with pytest.raises(StorageError, match="tired"):
        DataSource(root=root).read()


def _predict_to(network: Path, shards: Path, out: Path) -> None:
    torch.set_num_threads(1)
    predict(network, shards, out)


def test_two_executors_at_the_same_shards(
    network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_predict_to, args=(network, shards, tmp_path / "out")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert contents(str(tmp_path / "out")) == expected


# Bad images, other networks


def test_bad_images(network: Path, data: Path, tmp_path: Path) -> None:
    copy = write_toy(tmp_path / "copy")
    (copy / "3.png").write_bytes(b"no image")
    packed = pack(copy, str(tmp_path / "shards"))
    made = predict_shards(network, packed, tmp_path / "out", **ARGUMENTS)  # type: ignore[arg-type]
    assert [bool(outcome.error) for outcome in made.outcomes] == [False, True, False, False]
    assert f"{packed}/{SECOND}#1.png: is not an image" in str(made.outcomes[1].error)
    made = predict(network, packed, tmp_path / "out", skip_bad=True)
    assert made.num_images == 7
    assert made.to_json()["left_out"] == [f"{SECOND}#1.png: is not an image that can be read; replace or remove it."]


def test_masks_of_another_network_are_kept_without_redo(
    network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    other, out = save_network(tmp_path / "other", seed=1), tmp_path / "out"
    predict(other, shards, out)
    before = contents(str(out))
    with pytest.raises(RunError, match=r"holds masks of another network or of other images; choose another --out"):
        predict(network, shards, out)
    assert contents(str(out)) == before != expected
    predict(network, shards, out, redo=True)
    assert contents(str(out)) == expected
    (out / SECOND).write_bytes(b"damaged")
    with pytest.raises(RunError, match=f"1 of 4 shards.*{SECOND} is damaged"):
        predict(network, shards, out)
    predict(network, shards, out, redo=True)
    assert contents(str(out)) == expected


def test_mistakes(network: Path, shards: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no shards; make them with `tagmask shard`"):
        predict(network, data, tmp_path)
    with pytest.raises(RunError, match="holds the images; choose another --out"):
        predict(network, shards, f"{shards}/")
    with pytest.raises(RunError, match="part 3/2 does not exist"):
        predict(network, shards, tmp_path, part=(3, 2))
    with pytest.raises(DataError, match="ftp://host cannot be written to"):
        predict(network, shards, "ftp://host")


# Evaluation


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_evaluation_of_sharded_masks(
    network: Path, data: Path, shards: Path, kind: str, make_storage: MakeStorage, tmp_path: Path
) -> None:
    masks = make_storage(kind)
    predict(network, shards, masks)
    files = tagmask.load(network, device="cpu", precision="float32", workers=0).predict_files(
        [data / f"{i}.png" for i in range(8)], tmp_path / "files", quiet=True
    )
    on_files, on_shards = DataSource(root=str(data), masks="masks"), DataSource(root=str(shards))
    arguments = {"device": "cpu", "workers": 0, "quiet": True}
    _, reference = evaluate_predictions(next(iter(files.values())).parent, on_files, **arguments)  # type: ignore[arg-type]
    assert reference.confusion.sum() == 8 * 40 * 48
    for source in (on_files, on_shards):
        classes, scores = evaluate_predictions(masks, source, **arguments)  # type: ignore[arg-type]
        assert classes == CLASSES
        assert scores.to_json(classes) == reference.to_json(classes)
    other_order = on_shards.model_copy(update={"classes": ("red", "green")})
    classes, scores = evaluate_predictions(masks, other_order, **arguments)  # type: ignore[arg-type]
    assert classes == CLASSES


def test_parts_of_an_evaluation_add_up(
    network: Path, data: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of worker processes, merged, are those of one process."""
    from tagmask import image_metrics

    predict(network, shards, tmp_path / "masks")
    source = DataSource(root=str(shards))
    _, alone = evaluate_predictions(tmp_path / "masks", source, device="cpu", workers=0, quiet=True)
    monkeypatch.setattr(image_metrics, "TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(image_metrics, "MIN_SECONDS", 0.0)
    _, merged = evaluate_predictions(tmp_path / "masks", source, device="cpu", workers=2, quiet=True)
    assert merged.to_json(CLASSES) == alone.to_json(CLASSES)


def test_evaluation_names_what_is_missing(network: Path, data: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(network, shards, out, part=(1, 2))
    source = DataSource(root=str(shards))
    with pytest.raises(DataError, match=r"lacks data-00001-of-00004\.parquet, data-00003-of-00004\.parquet"):
        evaluate_predictions(out, source, device="cpu", workers=0, quiet=True)
    with pytest.raises(DataError, match="holds images, not masks"):
        evaluate_predictions(shards, source, device="cpu", workers=0, quiet=True)
    predict(network, shards, out)
    images = replace(source.read(), classes=CLASSES)
    extra = pack_shards(replace(images, samples=(replace(images.samples[0], id="new"),)), str(tmp_path / "more"),
                        progress=Reporter().progress)  # fmt: skip
    assert extra.num_images == 1
    with pytest.raises(DataError, match=r"there is no mask in .*out for image new"):
        evaluate_predictions(out, DataSource(root=str(tmp_path / "more")), device="cpu", workers=0, quiet=True)
