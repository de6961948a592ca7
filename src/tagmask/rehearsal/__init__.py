"""`--dry-run`: a run rehearsed on a few of its images, to say what it would take."""

from tagmask.rehearsal.dry_run import Rehearsal, rehearse

__all__ = ["Rehearsal", "rehearse"]
