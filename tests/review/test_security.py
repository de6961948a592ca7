"""Attacks on the review server: every request that the page itself does not send is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from tagmask.review.app import create_app
from tagmask.review.images import image_key
from tagmask.review.security import CONTENT_SECURITY_POLICY, Access
from tagmask.review.session import ReviewSession
from tests.review.conftest import ORIGIN, PORT, WRITE, Tab

STATE = f"/api/images/{image_key('3')}/state"
REJECT: dict[str, Any] = {"state": "reject", "base": 0}
READS = ["/", "/static/app/main.js", "/api/run", "/api/images", "/api/changes", f"/api/images/{image_key('3')}/photo"]


def test_only_the_token_gives_the_cookie(open_client: Callable[..., TestClient], access: Access) -> None:
    for wrong in ("", "x", access.token[:-1], access.token + "x", access.cookie, "ü"):
        refused = open_client().get("/", params={"token": wrong})
        assert refused.status_code == 403
        assert "set-cookie" not in refused.headers
    given = open_client().get("/", params={"token": access.token})
    assert (given.status_code, given.headers["location"]) == (303, "/")
    cookie = given.headers["set-cookie"]
    assert cookie.startswith(f"tagmask-review-{PORT}=")
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert access.token not in cookie
    assert len(access.token) >= 40
    assert access.token not in repr(access)


def test_nothing_without_the_cookie(open_client: Callable[..., TestClient], client: TestClient, access: Access) -> None:
    for path in READS:
        assert client.get(path).status_code == 200
        for cookies in ({}, {access.cookie_name: "x"}, {access.cookie_name: access.token}, {"tagmask": access.cookie}):
            refused = open_client(cookies=cookies).get(path, params={"token": access.token} if path != "/" else {})
            assert refused.status_code == 403, "the token counts only where it is exchanged"
            assert "address" in refused.text
            assert len(refused.content) < 1000


def test_another_start_has_another_token(session: ReviewSession, client: TestClient, static: Path) -> None:
    other = TestClient(create_app(session, Access(PORT, 10), static), base_url=ORIGIN, cookies=dict(client.cookies))
    assert other.get("/api/run").status_code == 403


OTHER_NAMES = [
    "evil.example",
    f"evil.example:{PORT}",
    "127.0.0.1",
    f"127.0.0.1:{PORT + 1}",
    "",
    f"127.0.0.1.evil.example:{PORT}",
    f"localhost:{PORT}@evil.example",
    f"127.0.0.1:{PORT},evil.example",
    f"0.0.0.0:{PORT}",
    f"[::ffff:7f00:1]:{PORT}",
]


def test_a_name_that_an_attacker_resolves_to_this_machine_is_refused(client: TestClient) -> None:
    """DNS rebinding: the page of evil.example is of the same origin as the server, as far as the browser can tell."""
    for host in OTHER_NAMES:
        assert client.get("/api/run", headers={"Host": host}).status_code == 403
        assert client.get("/", headers={"Host": host}).status_code == 403
        same_origin = {**WRITE, "Host": host, "Origin": f"http://{host}"}
        assert client.post(STATE, json=REJECT, headers=same_origin).status_code == 403


def test_the_token_is_not_exchanged_under_another_name(open_client: Callable[..., TestClient], access: Access) -> None:
    refused = open_client().get("/", params={"token": access.token}, headers={"Host": f"evil.example:{PORT}"})
    assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)


@pytest.mark.parametrize("host", ["localhost", "[::1]", "LOCALHOST"])
def test_the_names_of_this_machine_are_allowed(client: TestClient, access: Access, host: str) -> None:
    name = f"{host}:{PORT}"
    cookie = {"Cookie": f"{access.cookie_name}={access.cookie}"}
    assert client.get("/api/run", headers={"Host": name, **cookie}).status_code == 200
    written = client.post(STATE, json=REJECT, headers={**WRITE, "Host": name, "Origin": f"http://{name}", **cookie})
    assert written.status_code == 200


def test_two_host_headers_are_refused(session: ReviewSession, access: Access, client: TestClient) -> None:
    headers = [("Host", f"127.0.0.1:{PORT}"), ("Host", "evil.example")]
    assert client.get("/api/run", headers=headers).status_code == 403


OTHER_ORIGINS = [
    "http://evil.example",
    "null",
    "",
    f"https://127.0.0.1:{PORT}",
    f"http://127.0.0.1:{PORT + 1}",
    "http://127.0.0.1",
    f"http://localhost:{PORT}",
    f"{ORIGIN}.evil.example",
    f"{ORIGIN}/",
    f"file://127.0.0.1:{PORT}",
]


def test_other_web_pages_are_refused(client: TestClient, tab: Tab) -> None:
    for origin in OTHER_ORIGINS:
        for headers in ({"Origin": origin}, {**WRITE, "Origin": origin}):
            assert client.post(STATE, json=REJECT, headers=headers).status_code == 403
            assert client.get("/api/run", headers=headers).status_code == 403
        assert tab.get().json()["state"] == "open"


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-Tagmask": "1"}, {"Origin": ORIGIN}, {"Origin": ORIGIN, "X-Tagmask": "0"},
     {"Origin": ORIGIN, "X-Tagmask": ""}],
)  # fmt: skip
def test_writes_need_the_header_and_the_origin(client: TestClient, tab: Tab, headers: dict[str, str]) -> None:
    """A form or a script of another page can send neither without asking first, and nobody answers `OPTIONS`."""
    assert client.post(STATE, json=REJECT, headers=headers).status_code == 403
    url = f"{tab.url}/mask"
    assert client.put(url, content=bytes(40 * 48), params={"base": 0}, headers=headers).status_code == 403
    assert client.post(f"{tab.url}/cut", json={"thresholds": {}}, headers=headers).status_code == 403
    assert client.post(f"{tab.url}/restore", json={"number": -1, "base": 0}, headers=headers).status_code == 403
    assert tab.get().json()["version"] == 0
    assert client.post(STATE, json=REJECT, headers=WRITE).status_code == 200


def test_no_other_origin_may_read(client: TestClient) -> None:
    headers = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-tagmask"}
    for origin in ("http://evil.example", ORIGIN):
        answer = client.options("/api/run", headers={**headers, "Origin": origin})
        assert answer.status_code in (403, 405)
        assert not any(name.startswith("access-control") for name in answer.headers)
    assert not any(name.startswith("access-control") for name in client.get("/api/run").headers)


OTHER_METHODS = ["DELETE", "PATCH", "TRACE", "OPTIONS", "CONNECT", "PROPFIND"]


def test_other_methods_are_refused(client: TestClient) -> None:
    for method in OTHER_METHODS:
        assert client.request(method, "/api/run", headers=WRITE).status_code == 405


def test_every_answer_has_the_headers(client: TestClient, open_client: Callable[..., TestClient]) -> None:
    answers = [
        *(client.get(path) for path in READS),
        open_client().get("/"), client.get("/nowhere"), client.get("/api/images/0123456789abcdef"),
        client.post("/api/run", headers=WRITE), client.get("/api/run", headers={"Host": "evil.example"}),
        client.post(STATE, content=b"x" * 100_000, headers=WRITE), client.post(STATE, content=b"{", headers=WRITE),
    ]  # fmt: skip
    assert {answer.status_code for answer in answers} >= {200, 400, 403, 404, 405, 413}
    for answer in answers:
        assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] in ("no-store", "no-cache", "private, no-cache")
    assert "'unsafe" not in CONTENT_SECURITY_POLICY
    assert CONTENT_SECURITY_POLICY.startswith("default-src 'none'; script-src 'self'; style-src 'self';")


def test_a_defect_shows_no_details_and_has_the_headers(
    open_client: Callable[..., TestClient], session: ReviewSession, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise KeyError("/home/someone/secret")

    monkeypatch.setattr(session, "describe", fail)
    client = open_client(raise_server_exceptions=False, cookies={access.cookie_name: access.cookie})
    answer = client.get("/api/run")
    assert (answer.status_code, answer.json()) == (500, {"error": "tagmask has a defect (KeyError): see its terminal."})
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


PATHS_OUT = [
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/app/%2e%2e/%2e%2e/secret.txt",
    "/static//etc/passwd",
    "/static/%2fetc%2fpasswd",
    "/static/app",
    "/static/",
    "/static/app\\main.js",
    "/static/app/main.js%00.html",
    "/secret.txt",
    "/static/..%2fsecret.txt",
    "/static/link.txt/../secret.txt",
]


def test_no_path_leads_out_of_the_page(client: TestClient, static: Path) -> None:
    for path in PATHS_OUT:
        (static.parent / "secret.txt").write_text("secret")
        answer = client.get(path)
        assert answer.status_code == 404
        assert "secret" not in answer.text.replace("secret.txt", "")


OTHER_KEYS = [
    "3",
    "../3",
    "..%2f..%2fdata%2f3",
    "%2e%2e%2f3",
    "/etc/passwd",
    image_key("3").upper(),
    image_key("3") + "0",
    image_key("3")[:15],
    "0" * 16,
    "..",
    "%00",
]


def test_ids_are_never_paths(client: TestClient, folder: Path) -> None:
    for key in OTHER_KEYS:
        before = sorted(folder.rglob("*"))
        for what in ("", "/mask", "/photo", "/thumbnail", "/maps", "/history", "/superpixels"):
            assert client.get(f"/api/images/{key}{what}").status_code == 404
        content = bytes(40 * 48)
        put = client.put(f"/api/images/{key}/mask", content=content, params={"base": 0}, headers=WRITE)
        assert put.status_code == 404
        assert client.post(f"/api/images/{key}/state", json=REJECT, headers=WRITE).status_code == 404
        assert sorted(folder.rglob("*")) == before


def test_large_bodies_are_refused(client: TestClient, tab: Tab, access: Access) -> None:
    assert access.max_body == 2 * 40 * 48 + 65_536  # a mask and the painted pixels
    labels = np.zeros(access.max_body + 1, np.uint8)
    refused = tab.put_mask(labels, 0)
    assert refused.status_code == 413
    assert f"{access.max_body:,} bytes" in refused.json()["error"]
    assert tab.put_mask(labels[:-1], 0).status_code == 400


def test_large_bodies_of_unknown_or_wrong_length_are_refused(client: TestClient, tab: Tab, access: Access) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 10_000
            yield bytes(10_000)

    url = f"{tab.url}/mask"
    assert client.put(url, content=endless(), params={"base": 0}, headers=WRITE).status_code == 413
    for length in ("-1", "1e9", "9" * 30, "x"):
        headers = {**WRITE, "Content-Length": length}
        assert client.put(url, content=b"", params={"base": 0}, headers=headers).status_code == 413
    assert tab.get().json()["version"] == 0


def test_json_of_the_size_of_a_mask_is_refused(client: TestClient) -> None:
    content = b'{"state": "open", "base": 0, "tags": [' + b"1, " * 22_000 + b"1]}"
    assert client.post(STATE, content=content, headers=WRITE).status_code == 413


def test_web_sockets_are_not_answered(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/changes"):
        pass
