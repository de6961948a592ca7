"""Prediction on shards: which shards there are, who segments them, and what has become of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tagmask.artifacts import remove_unfinished
from tagmask.base_predictor import BasePredictor
from tagmask.compute import Engine, Precision
from tagmask.data.shard_reader import list_shards, missing_shards
from tagmask.data.storage import check_writable, join_url, local_path
from tagmask.errors import DataError, RunError
from tagmask.execution import check_part
from tagmask.progress import make_reporter
from tagmask.segment_shard import ATTEMPTS, ShardOutcome, ShardSettings, ShardTask, segment_with_retries

LoadNetwork = Callable[[int | None], BasePredictor]
"""Loads the network; the argument is the number of worker processes that it may use."""
UNFINISHED_SECONDS = 86_400.0  # after which a temporary file is that of a killed process, not of one beside this

_MAX_NAMED = 3


@dataclass(frozen=True)
class ShardPredictions:
    """What `predict_shards` has made.

    Attributes:
        outcomes: what has become of each shard.
    """

    outcomes: tuple[ShardOutcome, ...]

    @property
    def failed(self) -> list[ShardOutcome]:
        """The shards without masks."""
        return [outcome for outcome in self.outcomes if outcome.error]

    @property
    def num_images(self) -> int:
        """The number of masks."""
        return sum(outcome.num_images for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "shards": [outcome.task.out_url for outcome in self.outcomes if not outcome.error],
            "kept": sum(outcome.kept for outcome in self.outcomes),
            "masks": self.num_images,
            "left_out": [text for outcome in self.outcomes for text in outcome.left_out],
            "failed": {outcome.task.in_url: outcome.error for outcome in self.failed},
        }

    def check(self) -> None:
        """Raise RunError if shards have failed; it says how many, and names the first ones."""
        if not self.failed:
            return
        named = " ".join(str(outcome.error) for outcome in self.failed[:_MAX_NAMED])
        more = f" (and {len(self.failed) - _MAX_NAMED:,} more)" if len(self.failed) > _MAX_NAMED else ""
        raise RunError(
            f"{len(self.failed):,} of {len(self.outcomes):,} shards have no masks: {named}{more} Correct this, then "
            "run the same command again, which makes only these."
        )


def predict_shards(
    network: str | Path,
    shards: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    part: tuple[int, int] | None = None,
    engine: Engine = "local",
    single_pass: bool = False,
    regions: bool = False,
    skip_bad: bool = False,
    redo: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    quiet: bool = False,
) -> ShardPredictions:
    """Segment the images of shards: writes one shard of masks for each. Call it again to make those that are missing.

    Args:
        network: a run folder, or an exported network, see `tagmask.load` and `tagmask.load_onnx`.
        shards: the folder or URL of the images, as `tagmask shard` wrote them.
        out: the folder or URL for the masks.
        split: only the shards of this split; None: all.
        part: (i, n): only every n-th shard, beginning with the i-th. n processes need not know of each other. None:
            all shards.
        engine: "local": this process; "ray": actors on a Ray cluster.
        single_pass: see each image once, at its own size: no scales, no flip, no CRF.
        regions: then let the regions of the run vote on each mask, see `BasePredictor.with_regions`.
        skip_bad: leave out images that cannot be read.
        redo: replace masks of another network or of other images.
        device, precision, workers: see `tagmask.load`; with Ray, `workers` is the number of actors.
        quiet: print nothing.

    Returns:
        What has become of each shard. Shards that cannot be used have no masks, and do not stop the others.

    Raises:
        DataError: there are no shards, or `out` cannot be written to.
        RunError: `out` holds masks of another network or of other images, or a resource is exhausted.
    """
    check_part(part)
    number, count = part or (1, 1)
    in_root, out_root = _absolute(str(shards)), _absolute(str(out))
    check_writable(out_root)
    files = list_shards(in_root, split)
    if not files:
        raise DataError(f"{shards} holds no shards; make them with `tagmask shard`, or correct the address.")
    if not skip_bad and (missing := list(missing_shards(in_root, files))):
        raise DataError(f"{missing[0]} With --skip-bad, the shards that exist are segmented.")
    if in_root.rstrip("/") == out_root.rstrip("/"):
        raise RunError(f"{out} holds the images; choose another --out for the masks.")
    if (folder := local_path(out_root)) is not None:
        remove_unfinished(Path(folder), min_age=UNFINISHED_SECONDS)
    tasks = [ShardTask(file.url, join_url(out_root, file.name)) for file in files[number - 1 :: count]]
    settings = ShardSettings(skip_bad=skip_bad, redo=redo)
    load = partial(_load_network, _absolute(str(network)), device, precision, single_pass, regions)
    outcomes = list[ShardOutcome]()
    reporter = make_reporter(quiet)
    with reporter.progress("masks of the network", len(tasks), "shards") as advance:
        for outcome in _run(engine, load, tasks, settings, workers):
            outcomes.append(outcome)
            if outcome.error:
                reporter.info(f"failed: {outcome.error}")
            advance(1)
    order = {task: place for place, task in enumerate(tasks)}
    return ShardPredictions(tuple(sorted(outcomes, key=lambda outcome: order[outcome.task])))


def _run(
    engine: Engine, load: LoadNetwork, tasks: list[ShardTask], settings: ShardSettings, workers: int | None
) -> Iterable[ShardOutcome]:
    """Segment shards, one after the other in this process, or on a Ray cluster."""
    if engine == "ray":
        from tagmask.engines import ray

        return ray.run_tasks(partial(_segmenter, load, settings), tasks, _killed, num_actors=workers)
    return map(_segmenter(load, settings, workers), tasks)


def _segmenter(load: LoadNetwork, settings: ShardSettings, workers: int | None) -> Callable[[ShardTask], ShardOutcome]:
    """Load the network, and return the function that segments a shard with it."""
    return partial(segment_with_retries, load(workers), settings=settings)


def _killed(task: ShardTask) -> ShardOutcome:
    """Return the outcome of a shard on which each process was killed."""
    return ShardOutcome(task, error=f"{task.in_url}: its process was killed {ATTEMPTS} times.")


def _load_network(
    network: str, device: str, precision: Precision, single_pass: bool, regions: bool, workers: int | None
) -> BasePredictor:
    """Load a network, in this process or in an actor."""
    if network.endswith(".onnx"):
        from tagmask.deploy.onnx_predictor import load_onnx

        from_file = load_onnx(network, device=device, workers=workers)
        return from_file.with_regions() if regions else from_file
    from tagmask.api import load
    from tagmask.results import Run

    opened = load(network, device=device, precision=precision, workers=workers)
    predictor = opened.predictor if isinstance(opened, Run) else opened
    if predictor.processes.world_size > 1:
        raise RunError("shards are not divided by torchrun or srun: start single processes with --shard i/n instead.")
    predictor = predictor.single_pass() if single_pass else predictor
    return predictor.with_regions() if regions else predictor


def _absolute(path: str) -> str:
    """Return a path that means the same in another process; URLs are not changed."""
    local = local_path(path)
    return path if local is None else os.path.abspath(local)
