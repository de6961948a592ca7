"""What tagmask says when it cannot go on: one sentence with what, where and what to do."""

WORKER_KILLED = (
    "a worker process was killed, most likely because the memory was full; use fewer (--workers), "
    "and the same command goes on."
)


class TagmaskError(Exception):
    """Base of every error that a user can mend; the command line prints it without a traceback."""


class DataError(TagmaskError):
    """Something is wrong with the images, tags or masks that were given."""


class RecipeError(TagmaskError):
    """A recipe or one of its settings is not valid."""


class RunError(TagmaskError):
    """A run folder lacks what is asked of it, or holds something else."""
