"""Refused requests: keys, hosts, origins and invalid bodies."""

from __future__ import annotations

import http.client
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch

from tests.server.http.conftest import KEY, OTHER, Answer, Begin, Server, waited_for
from unveil.errors import DataError, OutOfResources, OutputError, RecipeError
from unveil.io.console import Console
from unveil.io.images import png
from unveil.server.http.connection import ConnectionLimits
from unveil.server.http.middleware import (
    Receive,
    Scope,
    SecurityMiddleware,
    SecurityPolicy,
    Send,
    json_depth,
    read_keys,
)
from unveil.server.http.server import ServerOptions, default_state_dir, serve
from unveil.server.jobs.folder_lock import folder_lock

RING = {"prompt": "a ring", "seed": 7}
SEND = {"content-type": "application/json"}


@pytest.fixture
def keyed(begin: Begin) -> Server:
    return begin(rules=SecurityPolicy(keys={"me": KEY, "you": OTHER}, hosts=None, seconds=1.0))


# -- keys ---------------------------------------------------------------------------------------------------------


def test_every_route_needs_a_key(keyed: Server):
    paths = keyed.ask("GET", "/v1/openapi.json", key=KEY).json["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(routes) >= 20
    for method, path in [*routes, ("GET", "/nothing"), ("GET", "/v1/openapi.json"), ("PUT", "/v1/jobs")]:
        if path == "/health":
            continue
        for key in (None, "", KEY[:-1], KEY + " ", "Bearer " + KEY, KEY.upper(), "\u00e9" * 20):
            headers = {} if key is None else {"authorization": f"Bearer {key}".encode().decode("latin-1")}
            if key == KEY + " ":  # a blank behind it is none of its signs
                continue
            found = keyed.ask(method, path.replace("{id}", "0" * 16), headers=headers)
            assert (found.status, found.json["error"]["code"]) == (401, "invalid_api_key"), (method, path, key)
            assert found.headers["www-authenticate"] == "Bearer"
    assert keyed.ask("GET", "/health").status == 200
    assert keyed.ask("GET", "/v1/jobs", key=KEY).status == 200  # control
    assert keyed.ask("GET", "/nothing", key=KEY).status == 404


def test_nobody_sees_the_jobs_of_another_key(keyed: Server):
    id = keyed.ask("POST", "/v1/jobs", {"kind": "sample", "request": RING}, key=KEY).json["id"]
    keyed.until(id, "completed", key=KEY)
    for method, path in [
        ("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/preview"),
        ("GET", "/files/seed7_00000.png"),
    ]:  # fmt: skip
        assert keyed.ask(method, f"/v1/jobs/{id}{path}", key=OTHER).status == 404
    assert keyed.ask("GET", "/v1/jobs", key=OTHER).json["data"] == []
    assert keyed.ask("GET", f"/v1/jobs/{id}/files/seed7_00000.png", key=KEY).status == 200


def test_a_key_is_never_logged(keyed: Server, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        for key in (KEY, "wrong-wrong-wrong-wrong"):
            keyed.ask("GET", "/v1/jobs", key=key)
            keyed.ask("POST", "/v1/images/generations", {"n": "x"}, key=key)
    assert KEY not in caplog.text
    assert "wrong-wrong" not in caplog.text


@pytest.mark.parametrize("key", ["", "short", "with a blank in it", "\u00e9" * 20, "line\nline-line-line-line"])
def test_a_key_that_can_be_guessed_or_cannot_be_sent_is_refused(key: str):
    with pytest.raises(RecipeError, match="at least 16 ASCII characters"):
        SecurityPolicy(keys={"me": key})


def test_keys_are_read_from_a_file(tmp_path: Path):
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_text(f"# people\n\nme {KEY}\n{OTHER}\n")
    assert read_keys(file).keys == {"me": KEY, "key 4": OTHER}
    for text, message in (
        ("", "contains no key"),
        ("a b c", "line 1: must be"),
        (f"me {KEY}\nme {OTHER}", "repeats the name"),
    ):
        file.write_text(text)
        with pytest.raises(RecipeError, match=message):
            read_keys(file)
    with pytest.raises(DataError, match="No such file"):
        read_keys(tmp_path / "none")


def test_a_file_of_keys_that_others_can_read_is_refused(tmp_path: Path):
    """An option accepts it, as the mounted secrets of containers; others may never write it."""
    file = tmp_path / "keys"
    file.write_text(f"me {KEY}\n")
    for mode, plain, shared in (
        (0o600, "", ""), (0o400, "", ""), (0o444, "can read", ""), (0o640, "can read", ""), (0o604, "can read", ""),
        (0o620, "can write", "can write"), (0o666, "can write", "can write"),
    ):  # fmt: skip
        file.chmod(mode)
        for option, message in ((False, plain), (True, shared)):
            options = ServerOptions(tmp_path, keys=file, shared_keys=option)
            if message:
                with pytest.raises(
                    RecipeError, match=rf"keys: other users {message} it \(mode {mode:04o}\); run chmod"
                ):
                    options.load_keys({})
            else:
                assert options.load_keys({}).keys == {"me": KEY}, oct(mode)


# -- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_an_address_that_others_reach_needs_a_key(tmp_path: Path, host: str):
    with pytest.raises(RecipeError, match="no key is set"):
        serve(ServerOptions(tmp_path / "s", host=host), Console(quiet=True), {})
    assert not (tmp_path / "s").exists()
    assert ServerOptions(tmp_path, host=host).load_keys({"UNVEIL_SERVER_KEY": KEY}).keys == {"key": KEY}  # control


def test_a_used_port_and_a_served_folder_are_reported(tmp_path: Path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OutputError, match="in use; choose another with --port"):
            serve(ServerOptions(tmp_path, port=other.getsockname()[1]), Console(quiet=True), {})
        with (
            folder_lock(tmp_path, "http://127.0.0.1:7861"),
            pytest.raises(OutputError, match=r"http://127\.0\.0\.1:7861 .* serves this folder"),
        ):
            serve(
                ServerOptions(tmp_path, port=other.getsockname()[1]), Console(quiet=True), {}
            )  # who serves it has the port
    with folder_lock(tmp_path, "http://127.0.0.1:7861"), pytest.raises(OutputError, match=r"http://127\.0\.0\.1:7861"):
        serve(ServerOptions(tmp_path, port=0), Console(quiet=True), {})


@pytest.mark.parametrize(
    ("device", "kind", "message"),
    [("cuda:99", OutOfResources, "device 'cuda:99': this machine has"), ("cdua", RecipeError, "nearest: 'cuda'")],
)
def test_a_device_that_is_not_there_is_an_error_at_the_start(tmp_path: Path, device: str, kind: type, message: str):
    with pytest.raises(kind, match=message):
        serve(ServerOptions(tmp_path / "s", port=0, devices=("cpu", device)), Console(quiet=True), {})
    assert not (tmp_path / "s").exists()


def test_the_state_is_in_the_users_data_directory_unless_a_folder_is_named(tmp_path: Path, monkeypatch, capsys):
    """Its place is printed at the start, and nothing is written where the server is started."""
    home, here = tmp_path / "home", tmp_path / "here"
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    monkeypatch.setenv("HOME", str(home))
    (here / "service").mkdir(parents=True)
    (here / "service" / "jobs.sqlite3").write_bytes(b"")
    monkeypatch.chdir(here)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    for folder, warned in ((None, True), (tmp_path / "named", False)):
        serve(ServerOptions(folder, port=0, devices=()), Console(), {})
        printed = capsys.readouterr()
        place = folder or default_state_dir()
        assert (place / "jobs.sqlite3").is_file()
        assert f"jobs and results in {place}; Ctrl-C ends it" in printed.out
        former = "service/ has jobs of an earlier version; --state-dir service opens it"
        assert (former in printed.err) == warned
    assert default_state_dir().is_relative_to(home)
    assert [path.name for path in here.rglob("*")] == ["service", "jobs.sqlite3"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.", "", "[::2]", "127.0.0.1:80:90",
        "127.0.0.1:", "127.0.0.1:a", "127.0.0.1:80/", "127.0.0.1/", "a@127.0.0.1", "[::1]:9:9", "[::1]a", "[::1",
        "127.0.0.1:800000", ":80", "127.0.0.1, 127.0.0.1", "localhost localhost", "http://localhost",
    ],
)  # fmt: skip
def test_a_foreign_host_name_is_refused(begin: Begin, host: str):
    server = begin()
    assert server.ask("GET", "/v1/jobs", headers={"host": host}).status == 403
    for own in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:9"):
        assert server.ask("GET", "/v1/jobs", headers={"host": own}).status == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://", "http://localhost:1"]
)
def test_a_page_of_another_origin_is_refused(begin: Begin, origin: str):
    server = begin(rules=SecurityPolicy(origins=frozenset({"https://studio.example"})))
    sent = {"origin": origin}
    assert server.ask("POST", "/v1/images/generations", RING, sent).status == 403
    assert server.ask("GET", "/v1/jobs", headers=sent).status == 403
    assert server.ask("GET", "/v1/jobs", headers={"sec-fetch-site": "cross-site"}).status == 403
    for own in (f"http://127.0.0.1:{server.port}", "https://studio.example"):
        assert server.ask("POST", "/v1/images/generations", RING, {"origin": own}).status == 200
    assert "access-control-allow-origin" not in server.ask("GET", "/v1/jobs").headers


