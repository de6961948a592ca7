"""Shards one after the other in this process, whose workers load images and compute CRFs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tagmask.base_predictor import BasePredictor
from tagmask.segment_shard import ShardOutcome, ShardSettings, ShardTask, segment_with_retries


def segment_shards(
    load: Callable[[], BasePredictor], tasks: Sequence[ShardTask], settings: ShardSettings
) -> Iterator[ShardOutcome]:
    """Segment shards in this process.

    Args:
        load: loads the network.
        tasks: the shards.
        settings: see `segment_shard`.

    Yields:
        What has become of each shard, in order.

    Raises:
        RunError: see `segment_with_retries`.
    """
    network = load()
    for task in tasks:
        yield segment_with_retries(network, task, settings)
