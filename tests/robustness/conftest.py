"""Options of the campaigns: their long forms run with `pytest tests/robustness --kills 200 --fuzz-inputs 100000`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="number of kills in tests/robustness")
    parser.addoption("--fuzz-inputs", type=int, default=1000, help="number of mutated inputs in tests/robustness")
    parser.addoption("--robustness-seed", type=int, default=None, help="seed of the campaigns; default: the time")
