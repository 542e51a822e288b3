"""Keys in the browser: a login form, a cookie that does not contain the key, and no route without a key."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("gradio")

from tests.server.http.conftest import KEY, OTHER, Answer, Many, Server, server, waited_for
from tests.studio.conftest import MARKS
from unveil.server.http.connection import MAX_HEAD
from unveil.server.http.middleware import Receive, Scope, SecurityMiddleware, SecurityPolicy, Send
from unveil.studio.login import COOKIE, KEPT_S, LOGIN_PATH, LoginMiddleware, session_of
from unveil.studio.server import POLICY, add_studio

pytestmark = MARKS
HTML = {"accept": "text/html,*/*"}


class Threaded(LoginMiddleware):
    """Notes the thread of the event loop."""

    loop: ClassVar[int] = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        Threaded.loop = threading.get_ident()
        await super().__call__(scope, receive, send)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    rules = SecurityPolicy({"ann": KEY, "bob": OTHER})
    folder = tmp_path_factory.mktemp("keyed")
    with server(folder, rules, Many, extend=add_studio, before=Threaded) as found:
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
    shown = keyed.service.uploads("ann").folder / "shown.png"
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.write_bytes(b"here")
    assert keyed.ask("GET", f"/en/gradio_api/file={shown}", headers=cookie).body == b"here"


# -- what a client without a key may cost -------------------------------------------------------------------------

LARGEST = MAX_HEAD - 200  # bytes of one header, next to the others


def head(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "host: localhost", *headers, "", ""]).encode("latin-1") + body


def login_form(body: bytes, *headers: str) -> bytes:
    kind = "content-type: multipart/form-data; boundary=x"
    return head(f"POST {LOGIN_PATH}", kind, f"content-length: {len(body)}", *headers, body=body)


def json_request(target: str, body: bytes) -> bytes:
    return head(target, "content-type: application/json", f"content-length: {len(body)}", body=body)


def chunked(target: str, body: bytes) -> bytes:
    return head(target, "content-type: application/json", "transfer-encoding: chunked", body=body)


def filled(text: str) -> str:
    return (text * (LARGEST // len(text)))[:LARGEST]


HOSTILE = {
    "nothing": head("GET /"),
    **{f"a cookie of {text!r}": head("GET /en/", f"cookie: {filled(text)}", "accept: text/html")
       for text in (f'{COOKIE}="\\', f"{COOKIE}=", ";", "a=1;", '"', "\\", " ", "; " + COOKIE, "\\012")},
    "100 cookies": head("GET /", *[f"cookie: {COOKIE}={'a' * 140}"] * 99),
    "100 headers": head("GET /", *(f"a{number}: {'b' * 150}" for number in range(99))),
    "a folded header": head("GET /", "a: b", *["  c"] * 97),
    "spaces": head("GET /", f"a: b{filled(' ')}\x01"),
    "a target": head(f"GET /{filled('%2e%2e/')}"),
    "a query": head(f"GET /?{filled('a=1&')}"),
    "a key": head("GET /", f"authorization: Bearer {filled('a')}"),
    "languages": head("GET /", "accept: text/html", f"accept-language: {filled('zh,')}"),
    "a host": head("GET /", f"x-forwarded-for: {filled('1.2.3.4, ')}"),
    "health with a body": json_request("GET /health", b"[]" * (1 << 17)),
    "health with strings": json_request("GET /health", b'""' * (1 << 17)),
    "health with chunks": chunked("GET /health", b"1\r\n[\r\n" * 40_000),
    "health with trailers": chunked("GET /health", b"0\r\n" + b"a:b\r\n" * 40_000 + b"\r\n"),
    "a body": json_request("POST /v1/jobs", b"[]" * (1 << 17)),
    "chunks": chunked("POST /v1/jobs", b"1\r\n[\r\n" * 40_000),
    "trailers": chunked("POST /v1/jobs", b"0\r\n" + b"a:b\r\n" * 40_000 + b"\r\n"),
    "few trailers": chunked("POST /v1/jobs", b"0\r\n" + b"a:b\r\n" * 3000 + b"\r\n"),
    "a form in chunks": chunked(f"POST {LOGIN_PATH}", b"1\r\n[\r\n" * 40_000),
    **{f"a form of {text!r}": login_form((text * (8192 // len(text) + 1))[:8192])
       for text in (b"--x\r\n\r\na\r\n", b"\r", b"-", b"--x\r\na:b\r\n\r\n\r\n", b"--x\r\n" + b"a:b\r\n" * 1000,
                    b'--x\r\ncontent-disposition: form-data; name="key"\r\n\r\na\r\n', b"\r\n--", b"\n")},
    "a form with a boundary": head(f"POST {LOGIN_PATH}", f"content-type: multipart/form-data; boundary={'-' * 8000}",
                                   "content-length: 8192", body=b"-" * 8192),
    "a form with parameters": head(f"POST {LOGIN_PATH}", f"content-type: multipart/form-data{filled(';a=b')}",
                                   "content-length: 4", body=b"--x\r"),
    "a large form": login_form(b"--x\r\n\r\na\r\n" * 30_000),
}  # fmt: skip
TOO_LARGE = {
    "a long head": head("GET /", f"cookie: {'a' * 100_000}"),
    "a long target": head(f"GET /{'a' * 20_000}"),
    "many headers": head("GET /", *["a: b"] * 101),
    "many short headers": head("GET /", *["a:"] * 40_000),
    "a head without an end": head("GET /", "a: " + "b" * 20_000)[:-4],
    "lines without an end": head("GET /", *["a:"] * 200)[:-4],
}


def answer_of(server: Server, request: bytes) -> bytes:
    """Send bytes and return the answer until the server closes the connection or keeps it after an answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        found = b""
        try:
            line.sendall(request)
            while (part := line.recv(1 << 16)) and not (b"connection: close" not in found and found.endswith(b"}")):
                found += part
        except ConnectionError:  # closed before all was sent
            pass
        return found


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="CPU times of threads are read")
def test_a_client_without_a_key_costs_little(keyed: Server):
    """CPU time of the event loop, which every other client waits for; the smallest of several times."""
    keyed.ask("GET", "/health")
    clock = time.pthread_getcpuclockid(Threaded.loop)
    for name, request in (HOSTILE | TOO_LARGE).items():
        took = list[float]()
        while len(took) < 10 and (not took or min(took) >= 0.003):
            begun = time.clock_gettime(clock)
            answer_of(keyed, request)
            took.append(time.clock_gettime(clock) - begun)
        print(f"{name[:60]}: {1000 * min(took):.1f} ms")
        assert min(took) < 0.005, name


