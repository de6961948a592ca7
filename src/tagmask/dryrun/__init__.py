"""`--dry-run`: a run rehearsed on a few of its images, to say what it would take."""

from tagmask.dryrun.estimate import DryRun, dry_run

__all__ = ["DryRun", "dry_run"]
