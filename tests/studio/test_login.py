"""Keys in the browser: a login form, a cookie that does not contain the key, and no route without a key."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from tests.server.http.conftest import KEY, OTHER, Answer, Many, Server, server, waited_for
from tests.studio.conftest import MARKS
from unveil.server.http.middleware import SecurityPolicy
from unveil.studio.login import COOKIE, LOGIN_PATH, LoginMiddleware, session_of
from unveil.studio.server import POLICY, add_studio

pytestmark = MARKS
HTML = {"accept": "text/html,*/*"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    rules = SecurityPolicy({"ann": KEY, "bob": OTHER})
    folder = tmp_path_factory.mktemp("keyed")
    with server(folder, rules, Many, extend=add_studio, before=LoginMiddleware) as found:
        yield found


def entered(keyed: Server, key: str, **headers: str) -> Answer:
    body = f'--x\r\ncontent-disposition: form-data; name="key"\r\n\r\n{key}\r\n--x--\r\n'.encode()
    sent = {"content-type": "multipart/form-data; boundary=x", **HTML, **headers}
    return keyed.ask("POST", LOGIN_PATH, body=body, headers=sent)


def routes(keyed: Server) -> list[str]:
    pages = ["/", "/en/", "/zh/", "/en/config", "/en/gradio_api/info", "/en/gradio_api/upload", "/en/theme.css"]
    return [
        *pages,
        "/en/gradio_api/queue/data",
        "/v1/models",
        "/v1/jobs",
        "/metrics",
        "/en/gradio_api/file=/etc/passwd",
    ]


def test_every_route_needs_a_key(keyed: Server):
    for route in routes(keyed):
        for headers in (
            {},
            {"cookie": f"{COOKIE}={session_of('no key of this server', 1 << 33)}"},
            {"cookie": f"{COOKIE}={KEY}"},
        ):
            assert keyed.ask("GET", route, headers=headers).status == 401, route
    assert keyed.ask("POST", "/en/gradio_api/queue/join", {"data": []}).status == 401


def test_a_browser_logs_in_once(keyed: Server):
    shown = keyed.ask("GET", "/en/", headers=HTML)
    assert (shown.status, b"<form" in shown.body) == (401, True)
    assert "密钥" in keyed.ask("GET", "/", headers={**HTML, "accept-language": "zh-CN"}).body.decode()
    wrong = entered(keyed, "open-sesame-open-sesame")
    assert (wrong.status, b"This key is not valid." in wrong.body) == (401, True)
    right = entered(keyed, KEY)
    assert right.status == 303
    cookie = right.headers["set-cookie"]
    assert KEY not in cookie
    assert {"HttpOnly", "SameSite=Strict"} <= {part.strip() for part in cookie.split(";")}
    given = {**HTML, "cookie": cookie.partition(";")[0]}
    found = keyed.ask("GET", "/en/", headers=given)
    assert found.status == 200
    assert found.headers["content-security-policy"] == POLICY.decode()
    assert keyed.ask("GET", "/v1/models", headers=given).status == 200


def test_each_key_sees_its_own_jobs(keyed: Server):
    job_request = {"kind": "sample", "request": {"prompt": "a ring", "seed": 1}}
    job = keyed.ask("POST", "/v1/jobs", job_request, key=KEY).json["id"]
    seen = {}
    for key in (KEY, OTHER):
        cookie = entered(keyed, key).headers["set-cookie"].partition(";")[0]
        seen[key] = [one["id"] for one in keyed.ask("GET", "/v1/jobs", headers={"cookie": cookie}).json["data"]]
    assert seen == {KEY: [job], OTHER: []}


def test_a_page_of_another_origin_cannot_enter_or_use_the_cookie(keyed: Server):
    assert entered(keyed, KEY, origin="https://elsewhere.example").status == 403
    cookie = entered(keyed, KEY).headers["set-cookie"].partition(";")[0]
    headers = {"cookie": cookie, "origin": "https://elsewhere.example"}
    assert keyed.ask("POST", "/v1/jobs", {"kind": "sample", "request": {}}, headers=headers).status == 403


@pytest.mark.parametrize("body", [b"", b"--x", b"\xff" * 100, b"--x\r\n" + b"a" * 20_000])
def test_an_invalid_form_does_not_log_in(keyed: Server, body: bytes):
    sent = {"content-type": "multipart/form-data; boundary=x", **HTML}
    assert keyed.ask("POST", LOGIN_PATH, body=body, headers=sent).status == 401
    assert keyed.ask("POST", LOGIN_PATH, body=body, headers={"content-type": "text/plain"}).status == 401


def test_an_incomplete_form_times_out():
    async def app(scope, receive, send):
        headers.append(dict(scope["headers"]))

    async def never():
        await asyncio.sleep(60)

    async def send(message):
        raise AssertionError(message)

    headers: list[dict[bytes, bytes]] = []
    scope = {"type": "http", "method": "POST", "path": LOGIN_PATH, "headers": []}
    entrance = LoginMiddleware(app, replace(SecurityPolicy({"ann": KEY}), seconds=0.05))
    waited_for(entrance(scope, never, send))
    assert headers == [{}]  # the guard sees no key


def test_no_file_outside_of_its_folders_is_shown_by_the_page(keyed: Server, tmp_path: Path):
    """Gradio's file route gets paths of every kind; the control is an uploaded file."""
    secret = tmp_path / "secret.txt"
    secret.write_text("not for you")
    cookie = {"cookie": entered(keyed, KEY).headers["set-cookie"].partition(";")[0]}
    own = keyed.service.queue.folder
    names = [str(secret), f"{own}/jobs.sqlite3", f"{own}/inputs/../jobs.sqlite3", "/etc/passwd", "../../etc/passwd"]
    names += [
        f"{own}/inputs/%2e%2e/jobs.sqlite3",
        f"{own}/made/..%2fjobs.sqlite3",
        "file:///etc/passwd",
        "//etc/passwd",
    ]
    names += [
        "http://127.0.0.1:1/",
        f"{own}/browser/../jobs.sqlite3",
        "/proc/self/environ",
        "\\\\host\\share",
        ".",
        "~",
    ]
    for name in names:
        line = http.client.HTTPConnection("127.0.0.1", keyed.port, timeout=30)
        line.putrequest("GET", f"/en/gradio_api/file={name}", skip_accept_encoding=True)
        line.putheader("cookie", cookie["cookie"])
        line.endheaders()
        found = line.getresponse()
        assert found.status in (400, 403, 404, 405, 422), (name, found.status)
        assert b"not for you" not in found.read()
        line.close()
    (own / "inputs").mkdir(exist_ok=True)
    (own / "inputs" / "shown.png").write_bytes(b"here")
    assert keyed.ask("GET", f"/en/gradio_api/file={own}/inputs/shown.png", headers=cookie).body == b"here"
