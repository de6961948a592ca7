"""Types and arguments that the tests of the command line share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.runs import SETTINGS

TOY = ["--recipe", "scratch", "--device", "cpu", "--workers", "0", *(f"--set={setting}" for setting in SETTINGS)]


@dataclass
class Result:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def error_text(self) -> str:
        """The error in the box that Typer draws, as one line."""
        return " ".join(self.err.replace("│", " ").split())


RunCommand = Callable[..., Result]
RunFailing = Callable[..., str]
