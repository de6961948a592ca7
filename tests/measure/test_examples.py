"""The package can be imported without PyTorch, and the examples of its docstrings run."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import tagmask.measure

MODULES = [module.name for module in pkgutil.iter_modules(tagmask.measure.__path__)]


def test_import_needs_neither_torch_nor_compiled_libraries() -> None:
    heavy = {"torch", "torchmetrics", "numba", "scipy"}
    code = f"import tagmask.measure, sys; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(f"tagmask.measure.{name}"))
    assert attempted > 0
    assert failed == 0
