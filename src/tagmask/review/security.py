"""Who may ask the review server: only the browser that was opened with its token.

The dangers are other web pages in the same browser (cross-site requests, DNS rebinding), other users of the machine,
and the network. Jupyter uses the same means: a token in the URL that becomes a cookie, and checks of Host and Origin.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
WRITE_HEADER = "x-tagmask"
_READS, _WRITES = ("GET", "HEAD"), ("POST", "PUT")

CONTENT_SECURITY_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob: data:", "connect-src 'self'",
    "font-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'",
))  # fmt: skip
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_NO_COOKIE = (
    "This page needs the address that `tagmask review` printed when it started, with its token: open that address. The "
    "token changes with each start."
)


@dataclass(frozen=True)
class Access:
    """What a request must have.

    Attributes:
        port: of the server.
        hosts: names of the server besides those of the local machine.
        max_body: the largest body of a request in bytes.
        token: in the URL that is opened first.
    """

    port: int
    max_body: int
    hosts: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    _cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def cookie_name(self) -> str:
        """The name of the cookie; browsers send the cookies of one port to all ports of a host."""
        return f"tagmask-review-{self.port}"

    @property
    def cookie(self) -> str:
        """The value of the cookie."""
        return self._cookie

    def url(self, host: str) -> str:
        """Return the URL that is opened first."""
        return f"http://{host}:{self.port}/?token={self.token}"

    def allows_host(self, host: str) -> bool:
        """Whether a Host header names this server."""
        names = {name.lower() for name in (*LOOPBACK, *self.hosts)}
        allowed = {f"{name}:{self.port}" for name in names} | (names if self.port == 80 else set())
        return host.lower() in allowed


class SecurityMiddleware:
    """Refuses every request that does not come from the review page, and limits the size of bodies.

    Args:
        app: the application.
        access: what a request must have.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        response = self._refuse(scope)
        if response is not None:
            await response(scope, receive, send_with_headers)
            return
        await self._app(scope, self._limited(receive), send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        """Return the response to a request that is not passed on."""
        headers, method = Headers(scope=scope), scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._access.allows_host(hosts[0]):
            return _error(scope, 403, "the Host header does not name this server: open the address that it printed.")
        origins = headers.getlist("origin")
        if any(origin.lower() != f"http://{hosts[0]}".lower() for origin in origins):
            return _error(scope, 403, "the request comes from another web page.")
        if method not in (*_READS, *_WRITES):
            return _error(scope, 405, f"the method {method} is not used here.")
        if method == "GET" and scope["path"] == "/" and (token := _token(scope)) is not None:
            return self._exchange(token)
        cookie = cookie_parser(headers.get("cookie", "")).get(self._access.cookie_name, "")
        if not secrets.compare_digest(cookie.encode(), self._access.cookie.encode()):
            return _error(scope, 403, _NO_COOKIE)
        if method in _WRITES:
            if headers.get(WRITE_HEADER) != "1":
                return _error(scope, 403, f"the header {WRITE_HEADER.title()} is missing.")
            if not origins:
                return _error(scope, 403, "the header Origin is missing.")
        if _content_length(headers) > self._access.max_body:
            return _error(scope, 413, _too_large(self._access.max_body))
        return None

    def _exchange(self, token: str) -> Response:
        """Return the cookie in exchange for the token."""
        if not secrets.compare_digest(token.encode(), self._access.token.encode()):
            return _page(403, _NO_COOKIE)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(self._access.cookie_name, self._access.cookie, path="/", httponly=True, samesite="strict")
        return response

    def _limited(self, receive: Receive) -> Receive:
        """Return a function that raises `BodyTooLarge` when more than the allowed number of bytes has arrived."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._access.max_body:
                raise BodyTooLarge(_too_large(self._access.max_body))
            return message

        return limited


class BodyTooLarge(Exception):
    """The body of a request is larger than any mask of the run."""


def _too_large(max_body: int) -> str:
    return f"the request has more than {max_body:,} bytes, which no mask of this run needs."


def _token(scope: Scope) -> str | None:
    values = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("token")
    return values[0] if values else None


def _content_length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isdecimal() and len(text) < 20 else 2**63


def _error(scope: Scope, status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status) if scope["path"].startswith("/api/") else _page(status, sentence)


def _page(status: int, sentence: str) -> Response:
    title = "tagmask review"
    link = '<p><a href="/">Try again</a></p>'  # a link from this page sends the cookie, one from another site does not
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"
        f"<p>{sentence}</p>{link}",
        status,
    )
