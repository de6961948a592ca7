"""tagmask: tags in, masks out. Weakly-supervised semantic segmentation from image-level tags.

Example:
    >>> run = tagmask.run("photos", "run", tags="tags.csv", recipe="scratch", settings=TOY_SETTINGS, quiet=True)
    >>> labels = run.predict(tagmask.read_image("photos/beach/001.jpg"), tags=["dog"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from tagmask.api import load, resume, run
    from tagmask.data.images import read_image
    from tagmask.data.source import DataSource
    from tagmask.deploy.onnx_predictor import OnnxPredictor, load_onnx
    from tagmask.dryrun import DryRun, dry_run
    from tagmask.errors import DataError, RecipeError, RunError, RunPaused, TagmaskError
    from tagmask.execution import Execution
    from tagmask.maps import ResponseMaps
    from tagmask.predict import Predictor
    from tagmask.recipe import Recipe, load_recipe
    from tagmask.results import Run

_MODULES = {
    "DataError": "errors",
    "DataSource": "data.source",
    "DryRun": "dryrun",
    "Execution": "execution",
    "OnnxPredictor": "deploy.onnx_predictor",
    "Predictor": "predict",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "ResponseMaps": "maps",
    "Run": "results",
    "RunError": "errors",
    "RunPaused": "errors",
    "TagmaskError": "errors",
    "dry_run": "dryrun",
    "load": "api",
    "load_onnx": "deploy.onnx_predictor",
    "load_recipe": "recipe",
    "read_image": "data.images",
    "resume": "api",
    "run": "api",
}

__all__ = [
    "DataError",
    "DataSource",
    "DryRun",
    "Execution",
    "OnnxPredictor",
    "Predictor",
    "Recipe",
    "RecipeError",
    "ResponseMaps",
    "Run",
    "RunError",
    "RunPaused",
    "TagmaskError",
    "dry_run",
    "load",
    "load_onnx",
    "load_recipe",
    "read_image",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tagmask` and `tagmask --help` are fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tagmask' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tagmask.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
