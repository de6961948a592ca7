"""A run that is killed at random moments and resumed gives the bytes of an undisturbed run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs fork, SIGKILL and /proc")
def test_killed_runs_equal_an_undisturbed_run(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    num_kills, seed = pytestconfig.getoption("--kills", 20), pytestconfig.getoption("--robustness-seed", None)
    seed = int(time.time()) if seed is None else seed
    command = [sys.executable, "-m", "tests.robustness.kills", str(tmp_path / "runs")]
    command += [f"--kills={num_kills}", f"--seed={seed}"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600 + 30 * num_kills
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stderr}"
    report = json.loads(result.stdout.splitlines()[-1])
    print(report)
    assert not report["failures"], f"seed {seed}: {report['failures']}\n{result.stderr}"
    assert report["kills"] == num_kills
