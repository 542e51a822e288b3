"""No address in a request is fetched: a server on this machine that would see it gets no connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from tests.server.http.conftest import Server, server
from tests.server.http.test_middleware import form

RING = {"prompt": "a ring", "seed": 7}
# forms of an address of this machine; PORT is that of the listener
ADDRESSES = (
    "http://127.0.0.1:PORT/a.png", "https://127.0.0.1:PORT/a.png", "HTTP://127.0.0.1:PORT/a.png",
    "http://localhost:PORT/a.png", "http://localhost.:PORT/a.png", "http://LOCALHOST:PORT/a.png",
    "http://[::1]:PORT/a.png", "http://[::ffff:127.0.0.1]:PORT/a.png", "http://[::]:PORT/a.png",
    "http://0.0.0.0:PORT/a.png", "http://0:PORT/a.png", "http://127.1:PORT/a.png", "http://127.0.1:PORT/a.png",
    "http://2130706433:PORT/a.png", "http://0x7f000001:PORT/a.png", "http://0177.0.0.1:PORT/a.png",
    "http://0x7f.0.0.1:PORT/a.png", "http://127.0.0.1:PORT\\@example.org/a.png", "http://example.org@127.0.0.1:PORT/a",
    "http://127.0.0.1:PORT#@example.org/", "http://127.0.0.1:PORT%2f@example.org/", "//127.0.0.1:PORT/a.png",
    "http:127.0.0.1:PORT/a.png", "http:/127.0.0.1:PORT/a.png", "http:\\\\127.0.0.1:PORT\\a.png",
    " http://127.0.0.1:PORT/a.png", "\thttp://127.0.0.1:PORT/a.png", "url:http://127.0.0.1:PORT/a.png",
    "ftp://127.0.0.1:PORT/a.png", "gopher://127.0.0.1:PORT/_a", "file://127.0.0.1:PORT/etc/passwd", "tcp://127.0.0.1:PORT",
    "dict://127.0.0.1:PORT/a", "hf://127.0.0.1:PORT/a", "http://①②⑦.⓪.⓪.①:PORT/a.png", "http://127。0。0。1:PORT/a.png",
)  # fmt: skip


class Listener(NamedTuple):
    """A server that notes each connection."""

    port: int
    connections: list[Any]


@pytest.fixture
def listener() -> Iterator[Listener]:
    with socket.create_server(("127.0.0.1", 0)) as open_socket:
        found = Listener(open_socket.getsockname()[1], [])

        def accept() -> None:
            with suppress(OSError):
                while True:
                    line, peer = open_socket.accept()
                    found.connections.append(peer)
                    line.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield found
        open_socket.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("service")) as started:
        yield started


def requests(address: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests with an address in each kind of field that names a file, a model or a service."""
    for task in ("img2img", "inpaint", "outpaint", "upscale"):
        yield f"/v1/tasks/{task}", {**RING, "image": address}
    yield "/v1/tasks/sample", {**RING, "model": address}
    yield "/v1/tasks/sample", {**RING, "expand_prompt": address}
    yield "/v1/tasks/sample", {**RING, "expand_prompt": f"openai:{address}"}
    yield "/v1/tasks/sample", {**RING, "lora": [{"file": address}]}
    yield "/v1/tasks/sample", {**RING, "controlnet": [{"network": address, "image": address}]}
    yield "/v1/tasks/video-loop", {"video": address}
    yield "/v1/tasks/video-generate", {**RING, "keyframes": [{"image": address, "frame": 0}]}
    yield "/v1/tasks/caption", {"folder": "photos", "model": address}
    yield "/v1/tasks/caption", {"folder": address, "model": "playground-captioner"}
    yield "/v1/tasks/convert", {"source": address, "output": "mine"}
    yield "/v1/tasks/train", {"recipe": address, "run_name": "mine"}
    yield "/v1/tasks/train", {"recipe": "own-images", "run_name": "mine", "folder": address}
    yield "/v1/images/generations", {**RING, "model": address}
    yield "/v1/videos", {**RING, "input_reference": address}
    yield "/v1/videos", {**RING, "input_reference": {"image_url": address}}
    yield "/v1/videos/edits", {**RING, "video": address}
    yield "/v1/videos/edits", {**RING, "video": {"url": address}}


def test_no_address_in_a_request_is_fetched(running: Server, listener: Listener):
    with socket.create_connection(("127.0.0.1", listener.port)):
        pass
    while not listener.connections:  # control: a connection is seen
        pass
    listener.connections.clear()
    assert len(ADDRESSES) >= 30
    for turn, text in enumerate(ADDRESSES):
        address = text.replace("PORT", str(listener.port))
        for path, body in list(requests(address))[turn % 3 :: 3]:
            answer = running.ask("POST", path, body)
            assert 400 <= answer.status < 500, (path, body, answer)
        headers, sent = form(("image", "", address.encode()), ("prompt", "", b"a ring"))
        assert 400 <= running.ask("POST", "/v1/images/edits", headers=headers, body=sent).status < 500
    assert running.service.queue.jobs() == []
    assert listener.connections == []
