"""Reading a mutated file succeeds or raises a TagmaskError of one sentence, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs the limits of Linux")
def test_mutated_inputs_are_read_or_refused(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    num_inputs, seed = pytestconfig.getoption("--fuzz-inputs", 1000), pytestconfig.getoption("--robustness-seed", None)
    seed = int(time.time()) if seed is None else seed
    command = [sys.executable, "-m", "tests.robustness.fuzz", str(tmp_path), f"--inputs={num_inputs}", f"--seed={seed}"]
    limit = 600 + num_inputs  # seconds; a hang in C code cannot be interrupted
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    assert result.returncode == 0, f"seed {seed}\n{result.stderr[-5000:]}"
    report = json.loads(result.stdout.splitlines()[-1])
    print(report)
    assert report["inputs"] == num_inputs
    assert not report["failures"], f"seed {seed}: {report['failures']}"
