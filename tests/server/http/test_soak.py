"""2,000 images through the server: neither it nor its worker grows, and nothing stays open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.server.http.test_served import RING, Served, children, memory

pytestmark = [pytest.mark.release, pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")]
COUNT = int(os.environ.get("UNVEIL_SOAK", "2000"))
WARM = COUNT // 10  # until every buffer has its size
GROWTH = 50 << 20


class Held(NamedTuple):
    """Memory, file handles and threads of a process."""

    bytes: int
    handles: int
    threads: int


def held(process: int) -> Held:
    place = Path(f"/proc/{process}")
    return Held(memory(process), len(list((place / "fd").iterdir())), len(list((place / "task").iterdir())))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path / "service")
    yield found
    found.kill()


def test_neither_server_nor_worker_grows(served: Served):
    processes = [served.process.pid, *children(served.process.pid)]
    before: list[Held] = []
    for number in range(COUNT):
        if number == WARM:
            before = [held(one) for one in processes]
        model = {} if number % 50 else {"model": "ddpm-digits", "prompt": None, "label": "3"}  # now and then another
        assert served.ask("POST", "/v1/images/generations", {**RING, "seed": number, **model})[0] == 200
    after = [held(one) for one in processes]
    print(before, after)
    assert [served.process.pid, *children(served.process.pid)] == processes
    for old, new in zip(before, after, strict=True):
        assert new.bytes - old.bytes <= GROWTH
        assert abs(new.handles - old.handles) <= 8  # connections that close just now
        assert abs(new.threads - old.threads) <= 2
