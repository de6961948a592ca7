"""Errors that a user can fix: each is one sentence that says what is wrong, where, and what to do."""

WORKER_KILLED = (
    "a worker process was killed, most likely because the memory was full; use fewer workers (--workers) and run "
    "the same command again to resume."
)


MAX_MESSAGE_LENGTH = 1000  # characters


class TagmaskError(Exception):
    """Base class of every error that a user can fix; the command line prints it without a traceback.

    Example:
        >>> import tagmask
        >>> try:
        ...     tagmask.load("no-such-folder")
        ... except tagmask.TagmaskError as error:
        ...     print(error)
        no-such-folder is not a tagmask run (it has no run.json): give the folder that `tagmask run --out` made.
    """

    def __init__(self, message: str) -> None:
        """Shorten a long message, e.g. one that quotes a damaged file, in its middle."""
        half = MAX_MESSAGE_LENGTH // 2 - 3
        super().__init__(message if len(message) <= MAX_MESSAGE_LENGTH else f"{message[:half]} ... {message[-half:]}")


def message_of(error: TagmaskError) -> str:
    """Return the message of an error; for one from a worker process, without the traceback that PyTorch adds."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if "\nOriginal Traceback" in text else text


class DataError(TagmaskError):
    """The images, tags or masks cannot be used."""


class StorageError(DataError):
    """Object storage could not be reached. The same call again may succeed, so the data is not bad."""


class RecipeError(TagmaskError):
    """A recipe or one of its settings is not valid."""


class RunError(TagmaskError):
    """A run folder lacks a file that is needed, or holds something else."""


class RunPaused(TagmaskError):
    """A run has stopped where it was asked to; another command continues it. Nothing is wrong."""


class WorkerKilledError(RunError):
    """The operating system has killed a worker process; the same call again may succeed."""

    def __init__(self, message: str = WORKER_KILLED) -> None:
        super().__init__(message)
