"""tagmask: tags in, masks out. Weakly-supervised semantic segmentation from image-level tags.

run = tagmask.run("photos/", "run/", tags="tags.csv")
labels = run.predict(image, tags=["cat"])
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Large tensors in 2 MB pages: Linux otherwise hands out, clears and takes back 4 KB pages for every activation, which
# on CPUs costs as much as the convolutions (benchmarks/maps.py). PyTorch reads this when it is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tagmask.api import Run, load, run
    from tagmask.data.source import DataSource
    from tagmask.dryrun import DryRun, dry_run
    from tagmask.errors import DataError, RecipeError, RunError, TagmaskError
    from tagmask.maps import ResponseMaps
    from tagmask.recipe import Recipe, load_recipe

_HOME = {
    "Run": "api",
    "load": "api",
    "run": "api",
    "DataSource": "data.source",
    "DataError": "errors",
    "RecipeError": "errors",
    "RunError": "errors",
    "TagmaskError": "errors",
    "ResponseMaps": "maps",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "DryRun": "dryrun",
    "dry_run": "dryrun",
}

__all__ = [
    "DataError",
    "DataSource",
    "DryRun",
    "Recipe",
    "RecipeError",
    "ResponseMaps",
    "Run",
    "RunError",
    "TagmaskError",
    "dry_run",
    "load",
    "load_recipe",
    "run",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that `import tagmask` and `tagmask --help` are instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'tagmask' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tagmask.{_HOME[name]}"), name)