LINK = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def test_a_link_from_another_page_is_followed_and_nothing_else_of_it_is(begin: Begin):
    server = begin()
    assert server.ask("GET", "/v1/jobs", headers=LINK).status == 200
    for other in (
        {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
        {"sec-fetch-dest": "iframe"},
        {"sec-fetch-mode": "no-cors"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
    ):
        assert server.ask("GET", "/v1/jobs", headers={**LINK, **other}).status == 403, other
    for name in LINK.keys() - {"sec-fetch-site"}:
        assert server.ask("GET", "/v1/jobs", headers={**LINK, name: ""}).status == 403, name
    id = server.ask("POST", "/v1/jobs", {"kind": "sample", "request": RING}).json["id"]
    for method, path in (("POST", "/v1/jobs"), ("POST", f"/v1/jobs/{id}/cancel"), ("DELETE", f"/v1/jobs/{id}")):
        assert server.ask(method, path, headers=LINK).status == 403, (method, path)
    server.until(id, "completed")


def test_a_malformed_host_is_refused_where_any_host_is_allowed(keyed: Server):
    for host, status in (("unveil.example.org:80", 200), ("a.b:80:90", 403), ("a/b", 403), ("a@b", 403), ("a b", 403)):
        assert keyed.ask("GET", "/v1/jobs", headers={"host": host}, key=KEY).status == status, host


# -- bodies -------------------------------------------------------------------------------------------------------


def pieces(size: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b" " * size


def at_once(ask: Callable[[], Answer]) -> Answer:
    """Return the answer of three equal requests whose median time is below a second."""
    took = list[float]()
    for _ in range(3):
        begun = time.monotonic()
        found = ask()
        took.append(time.monotonic() - begun)
    assert median(took) < 1, took
    return found


def test_the_servers_own_machine_may_upload_large_files_if_allowed(begin: Begin):
    place = "/v1/inputs"
    image = png(torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8))
    body = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + image + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    server = begin(rules=SecurityPolicy(body=1000, json=1000, large=frozenset({place})))
    assert server.ask("POST", place, body=body, headers=headers).status == 200
    assert server.ask("POST", "/v1/images/edits", body=body, headers=headers).status == 413
    assert server.ask("POST", place, body=b" " * 2000, headers=SEND).status == 413
    ask = ServerOptions(Path(), large=[place])
    assert ask.policy({}).large == {place}
    assert ask.policy({"UNVEIL_SERVER_KEY": KEY}).large == frozenset()  # who has a key is not the own machine


def test_large_bodies_are_refused_before_they_are_read(begin: Begin):
    server = begin()
    for kind, most in (("application/json", 1 << 18), ("multipart/form-data; boundary=x", 32 << 20)):
        sent = {"content-type": kind, "content-length": str(most + 1)}
        found = at_once(partial(server.ask, "POST", "/v1/images/edits", headers=sent, body=b""))
        assert (found.status, found.json["error"]["code"]) == (413, "too_large")
    chunked = partial(server.ask, "POST", "/v1/images/generations", headers=SEND)
    assert at_once(lambda: chunked(body=pieces(1 << 15, 9))).status == 413
    assert at_once(lambda: chunked(body=pieces(1, 9))).status == 422  # control: a body within the limit is read
    huge = server.ask("POST", "/v1/images/generations", headers={**SEND, "content-length": "9" * 30}, body=b"")
    assert huge.status in (400, 413)
    assert server.ask("POST", "/v1/images/generations", RING).status == 200  # control


def test_a_body_that_does_not_arrive_is_given_up(keyed: Server):
    with socket.create_connection(("127.0.0.1", keyed.port)) as line:
        head = f"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
        line.sendall(f"{head}content-type: application/json\r\ncontent-length: 100\r\n\r\n{{".encode())
        begun = time.monotonic()
        answer = line.recv(4096)
    assert b" 408 " in answer.partition(b"\r\n")[0]
    assert 0.9 < time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("client", "forwarded", "scheme"),
    [
        (("127.0.0.1", 1), b"https", "https"),
        (("::1", 1), b"https", "https"),
        (("127.0.0.1", 1), b"gopher", "http"),
        (("127.0.0.1", 1), None, "http"),
        (("10.0.0.7", 1), b"https", "http"),
        (("10.1.0.7", 1), b"https", "https"),
        (None, b"https", "http"),
    ],
)
def test_a_proxy_on_the_same_machine_or_a_trusted_one_forwards_the_scheme(client, forwarded: bytes | None, scheme: str):
    found: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found.append(scope["scheme"])

    rules = SecurityPolicy(proxies=ConnectionLimits(proxies=("10.1.0.0/16",)))
    headers = [(b"host", b"localhost")] + ([] if forwarded is None else [(b"x-forwarded-proto", forwarded)])
    scope = {"type": "http", "scheme": "http", "path": "/", "method": "GET", "headers": headers, "client": client}
    waited_for(SecurityMiddleware(app, rules, lambda *seen: None)(scope, None, None))
    assert found == [scheme]


def test_addresses_behind_a_proxy_are_those_of_the_proxy(begin: Begin):
    ask, server = {**RING, "response_format": "url"}, begin()
    (plain,) = server.ask("POST", "/v1/images/generations", ask).json["data"]
    (found,) = server.ask("POST", "/v1/images/generations", ask, {"x-forwarded-proto": "https"}).json["data"]
    assert plain["url"].startswith("http://127.0.0.1:")
    assert found["url"].startswith("https://127.0.0.1:")


def test_many_requests_on_one_connection_do_not_wait_for_each_other(begin: Begin):
    """Where the end of an answer waits until its beginning has arrived, each takes 40 ms, also the fastest ones."""
    line, took = http.client.HTTPConnection("127.0.0.1", begin().port, timeout=60), list[float]()
    for _ in range(40):
        begun = time.monotonic()
        line.request("GET", "/health")
        assert line.getresponse().read()
        took.append(time.monotonic() - begun)
    line.close()
    assert sorted(took)[10] < 0.03  # other programs share the CPU with the server


def test_a_head_that_does_not_arrive_is_given_up(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unveil.server.http.connection.PATIENCE_S", 0.5)
    server = begin()
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nhost: ")
        line.settimeout(10)
        assert line.recv(100) == b""
    assert server.ask("GET", "/health").status == 200


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", b"GET /health HTTP/1.1\r\nhost"),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n"
         b"content-type: multipart/form-data; boundary=x\r\n\r\n", b"--x"),
    ],
)  # fmt: skip
def test_a_connection_that_was_answered_once_is_not_held_for_ever(begin: Begin, monkeypatch, first: bytes, rest: bytes):
    """By a second head, or by a body that nobody reads, a byte now and then."""
    monkeypatch.setattr("unveil.server.http.connection.PATIENCE_S", 0.5)
    with socket.create_connection(("127.0.0.1", begin().port), timeout=10) as line:
        line.sendall(first)
        while not line.recv(4096).endswith(b"}"):
            pass
        line.settimeout(0.1)
        line.sendall(rest)
        begun, closed = time.monotonic(), False
        while not closed:
            assert time.monotonic() - begun < 4  # which is less than an idle connection is kept
            with suppress(TimeoutError):
                try:
                    line.sendall(b"a")
                    closed = line.recv(4096) == b""
                except ConnectionError:
                    closed = True


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (SEND, b"[" * 100_000, 422),
        (SEND, b'{"a":' * 40 + b"1" + b"}" * 40, 422),
        (SEND, b'{"prompt": "' + b"[" * 9_000 + b'", "seed": 7}', 200),  # in a string they are letters
        (SEND, b"{", 422),
        (SEND, b"[]", 422),
        (SEND, b'{"n": 1e999}', 422),
        (SEND, b'{"n": NaN}', 422),
        (SEND, b'{"seed": ' + b"9" * 5_000 + b"}", 400),
        (SEND, b'{"prompt": "\\ud800"}', 422),
        (SEND, b'{"prompt": "a\\u0000b"}', 422),
        (SEND, b"\xff\xfe", 422),
        ({**SEND, "content-encoding": "gzip"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=1", 415),
        ({"content-type": "text/plain"}, b"{}", 415),
        ({}, b"{}", 415),
    ],
)
def test_an_invalid_body_is_refused(begin: Begin, headers, body: bytes, status: int):
    found = at_once(partial(begin().ask, "POST", "/v1/images/generations", headers=headers, body=body))
    assert found.status == status, found.body
    if status != 200:
        assert set(found.json["error"]) == {"message", "type", "param", "code"}


