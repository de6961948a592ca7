"""Dry runs: carry a recipe out on a few images, and estimate the time, disk space and memory of the whole run."""

from tagmask.dryrun.costs import DryRun
from tagmask.dryrun.estimate import dry_run

__all__ = ["DryRun", "dry_run"]
