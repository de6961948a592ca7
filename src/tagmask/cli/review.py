"""The command that opens the review page."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from tagmask.cli.options import RunFolderArgument
from tagmask.errors import RunError

SERVER_PANEL = "Server"


def review(
    run_folder: RunFolderArgument,
    *,
    stage: Annotated[
        str | None, typer.Option(help="The stage whose masks are reviewed.", show_default="the recommended one")
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on.", rich_help_panel=SERVER_PANEL)
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, show_default="any free one", help="The port to listen on.",
                          rich_help_panel=SERVER_PANEL),
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address.", rich_help_panel=SERVER_PANEL)
    ] = False,
    allow_remote: Annotated[
        bool,
        typer.Option(
            "--allow-remote", help="Let other machines connect, if --host says so. The connection is not encrypted.",
            rich_help_panel=SERVER_PANEL,
        ),
    ] = False,
) -> None:  # fmt: skip
    """Look through the masks of a run in the browser, and accept, correct or reject them (kept in review/)."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise RunError('the review page needs more packages: install them with pip install "tagmask[review]".')

    from tagmask.api import load_run
    from tagmask.review.server import bind, is_loopback, serve
    from tagmask.review.session import ReviewSession

    if not is_loopback(host):
        if not allow_remote:
            raise RunError(
                f"--host {host} would let other machines connect: add --allow-remote if you want that, or leave --host "
                "out."
            )
        print(
            f"warning: other machines can connect to {host}; whoever knows the address with its token can see the "
            "images and change the masks, and the connection is not encrypted.",
            file=sys.stderr,
        )
    session = ReviewSession(load_run(run_folder, device="cpu"), stage)
    with bind(host, port) as bound:
        serve(session, bound, host, open_browser=not no_browser)
