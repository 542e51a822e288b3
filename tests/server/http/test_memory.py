"""Memory of a server after many large requests at a time."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server.http.test_bombs import MIB, saved
from tests.server.http.test_middleware import form
from tests.server.http.test_served import Served, memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux"),
]
CLIENTS = 32
LATER_S = 30.0
GROWTH = 64 * MIB
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    found = Served(tmp_path_factory.mktemp("served") / "service")
    small = np.zeros((8, 8, 3), np.uint8)
    headers, body = form(("file", '; filename="a.png"', saved(Image.fromarray(small), "PNG")))
    answered(found, "/v1/inputs", body, headers)  # what it imports and its threads are there from here on
    yield found
    found.kill()


def answered(served: Served, path: str, body: bytes | list[bytes], headers: Mapping[str, str]) -> list[int]:
    """The statuses of a request of many clients at once; 0 for a connection that is closed without one."""
    statuses: list[int] = []

    def client() -> None:
        line = http.client.HTTPConnection("127.0.0.1", served.port, timeout=300)
        try:
            with suppress(ConnectionError):  # an answer before the whole body closes the connection
                line.request("POST", path, iter(body) if isinstance(body, list) else body, dict(headers))
            statuses.append(line.getresponse().status)
        except ConnectionError:
            statuses.append(0)
        finally:
            line.close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def growth(served: Served, before: int) -> int:
    """How much memory the server keeps within a time, in bytes."""
    end, least = time.monotonic() + LATER_S, memory(served.process.pid)
    first = least
    while least - before > GROWTH and time.monotonic() < end:
        time.sleep(0.2)
        least = min(least, memory(served.process.pid))
    print(f"{before / MIB:.0f} MiB before, {first / MIB:.0f} MiB at once after, {least / MIB:.0f} MiB later")
    return least - before


@pytest.mark.parametrize("side", [1000, pytest.param(3270, marks=pytest.mark.release)])
def test_the_memory_of_many_large_uploads_is_returned(served: Served, side: int):
    """32 clients with an image of 3 MB, or in `make test-all` of 31 MiB, close to the most that a body may have."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    headers, body = form(("file", '; filename="a.png"', saved(Image.fromarray(noise), "PNG", compress_level=0)))
    before = memory(served.process.pid)
    statuses = answered(served, "/v1/inputs", body, headers)
    grown = growth(served, before)
    assert set(statuses) <= {200, 408, 429, 0}  # 408: a busy machine does not receive all in time
    assert statuses.count(200) >= (8 if side < 3000 else 1)
    assert grown <= GROWTH


def test_many_oversized_requests_take_no_memory(served: Served):
    before = memory(served.process.pid)
    part = b" " * (64 << 10)
    headers, body = form(("file", '; filename="a.png"', b"a" * (33 * MIB)))
    for path, sent, kind in (
        ("/v1/jobs", b" " * (33 * MIB), JSON),  # refused by its length
        ("/v1/jobs", [part] * 16, JSON),  # in chunks
        ("/v1/inputs", [body[start : start + MIB] for start in range(0, len(body), MIB)], headers),
    ):
        assert set(answered(served, path, sent, kind)) <= {413, 408, 0}
        assert served.ask("GET", "/health")[0] == 200
    assert growth(served, before) <= GROWTH
