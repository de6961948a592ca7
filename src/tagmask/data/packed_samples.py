"""Samples in one block of memory, which forked workers share with the main process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np

from tagmask.data.samples import Sample


class PackedSamples(Sequence[Sample]):
    """Samples in one block of bytes instead of many Python objects.

    Python writes to each object that it uses, because it counts references. A forked worker that uses all samples would
    therefore get its own copy of their memory, and a spawned worker would receive all of them as objects.

    Args:
        samples: the samples.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        packed = [pickle.dumps(sample) for sample in samples]  # stays in memory, unlike a file
        self._ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        self._block = b"".join(packed)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample: Sample = pickle.loads(memoryview(self._block)[self._ends[index] : self._ends[index + 1]])
        return sample
