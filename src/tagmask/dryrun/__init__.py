"""Dry runs: carry a recipe out on a few images, and estimate the time, disk space and memory of the whole run."""

from tagmask.dryrun.estimate import dry_run
from tagmask.dryrun.result import DryRun

__all__ = ["DryRun", "dry_run"]
