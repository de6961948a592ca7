"""Tests on CUDA. `make test-gpu` runs those that are marked `gpu`, and prints what they measured as a table.

Most tests have the parameter `device`. With "cuda" they are marked `gpu`, and are skipped on a machine without a GPU.
With "cpu" they belong to the normal tests, so that every line of them runs on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
NO_GPU = "PyTorch finds no CUDA GPU on this machine"
CPU = pytest.param("cpu")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason=NO_GPU)])

Record = Callable[[str, str, str], None]
"""Adds a line to the table: what was measured, the result, and what is required (or "")."""

_rows: list[tuple[str, str, str, str]] = []


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Return a function that adds a line to the table."""
    return lambda what, result, required: _rows.append((request.node.name, what, result, required))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, or why there is none. With `-m "not gpu"` it has what was measured on the CPU."""
    if "gpu" not in config.option.markexpr:
        return
    if config.option.markexpr == "gpu" and not HAS_GPU:
        skipped = len(terminalreporter.stats.get("skipped", []))
        terminalreporter.write_line(f"\n{NO_GPU}: all {skipped} tests were skipped, and nothing was measured.")
        return
    terminalreporter.write_sep("-", torch.cuda.get_device_name() if HAS_GPU else "CPU")
    rows = [("test", "measured", "result", "required"), *_rows]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        terminalreporter.write_line("  ".join(text.ljust(n) for text, n in zip(row, widths, strict=True)).rstrip())
