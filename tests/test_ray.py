"""Prediction on shards with Ray: the same bytes, also if an actor is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tagmask
import tagmask.data.verify
import tagmask.image_metrics
import tagmask.predict_shards
from tagmask import stage_shards
from tagmask.api import evaluate_predictions
from tagmask.engines import ray as engine
from tagmask.errors import RunError, WorkerKilledError
from tagmask.execution import Execution
from tagmask.predict import Predictor
from tagmask.predict_shards import _killed, _load_network, _segmenter, predict_shards
from tagmask.segment_shard import ShardOutcome, ShardSettings, ShardTask
from tests.runs import contents as contents_of_run
from tests.runs import toy_run, write_toy
from tests.storage import MakeStorage, contents
from tests.test_predict_shards import ARGUMENTS, CLASSES, pack, save_network

ray = pytest.importorskip("ray", reason="install tagmask[ray]")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of three CPUs on this machine: two actors and one CPU that stays free."""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "src")])
    ray.init(
        num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("network"), seed=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(write_toy(tmp_path_factory.mktemp("files")), str(tmp_path_factory.mktemp("shards")))


@pytest.fixture
def expected(network: Path, shards: Path, tmp_path: Path) -> dict[str, bytes]:
    torch.set_num_threads(1)
    predict_shards(network, shards, tmp_path / "expected", **ARGUMENTS).check()  # type: ignore[arg-type]
    return contents(str(tmp_path / "expected"))


LAST = "data-00003-of-00004.parquet"


def tasks(shards: Path, out: Path) -> list[ShardTask]:
    return [ShardTask(str(file), str(out / file.name)) for file in sorted(shards.iterdir())]


def segment(load: Any, jobs: list[ShardTask], num_actors: int) -> list[ShardOutcome]:
    start = partial(_segmenter, load, ShardSettings())
    return list(engine.run_tasks(start, jobs, _killed, num_actors=num_actors))


class KillingPredictor:
    """Kills its process at the image 2 once, and at the image 6 as often as `times` says."""

    def __init__(self, predictor: Predictor, folder: Path, times: int) -> None:
        self._predictor, self._folder, self._times = predictor, folder, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def write_missing_masks(self, folder: Any, images: Any, reporter: Any) -> None:
        first = images.samples[0].id
        for number in range({"2": min(1, self._times), "6": self._times}.get(first, 0)):
            marker = self._folder / f"killed-{first}-{number}"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        self._predictor.write_missing_masks(folder, images, reporter)


def load_killing(network: Path, folder: Path, times: int, workers: int) -> Any:
    return KillingPredictor(_load_network(str(network), "cpu", "float32", False, False, workers), folder, times)  # type: ignore[arg-type]


def test_the_same_bytes(network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    made = predict_shards(network, shards, tmp_path / "out", engine="ray", **ARGUMENTS)  # type: ignore[arg-type]
    made.check()
    assert made.num_images == 8
    assert contents(str(tmp_path / "out")) == expected


def test_killed_actors_lose_nothing_and_stop_no_other_shard(
    network: Path, shards: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ATTEMPTS", 2)
    monkeypatch.setattr(tagmask.predict_shards, "ATTEMPTS", 2)
    out = tmp_path / "out"
    load = partial(load_killing, network, tmp_path, 2)
    outcomes = segment(load, tasks(shards, out), num_actors=2)
    assert sorted(path.name for path in tmp_path.glob("killed-*")) == ["killed-2-0", "killed-6-0", "killed-6-1"]
    assert len(outcomes) == 4
    [failed] = [outcome for outcome in outcomes if outcome.error]
    assert failed.error == f"{shards}/{LAST}: its process was killed 2 times."
    assert contents(str(out)) == {name: content for name, content in expected.items() if name != LAST}
    made = predict_shards(network, shards, out, **ARGUMENTS)  # type: ignore[arg-type]
    assert [outcome.kept for outcome in made.outcomes] == [True, True, True, False]
    assert contents(str(out)) == expected


def test_a_damaged_shard_and_one_actor(network: Path, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "data-00002-of-00004.parquet").write_bytes(b"damaged")
    arguments = ARGUMENTS | {"workers": 1}
    made = predict_shards(network, copy, tmp_path / "out", engine="ray", **arguments)  # type: ignore[arg-type]
    assert [bool(outcome.error) for outcome in made.outcomes] == [False, False, True, False]
    with pytest.raises(RunError, match=r"1 of 4 shards have no masks: .*data-00002-of-00004\.parquet is damaged"):
        made.check()


def test_s3(network: Path, make_storage: MakeStorage, tmp_path: Path) -> None:
    """The workers of a cluster that runs already need the credentials in their environment."""
    images, masks, local = make_storage("s3"), make_storage("s3"), make_storage("s3")
    pack(write_toy(tmp_path / "data"), images)
    variables = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    load = partial(load_with_environment, variables, network)
    files = sorted(contents(images))
    jobs = [ShardTask(f"{images}/{name}", f"{masks}/{name}") for name in files]
    outcomes = segment(load, jobs, num_actors=1)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    torch.set_num_threads(1)
    predict_shards(network, images, local, **ARGUMENTS).check()  # type: ignore[arg-type]
    assert contents(masks) == contents(local)


def load_with_environment(variables: dict[str, str], network: Path, workers: int) -> Any:
    os.environ |= variables
    return _load_network(str(network), "cpu", "float32", False, False, workers)


def test_a_network_that_cannot_be_loaded_is_one_sentence(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing is not a tagmask run"):
        arguments = ARGUMENTS | {"workers": 1}
        predict_shards(tmp_path / "nothing", shards, tmp_path / "out", engine="ray", **arguments)  # type: ignore[arg-type]


def test_no_free_resources_is_an_error_not_a_hang(
    network: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "START_SECONDS", 3.0)
    holder = ray.remote(num_cpus=3)(_Holder).remote()
    ray.get(holder.hold.remote())
    start = time.monotonic()
    try:
        with pytest.raises(RunError, match="Ray has had no free GPU or CPU"):
            predict_shards(network, shards, tmp_path / "out", engine="ray", **ARGUMENTS)  # type: ignore[arg-type]
    finally:
        ray.kill(holder)
    assert time.monotonic() - start < 60


class _Holder:
    def hold(self) -> tuple[str, ...]:
        return CLASSES


def test_the_stages_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_shards, "IMAGES_PER_SHARD", 3)
    data = write_toy(tmp_path / "data")
    settings = ["cam.epochs=1", "segment.epochs=1"]
    toy_run(data, tmp_path / "here", settings, execution=Execution(storage="shards"))
    monkeypatch.chdir(tmp_path)
    toy_run(Path("data"), Path("ray"), settings, execution=Execution(engine="ray", actors=2))
    assert contents_of_run(tmp_path / "ray") == contents_of_run(tmp_path / "here")


def test_evaluation(network: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK_SIZE", 3)
    predict_shards(network, shards, tmp_path / "masks", **ARGUMENTS).check()  # type: ignore[arg-type]
    data = tagmask.DataSource(root=str(shards))
    here, on_ray = (
        evaluate_predictions(tmp_path / "masks", data, device="cpu", workers=1, engine=engine, quiet=True)
        for engine in ("local", "ray")
    )
    assert on_ray[1].to_json(on_ray[0]) == here[1].to_json(here[0])


def test_a_shard_whose_actors_are_always_killed_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ATTEMPTS", 1)
    with pytest.raises(WorkerKilledError):
        list(engine.run_tasks(_start_killing, ["task"], _raise_killed, num_actors=1))


def _start_killing(workers: int) -> Any:
    return lambda task: os.kill(os.getpid(), signal.SIGKILL)


def _raise_killed(task: str) -> None:
    raise WorkerKilledError
