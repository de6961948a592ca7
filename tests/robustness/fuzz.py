"""Mutate every file that tagmask reads, and check that reading it succeeds or raises a TagmaskError.

`python -m tests.robustness.fuzz --inputs 100000 --seed 0 FOLDER` prints what happened as JSON. Inputs that failed are
kept in FOLDER/failures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # before PyTorch is imported

import torch

from tagmask.errors import MAX_MESSAGE_LENGTH, TagmaskError
from tests.robustness.correction_targets import make_correction_targets
from tests.robustness.mutations import mutate
from tests.robustness.targets import Target, make_targets

CPU_SECONDS = 10  # per input
MEMORY = 1_000_000_000  # bytes that all inputs together may add to the peak
KEPT_FAILURES = 200


class _TooLong(BaseException):
    """An input takes more than CPU_SECONDS."""


def run_input(target: Target, content: bytes) -> str | None:
    """Read one input; return what went wrong, None if nothing did."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # CPU time, so that a busy machine makes no difference
    try:
        target.read(content)
    except TagmaskError as error:
        message = str(error)
        if len(message) > MAX_MESSAGE_LENGTH or "\n" in message:
            return f"message of {len(message)} characters: {message[:200]!r}"
    except _TooLong:
        return f"more than {CPU_SECONDS} seconds"
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "/tagmask/" in f.filename]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        return (
            f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}, from {where}: {str(error)[:150]!r}"
        )
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def campaign(folder: Path, num_inputs: int, seed: int, seconds: float = math.inf) -> dict[str, Any]:
    """Read `num_inputs` mutated inputs, or as many as `seconds` allow; return what happened."""

    def stop(signum: int, frame: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGPROF, stop)
    warnings.simplefilter("ignore")
    targets, rng = [*make_targets(folder), *make_correction_targets(folder / "corrections")], random.Random(seed)
    for target in targets:
        for valid in target.seeds:
            if (failure := run_input(target, valid)) is not None:
                raise SystemExit(f"{target.name}: a valid input fails: {failure}")
    failures: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    slowest = (0.0, "")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEMORY, resource.RLIM_INFINITY))  # a bomb is a MemoryError
    end = time.monotonic() + seconds
    for number in range(num_inputs):
        if time.monotonic() > end:
            break
        [target] = rng.choices(targets, [t.weight for t in targets])
        content = mutate(target.seeds, target.kind, rng)
        start = time.process_time()
        failure = run_input(target, content)
        slowest = max(slowest, (time.process_time() - start, f"{target.name}, input {number}"))
        counts[target.name] += 1
        if failure is None:
            continue
        failures[f"{target.name}: {failure}"] += 1
        if sum(failures.values()) <= KEPT_FAILURES:
            (folder / "failures").mkdir(exist_ok=True)
            (folder / "failures" / f"{number}").write_bytes(content)
    added = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if added > MEMORY:
        failures[f"the inputs took {added / 1e6:.0f} MB, more than {MEMORY / 1e6:.0f} MB"] += 1
    return {
        "seed": seed, "inputs": counts.total(), "slowest": slowest, "added_mb": added // 10**6,
        "targets": dict(counts), "failures": dict(failures.most_common()),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="end earlier, after this time")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(json.dumps(campaign(given.folder, given.inputs, given.seed, given.seconds)))