def form(*parts: tuple[str, str, bytes]) -> tuple[dict[str, str], bytes]:
    """A form: the name of each field, the rest of its disposition, and its content."""
    body = b"".join(
        f'--x\r\ncontent-disposition: form-data; name="{name}"{rest}\r\n\r\n'.encode() + content + b"\r\n"
        for name, rest, content in parts
    )
    return {"content-type": "multipart/form-data; boundary=x"}, body + b"--x--\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [("prompt", "", b"a ring")] * 70,
        [(f"f{n}", "", b"") for n in range(10_000)],
        [("prompt", "", b"a" * 100_000)],
        [("image", '; filename="a.png"', b"none")],
        [("image", '; filename="../../../etc/passwd"', b"\x80\x04")],
        [("prompt", '; filename="a.png"', b"none")],
        [("image", '; filename="a.png"', b"<svg onload=alert(1)/>")],
        [("image", "", b"none")],
        [("verb", "", b"[[[[[[[[[[")],
    ],
)
def test_an_invalid_form_is_refused(begin: Begin, parts):
    server = begin()
    headers, body = form(*parts)
    found = server.ask("POST", "/v1/images/edits", headers=headers, body=body)
    assert found.status in (400, 413, 422), found.body
    assert not list(server.service.uploads().folder.glob("*"))


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (b"", 0),
        (b"1", 0),
        (b"[[{}]]", 3),
        (b"[[], [], {}]", 2),
        (b'{"a": [{"b": "[[[\\"[[["}]}', 3),
        (b'["\\\\", [], "]"]', 2),
        (b"[" * 10**6, 33),  # no further than one beyond what may be
        (b'"' + b'\\"' * 10**5 + b"[[[", 0),  # a string that does not end
        (b'""' * 10**5 + b"[", 1),
    ],
)
def test_depth_is_that_of_brackets_outside_of_strings(text: bytes, depth: int):
    assert json_depth(text, 32) == depth
