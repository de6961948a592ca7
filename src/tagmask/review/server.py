"""Runs the review server until Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

import uvicorn

from tagmask.errors import RunError
from tagmask.review.app import create_app
from tagmask.review.requests import MAX_OTHER_BYTES
from tagmask.review.security import Access
from tagmask.review.session import ReviewSession

_WILDCARDS = ("0.0.0.0", "::")
_SHUTDOWN_SECONDS = 3  # that requests have to finish after Ctrl-C
_BACKLOG = 128


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server on a host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a host and a port (0: any free one). Raises RunError if that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise RunError(f"--host {host} is not an address of this machine ({error}): leave it out.") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"cannot listen on {host}, port {port} ({reason}): choose another --port or --host.") from error
    return bound


def host_names(host: str) -> list[str]:
    """Return the names by which a browser can reach a host, as they stand in URLs; the first is printed."""
    if host not in _WILDCARDS:
        return [f"[{host}]" if ":" in host else host]
    names = [socket.gethostname(), socket.getfqdn()]
    with suppress(OSError):
        names += [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)]
    return list(dict.fromkeys(f"[{name}]" if ":" in name else name for name in names))


def serve(session: ReviewSession, bound: socket.socket, host: str, *, open_browser: bool) -> None:
    """Print the address of the page, open it in a browser, and answer requests until Ctrl-C or SIGTERM.

    Args:
        session: the run that is reviewed.
        bound: the socket to listen on.
        host: the host that it is bound to.
        open_browser: whether to open the page.
    """
    names = host_names(host)
    access = Access(port=bound.getsockname()[1], hosts=tuple(names), max_body=session.max_mask_bytes + MAX_OTHER_BYTES)
    url = access.url(names[0])
    config = uvicorn.Config(
        create_app(session, access), log_level="warning", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )  # fmt: skip
    print(f"{len(session.images)} images of stage {session.stage.name!r}: {url}", flush=True)
    print("Press Ctrl-C to stop. Everything that the page shows as saved is on disk.", flush=True)
    for task in (warm_up, session.doubt.start):
        threading.Thread(target=task, name=task.__name__, daemon=True).start()
    if open_browser and _has_display():
        threading.Thread(target=webbrowser.open, args=(url,), name="browser", daemon=True).start()
    server = _Server(config)
    try:
        server.run(sockets=[bound])
    finally:
        session.doubt.stop()
        if session.num_reviewed:
            print(f"To learn from the reviewed masks: tagmask resume {session.run_folder}", flush=True)


def _has_display() -> bool:
    """Whether a browser can open a window; without one, Python would start a text browser in this terminal."""
    return sys.platform in ("win32", "darwin") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))


class _Server(uvicorn.Server):
    """A server that Ctrl-C ends; uvicorn's own raises the signal again when it has ended."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def warm_up() -> None:
    """Import and compile what the first cut and the first superpixels need, which takes seconds."""
    import numpy as np

    from tagmask.maps import upsample
    from tagmask.refine.dense_crf import dense_crf, unary_from_labels
    from tagmask.review.superpixels import compute_superpixels

    blank = np.zeros((16, 16, 3), np.uint8)
    upsample(np.zeros((1, 4, 4), np.float32), (16, 16))
    dense_crf(blank, unary_from_labels(np.zeros((16, 16), np.uint8), 2))
    compute_superpixels(blank, "large")
