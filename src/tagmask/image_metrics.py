"""Update metrics with images, in worker processes if that is faster.

The metrics add up counts, and fractions that are multiples of 2⁻³⁰ (see `tagmask.measure.metrics`). Such sums are
exact, so the figures do not depend on how the images are divided among processes, not even in the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tagmask.compute import Compute
from tagmask.data.samples import Sample, TaggedImages
from tagmask.progress import Reporter, results_from_workers

if TYPE_CHECKING:
    from torchmetrics import Metric

Update = Callable[[Sequence[Any], Sample], None]

TRIAL_SECONDS = 1.0  # the images that this process measures first, to know the time of one
MIN_SECONDS = 10.0  # below this, starting workers takes longer than it saves
CHUNK_SECONDS = 2.0  # the work that a worker gets at a time


def measure_images(
    make_metrics: Callable[[], Sequence[Metric]],
    update: Update,
    images: TaggedImages,
    description: str,
    compute: Compute,
    reporter: Reporter,
) -> Sequence[Metric]:
    """Return metrics of this process's images; the metrics sum over the processes when they compute.

    Args:
        make_metrics: returns new metrics, whose states are sums; picklable by cloudpickle, like `update`.
        update: adds one image to the metrics.
        images: the images of all processes.
        description: text beside the progress bar.
        compute: processes and their number of workers.
        reporter: reports the progress.
    """
    import torch

    samples = compute.shard(images.samples)
    metrics = make_metrics()
    if compute.engine == "ray" and samples:
        _measure_on_ray(metrics, make_metrics, update, samples, description, compute, reporter)
        return metrics
    alone_seconds = TRIAL_SECONDS if compute.workers > 1 else float("inf")
    with reporter.progress(description, len(samples)) as advance:
        start, done = time.monotonic(), 0
        with torch.inference_mode():
            while done < len(samples) and (not done or time.monotonic() - start < alone_seconds):
                update(metrics, samples[done])
                done += 1
                advance(1)
                seconds = (time.monotonic() - start) / done
                if done > 1 and seconds * (len(samples) - done) < MIN_SECONDS:
                    alone_seconds = float("inf")
        rest = samples[done:]
        if rest:
            size = max(1, min(int(CHUNK_SECONDS / seconds), len(rest) // (4 * compute.workers)))
            chunks = [rest[first : first + size] for first in range(0, len(rest), size)]
            for chunk, states in zip(
                chunks, _states_from_workers(make_metrics, update, chunks, description, compute.workers), strict=True
            ):
                _merge(metrics, states)
                advance(len(chunk))
    return metrics


def _measure_on_ray(
    metrics: Sequence[Metric],
    make_metrics: Callable[[], Sequence[Metric]],
    update: Update,
    samples: Sequence[Sample],
    description: str,
    compute: Compute,
    reporter: Reporter,
) -> None:
    """Add the samples to the metrics, in chunks that Ray actors measure."""
    import torch

    from tagmask.engines import ray

    with reporter.progress(description, len(samples)) as advance:
        with torch.inference_mode():
            update(metrics, samples[0])  # so that torchmetrics does not warn of metrics without an image
        advance(1)
        work = partial(_measure_in_actor, make_metrics, update)
        for parts in ray.map_chunks(lambda workers: partial(work, workers), samples[1:], advance, compute.actors):
            for states in parts:
                _merge(metrics, states)


def _measure_in_actor(
    make_metrics: Callable[[], Sequence[Metric]], update: Update, workers: int, samples: Sequence[Sample]
) -> list[list[dict[str, np.ndarray]]]:
    """Return the states of the metrics of parts of the samples, one part for each of the actor's cores."""
    count = max(1, workers)
    parts = [part for number in range(count) if (part := samples[number::count])]
    return list(_states_from_workers(make_metrics, update, parts, "", workers))


def _merge(metrics: Sequence[Metric], states: Sequence[dict[str, np.ndarray]]) -> None:
    import torch

    for metric, state in zip(metrics, states, strict=True):
        metric.merge_state({name: torch.tensor(value) for name, value in state.items()})


def _states_from_workers(
    make_metrics: Callable[[], Sequence[Metric]],
    update: Update,
    chunks: Sequence[Sequence[Sample]],
    description: str,
    num_workers: int,
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yield the states of the metrics of each chunk."""
    from joblib import delayed

    jobs = (delayed(_measure_chunk)(make_metrics, update, chunk) for chunk in chunks)
    return results_from_workers(description, jobs, num_workers)


def _measure_chunk(
    make_metrics: Callable[[], Sequence[Metric]], update: Update, samples: Sequence[Sample]
) -> list[dict[str, np.ndarray]]:
    import torch

    metrics = make_metrics()
    with torch.inference_mode():
        for sample in samples:
            update(metrics, sample)
    return [{name: np.asarray(value) for name, value in metric.metric_state.items()} for metric in metrics]
