"""Shards on a Ray cluster: actors hold the network, and each gets the next shard when it has finished one.

Ray Data is not used. A pool of as many CPU actors as there are CPUs can hang there for ever
(https://github.com/ray-project/ray/issues/44687), because its other tasks need CPUs, too. Here there are only actors.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tagmask.base_predictor import BasePredictor
from tagmask.errors import RunError, TagmaskError
from tagmask.segment_shard import ATTEMPTS, ShardOutcome, ShardSettings, ShardTask, segment_with_retries
from tagmask.text import shorten

START_SECONDS = 600.0  # until the first actor has loaded the network: a cluster may have to start a machine

LoadNetwork = Callable[[int], BasePredictor]
"""Loads the network; the argument is the number of worker processes that it may use. Picklable by cloudpickle."""


def segment_shards(
    load: LoadNetwork, tasks: Sequence[ShardTask], settings: ShardSettings, *, num_actors: int | None = None
) -> Iterator[ShardOutcome]:
    """Segment shards with actors on the Ray cluster that RAY_ADDRESS names, or else on this machine.

    Each actor has one GPU, or one CPU if the cluster has no GPUs, and one shard at a time. If an actor is killed,
    another one takes its place and begins its shard again.

    Args:
        load: loads the network in an actor.
        tasks: the shards; their paths must mean the same on each machine of the cluster.
        settings: see `segment_shard`.
        num_actors: the number of actors; None: one for each GPU, or for each CPU but one.

    Yields:
        What has become of each shard, in the order in which they finish.

    Raises:
        RunError: Ray is not installed or has no free resources, or as `segment_with_retries`.
    """
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        own = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
        ray.init(log_to_driver=False, logging_level="error", **own)
    try:
        gpus, cpus_per_actor, possible = _resources(ray)
        count = max(1, min(num_actors or possible, possible, len(tasks)))
        workers = cpus_per_actor if cpus_per_actor > 1 else 0
        actor_class = ray.remote(num_cpus=cpus_per_actor, num_gpus=gpus, max_restarts=0)(_ShardActor)
        yield from _dispatch(ray, lambda: actor_class.remote(load, workers), count, tasks, settings)
    finally:
        if started:
            ray.shutdown()


class _ShardActor:
    """A process that holds the network."""

    def __init__(self, load: LoadNetwork, workers: int) -> None:
        self.error: str | None = None
        try:
            self.network = load(workers)
        except TagmaskError as error:
            self.error = str(error)

    def ready(self) -> str | None:
        """Return None when the network is loaded, or why it cannot be."""
        return self.error

    def segment(self, task: ShardTask, settings: ShardSettings) -> ShardOutcome | str:
        """Segment a shard; returns a message if no shard can be segmented here."""
        try:
            return segment_with_retries(self.network, task, settings)
        except RunError as error:
            return str(error)


def _dispatch(
    ray: Any, start_actor: Callable[[], Any], count: int, tasks: Sequence[ShardTask], settings: ShardSettings
) -> Iterator[ShardOutcome]:
    """Give each actor a shard when it is free, so that at most `count` shards are in flight."""
    waiting = deque((task, 1) for task in tasks)
    starting = {actor.ready.remote(): actor for actor in (start_actor() for _ in range(count))}
    working: dict[Any, tuple[Any, ShardTask, int]] = {}
    actors = list(starting.values())
    failed_starts = 0
    try:
        while waiting or working:
            finished, _ = ray.wait([*starting, *working], num_returns=1, timeout=None if working else START_SECONDS)
            if not finished:
                raise RunError("Ray has had no free GPU or CPU for 10 minutes: wait for other jobs, or add machines.")
            reference = finished[0]
            actor = starting.pop(reference, None)
            if actor is None:
                actor, task, attempt = working.pop(reference)
            else:
                task = None
            try:
                result = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                actors.remove(actor)
                if task is None:
                    failed_starts += 1
                    if failed_starts >= ATTEMPTS * count:
                        raise RunError(f"no Ray actor can load the network ({shorten(str(error))}).") from error
                elif attempt < ATTEMPTS:
                    waiting.appendleft((task, attempt + 1))
                else:
                    yield ShardOutcome(task, error=f"{task.in_url}: its process was killed {ATTEMPTS} times.")
                if waiting:
                    actors.append(start_actor())
                    starting[actors[-1].ready.remote()] = actors[-1]
                continue
            if isinstance(result, str):
                raise RunError(result)
            if task is not None:
                yield result
            if waiting:
                task, attempt = waiting.popleft()
                working[actor.segment.remote(task, settings)] = (actor, task, attempt)
    finally:
        for actor in actors:
            ray.kill(actor)


def _resources(ray: Any) -> tuple[int, int, int]:
    """Return the GPUs and CPUs of each actor, and how many actors can work at the same time."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus:
        cpus = max(1, min(int(node.get("CPU", 1) // node["GPU"]) for node in with_gpus))
        return 1, cpus, sum(int(node["GPU"]) for node in with_gpus)
    return 0, 1, max(1, sum(int(node.get("CPU", 0)) for node in nodes) - 1)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RunError('the engine ray needs Ray; install it with pip install "tagmask[ray]".') from error
    import ray.exceptions

    return ray