def test_a_head_that_is_too_large_is_refused(keyed: Server):
    """Where 431 is the answer, the head was not parsed; the control has the largest head that is accepted."""
    cookie = entered(keyed, KEY).headers["set-cookie"].partition(";")[0]
    for name, request in TOO_LARGE.items():
        answer = answer_of(keyed, request.replace(b"cookie: ", f"cookie: {cookie}; b=".encode()))
        assert answer.startswith(b"HTTP/1.1 431 "), (name, answer[:200])
        assert b'"code": "head_too_large"' in answer
        assert b"connection: close" in answer.lower()
    largest = head("GET /v1/jobs", f"cookie: b={'a' * (LARGEST - 700)}; {cookie}", *["a: b"] * 97)
    assert MAX_HEAD - 300 < len(largest) < MAX_HEAD
    assert answer_of(keyed, largest).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "form",
    ["{}", "a=1; {}", "{}; a=1", 'a="\\";{}', "a=b;; ;{};{}", f"x{COOKIE}=1; {{}}", f"{COOKIE}=wrong; {{}} ", "{}\t;"],
)
def test_the_session_is_found_among_other_cookies(keyed: Server, form: str):
    cookie = entered(keyed, KEY).headers["set-cookie"].partition(";")[0]
    assert keyed.ask("GET", "/v1/jobs", headers={"cookie": form.format(cookie, "b=1")}).status == 200
    for wrong in (f"x{cookie}", f"{cookie}0", cookie[:-1], cookie.replace("=", " ="), f'"{cookie}"'):
        assert keyed.ask("GET", "/v1/jobs", headers={"cookie": form.format(wrong, "b=1")}).status == 401, wrong


def test_a_session_expires_on_the_server_and_is_sent_only_over_https_where_the_page_was(keyed: Server):
    plain, secure = (entered(keyed, KEY, **more).headers["set-cookie"] for more in ({}, {"x-forwarded-proto": "https"}))
    assert "Secure" not in plain
    assert "; Secure" in secure
    assert f"Max-Age={KEPT_S}" in plain
    for seconds, status in ((-1, 401), (60, 200)):
        cookie = f"{COOKIE}={session_of(KEY, int(time.time()) + seconds)}"
        assert keyed.ask("GET", "/v1/jobs", headers={"cookie": cookie}).status == status
    later = session_of(KEY, int(time.time()) - 1).partition(".")[2]  # the time is a part of what is signed
    assert keyed.ask("GET", "/v1/jobs", headers={"cookie": f"{COOKIE}={1 << 33}.{later}"}).status == 401


def test_no_cookie_reaches_the_application(keyed: Server):
    """Its libraries would parse it, in a time that is quadratic in its length."""
    seen: list[list[tuple[bytes, bytes]]] = []

    async def app(scope, receive, send):
        seen.append(scope["headers"])

    async def unused(*message):
        raise AssertionError(message)

    cookie = entered(keyed, KEY).headers["set-cookie"].partition(";")[0].encode()
    for keys, path in (({"ann": KEY}, "/en/"), ({}, "/en/"), ({"ann": KEY}, "/health")):
        rules = SecurityPolicy(keys)
        headers = [(b"host", b"localhost"), (b"cookie", cookie), (b"Cookie", b"a=" + b"\\" * 9000)]
        scope = {"type": "http", "scheme": "http", "method": "GET", "path": path, "headers": headers}
        waited_for(LoginMiddleware(SecurityMiddleware(app, rules, lambda *ended: None), rules)(scope, unused, unused))
    assert len(seen) == 3
    assert not any(name.lower() == b"cookie" for headers in seen for name, _ in headers)
