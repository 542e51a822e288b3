"""Memory of a server after many large requests at a time."""

from __future__ import annotations

import http.client
import threading
import time
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


def uploaded(served: Served, body: bytes, headers: dict[str, str]) -> list[int]:
    """The statuses of uploads of many clients at once."""
    statuses: list[int] = []

    def upload() -> None:
        line = http.client.HTTPConnection("127.0.0.1", served.port, timeout=300)
        try:
            line.request("POST", "/v1/inputs", body, headers)
            statuses.append(line.getresponse().status)
        finally:
            line.close()

    threads = [threading.Thread(target=upload) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


@pytest.mark.parametrize("side", [1000, pytest.param(3270, marks=pytest.mark.release)])
def test_the_memory_of_many_large_uploads_is_returned(tmp_path: Path, side: int):
    """32 clients with an image of 3 MB, or in `make test-all` of 31 MiB, which is the most that a body may have."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    headers, body = form(("file", '; filename="a.png"', saved(Image.fromarray(noise), "PNG", compress_level=0)))
    served = Served(tmp_path / "service")
    try:
        small = form(("file", '; filename="a.png"', saved(Image.fromarray(noise[:8, :8]), "PNG")))
        uploaded(served, small[1], small[0])  # what it imports and its threads are there from here on
        before = memory(served.process.pid)
        statuses = uploaded(served, body, headers)
        end, least, first = time.monotonic() + LATER_S, memory(served.process.pid), memory(served.process.pid)
        while (least := min(least, memory(served.process.pid))) - before > 64 * MIB and time.monotonic() < end:
            time.sleep(0.2)
        print(f"{before / MIB:.0f} MiB before, {first / MIB:.0f} MiB at once after, {least / MIB:.0f} MiB later")
        assert set(statuses) <= {200, 429}
        assert statuses.count(200) >= 8
        assert least - before <= 64 * MIB
    finally:
        served.kill()
