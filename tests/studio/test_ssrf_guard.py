"""URLs in requests to the page are never fetched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gradio")

import safehttpx
from gradio import processing_utils

from tests.server.http.conftest import Server
from tests.studio.conftest import LEFT
from tests.studio.test_bombs import pressed, studio
from unveil.io.images import png
from unveil.studio.ssrf_guard import BlockedTransport

__all__ = ["studio"]
pytestmark = LEFT
GIVEN = {"image-task": "img2img", "image-prompt": "a ring"}


class Elsewhere(HTTPServer):
    """A fake machine with an image at every URL, which records requests."""

    def __init__(self) -> None:
        self.requested: list[str] = []
        content, requested = png(torch.zeros(3, 32, 32, dtype=torch.uint8)), self.requested

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requested.append(self.path)
                self.send_response(200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *given: Any) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """A machine that passes for one of the public network."""

    async def is_public(host: str) -> str:
        return "127.0.0.1"

    monkeypatch.setattr(safehttpx, "async_validate_url", is_public)
    with Elsewhere() as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def of(found: Elsewhere) -> dict[str, Any]:
    """An image in a request that is not a local file."""
    address = f"http://elsewhere.example:{found.server_port}/a.png"
    return {"path": address, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}


def test_no_address_in_a_request_is_fetched(
    studio: Server, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for part in ("image-source", "image-prompt", "image-seed"):  # Gradio looks for files in all that it is sent
        assert pressed(studio, "image-go", GIVEN | {part: of(elsewhere)}) is None
    assert elsewhere.requested == []
    assert isinstance(processing_utils.async_transport, BlockedTransport)
    monkeypatch.setattr(processing_utils, "async_transport", None)
    monkeypatch.setattr("unveil.studio.event_check.value_problem", lambda *values: "")
    assert pressed(studio, "image-go", GIVEN | {"image-source": of(elsewhere)}) is not None
    assert elsewhere.requested == ["/a.png"]  # control: Gradio left to itself


@pytest.mark.parametrize("route", ["file=", "proxy=", "file=%68ttp%3A%2F%2F"])
def test_no_address_is_fetched_and_passed_on(studio: Server, elsewhere: Elsewhere, route: str):
    host = f"elsewhere.example:{elsewhere.server_port}/a.png"
    where = f"/en/gradio_api/{route}{'' if '%' in route else 'http://'}{host}"
    assert studio.ask("GET", where).status == 404
    assert elsewhere.requested == []


def test_gradios_own_route_would_fetch_it(studio: Server, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch):
    """The control of the test above."""
    monkeypatch.setattr("unveil.studio.server.names_url", lambda path: False)
    where = f"/en/gradio_api/file=http://elsewhere.example:{elsewhere.server_port}/a.png"
    assert studio.ask("GET", where).status == 200
    assert elsewhere.requested == ["/a.png"]
