"""Shards on a Ray cluster: actors hold the network, and each gets the next shard when it has finished one.

Ray Data is not used. A pool of as many CPU actors as there are CPUs can hang there for ever
(https://github.com/ray-project/ray/issues/44687), because its other tasks need CPUs, too. Here there are only actors.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from tagmask.errors import RunError, TagmaskError, WorkerKilledError
from tagmask.text import shorten

ATTEMPTS = 3  # at a task, if the actors that work on it are killed
CHUNK_SIZE = 1000  # items that an actor gets at a time

START_SECONDS = 600.0  # until the first actor has loaded the network: a cluster may have to start a machine

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Failure:
    """Why no task can be done, as an actor returns it."""

    message: str


def run_tasks(
    start: Callable[[int], Callable[[T], R]],
    tasks: Sequence[T],
    on_killed: Callable[[T], R],
    *,
    num_actors: int | None = None,
) -> Iterator[R]:
    """Do tasks with actors on the Ray cluster that RAY_ADDRESS names, or else on this machine.

    Each actor has one GPU, or one CPU if the cluster has no GPUs, and one task at a time. If an actor is killed,
    another one takes its place and begins its task again.

    Args:
        start: called in each actor with the number of worker processes that it may use; loads the network and returns
            the function that does a task. Picklable by cloudpickle.
        tasks: the tasks; the paths in them must mean the same on each machine of the cluster.
        on_killed: returns the result of a task whose actors were killed `ATTEMPTS` times, or raises.
        num_actors: the number of actors; None: one for each GPU, or for each CPU but one.

    Yields:
        The result of each task, in the order in which they finish.

    Raises:
        RunError: Ray is not installed or has no free resources, or a function in an actor has raised a TagmaskError.
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
        actor_class = ray.remote(num_cpus=cpus_per_actor, num_gpus=gpus, max_restarts=0)(_Actor)
        yield from _dispatch(ray, lambda: actor_class.remote(start, workers, os.getcwd()), count, tasks, on_killed)
    finally:
        if started:
            ray.shutdown()


def map_chunks(
    start: Callable[[int], Callable[[Sequence[T]], R]],
    items: Sequence[T],
    advance: Callable[[int], None],
    num_actors: int | None = None,
) -> Iterator[R]:
    """Divide items, e.g. samples, into chunks, and yield the result of each chunk, in order.

    Args:
        start: as in `run_tasks`; the function that it returns gets a chunk.
        items: the items; if there is none, Ray is not used.
        advance: called with the number of items in each chunk that is done, to show the progress.
        num_actors: as in `run_tasks`.

    Raises:
        RunError: as `run_tasks`, or the actors that worked on a chunk were killed.
    """

    def start_numbered(workers: int) -> Callable[[tuple[int, Sequence[T]]], tuple[int, R]]:
        function = start(workers)
        return lambda task: (task[0], function(task[1]))

    def on_killed(task: tuple[int, Sequence[T]]) -> tuple[int, R]:
        raise WorkerKilledError

    chunks = [items[first : first + CHUNK_SIZE] for first in range(0, len(items), CHUNK_SIZE)]
    if not chunks:
        return
    finished: dict[int, R] = {}
    following = 0
    for number, result in run_tasks(start_numbered, list(enumerate(chunks)), on_killed, num_actors=num_actors):
        finished[number] = result
        while following in finished:
            yield finished.pop(following)
            advance(len(chunks[following]))
            following += 1


class _Actor:
    """A process that holds the network."""

    def __init__(self, start: Callable[[int], Callable[[Any], Any]], workers: int, folder: str) -> None:
        self.failure: _Failure | None = None
        with suppress(OSError):  # another machine may not have it; then only absolute paths can be used
            os.chdir(folder)
        try:
            self.function = start(workers)
        except TagmaskError as error:
            self.failure = _Failure(str(error))

    def ready(self) -> _Failure | None:
        """Return None when the network is loaded, or why it cannot be."""
        return self.failure

    def do(self, task: Any) -> Any:
        """Return the result of a task, or why no task can be done here."""
        try:
            return self.function(task)
        except TagmaskError as error:
            return _Failure(str(error))


def _dispatch(
    ray: Any, start_actor: Callable[[], Any], count: int, tasks: Sequence[T], on_killed: Callable[[T], R]
) -> Iterator[R]:
    """Give each actor a task when it is free, so that at most `count` tasks are in flight."""
    waiting = deque((task, 1) for task in tasks)
    starting = {actor.ready.remote(): actor for actor in (start_actor() for _ in range(count))}
    working: dict[Any, tuple[Any, T, int]] = {}
    actors = list(starting.values())
    failed_starts = 0
    try:
        while waiting or working:
            finished, _ = ray.wait([*starting, *working], num_returns=1, timeout=None if working else START_SECONDS)
            if not finished:
                raise RunError("Ray has had no free GPU or CPU for 10 minutes: wait for other jobs, or add machines.")
            reference = finished[0]
            is_start = reference in starting
            actor = starting.pop(reference) if is_start else working[reference][0]
            try:
                result = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                actors.remove(actor)
                if is_start:
                    failed_starts += 1
                    if failed_starts >= ATTEMPTS * count:
                        raise RunError(f"no Ray actor can load the network ({shorten(str(error))}).") from error
                else:
                    _, task, attempt = working.pop(reference)
                    if attempt < ATTEMPTS:
                        waiting.appendleft((task, attempt + 1))
                    else:
                        yield on_killed(task)
                if waiting:
                    actors.append(start_actor())
                    starting[actors[-1].ready.remote()] = actors[-1]
                continue
            if isinstance(result, _Failure):
                raise RunError(result.message)
            if not is_start:
                del working[reference]
                yield result
            if waiting:
                task, attempt = waiting.popleft()
                working[actor.do.remote(task)] = (actor, task, attempt)
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
