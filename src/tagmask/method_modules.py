"""The modules that define methods: those of `tagmask.methods`, and those of other packages that the user trusts.

A recipe can come from anyone, and so can a run folder. Its text never makes tagmask import a module from elsewhere:
such a module must have been imported already (`tagmask --import`), or an installed package must declare it as an entry
point of the group "tagmask.methods".
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from tagmask.errors import RecipeError
from tagmask.text import did_you_mean, shorten

ENTRY_POINT_GROUP = "tagmask.methods"


def method_names() -> list[str]:
    """Return the names of the shipped methods."""
    folder = Path(str(resources.files("tagmask"))) / "methods"
    return sorted(f.stem for f in folder.glob("*.py") if not f.stem.startswith("_"))


def method_module(name: str) -> ModuleType:
    """Return the module of a method: a shipped one by the method's name, or another one by its dotted name.

    Raises:
        RecipeError: there is no such module, it cannot be imported, or the user has not allowed it.
    """
    if name in method_names():
        return _import(f"tagmask.methods.{name}")
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        if name in (entry_point.name, entry_point.module):
            return _import(entry_point.module)
    if name in sys.modules:
        return sys.modules[name]
    hint = did_you_mean(name, method_names())
    name = shorten(name)
    raise RecipeError(
        f"method {name!r} does not exist; a module of your own is imported only if you say so, with `tagmask --import "
        f"{name}` before the command, or `import {name}` in Python{hint}"
    )


def import_method_module(name: str) -> None:
    """Import a module of the user's own, from the Python path or the current folder, so that recipes can name it.

    Raises:
        RecipeError: there is no such module, or it cannot be imported.
    """
    if (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # last: its files must not hide installed packages
    _import(name)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not f"{name}.".startswith(f"{error.name}."):
            raise RecipeError(f"module {name} needs the package {error.name!r}: install it.") from error
        raise RecipeError(f"module {name} is neither here nor on PYTHONPATH: correct its name.") from error
    except Exception as error:  # a module of the user's own can raise anything
        raise RecipeError(f"module {name} cannot be imported ({type(error).__name__}: {error}): correct it.") from error
