"""A server under load: 64 clients of 10 requests, 7 of them images of the bundled model in 4 steps, on one worker.

The clients draw images as base64 and by address, fetch a file, and list jobs and models; none is refused, and each
waits for its answer before it asks again. `direct` draws the same images one after the other in one process, as a
script would, with their records in files. The CPU seconds of `server` are those of the server and its worker together,
from its first answer on, the clients' own left out; `health` is how long `GET /health` takes meanwhile.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import harness

CLIENTS = 3 if harness.short() else 64
IMAGES = 7  # of the requests of a client
PROMPTS = ("a red ring", "a large blue square on green", "a small yellow circle", "a white triangle")
STEPS = 4
EVERY_S = 0.05  # between two looks at the health of the server, which cost it a little


def request(number: int, turn: int) -> dict[str, Any]:
    """What a client asks for in a turn."""
    seed = IMAGES * number + turn
    return {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "steps": STEPS, "expand": False}


WARM = [{**request(0, turn), "seed": 10**6 + turn} for turn in range(len(PROMPTS))]  # what is computed once


def direct() -> dict[str, float]:
    """The images of all clients by the calls of `unveil sample`, the model read once."""
    from unveil.generation.model_loading import ModelOptions, open_for_generation
    from unveil.io.console import Console
    from unveil.tasks.fields import PLAYGROUND
    from unveil.tasks.task import TaskContext, TaskOutput
    from unveil.tasks.text_to_image import TextToImage

    console = Console(quiet=True)
    opened = open_for_generation(ModelOptions(PLAYGROUND, "cpu"), console)
    with TemporaryDirectory() as folder:

        def one(ask: dict[str, Any]) -> None:
            task = TextToImage(prompt=(ask["prompt"],), seed=(ask["seed"],), steps=STEPS, expand_prompt="none")
            output = TaskOutput(Path(folder) / str(ask["seed"]))
            task.run(TaskContext(output, console, "cpu", opener=lambda *_, **__: opened))

        for ask in WARM:
            one(ask)
        cpu, wall = time.process_time(), time.perf_counter()
        for number in range(CLIENTS):
            for turn in range(IMAGES):
                one(request(number, turn))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_s": cpu, "wall_s": wall, "images_per_s": CLIENTS * IMAGES / wall}


class Served:
    """A server of a folder, which answers."""

    def __init__(self, folder: Path) -> None:
        self._command = [sys.executable, "-m", "unveil", "serve", "--state-dir", str(folder), "--port", "0"]
        self._command += ["--device", "cpu", "--max-queued", str(2 * CLIENTS), "--quiet"]
        self.process = subprocess.Popen(self._command)
        self.port = 0
        address = folder / ".server"
        while not self.port:
            assert self.process.poll() is None, "the server ended"
            text = address.read_text() if address.is_file() else ""
            self.port = int(json.loads(text)["address"].rpartition(":")[2]) if text else 0
            time.sleep(0.05)
        while True:
            try:
                self.ask("GET", "/health")
                break
            except OSError:
                time.sleep(0.05)

    def ask(self, method: str, path: str, given: Any = None) -> bytes:
        """The body of an answer, which has to be 200."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            body = None if given is None else json.dumps(given)
            line.request(method, path, body, {"content-type": "application/json"} if body else {})
            answer = line.getresponse()
            found = answer.read()
            assert answer.status == 200, found
            return found
        finally:
            line.close()

    def spent(self) -> dict[str, float]:
        """CPU seconds of the server and of its worker so far."""
        own = self.process.pid
        (worker,) = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        ticks = os.sysconf("SC_CLK_TCK")
        found: dict[str, float] = {}
        for name, process in (("serving_s", own), ("working_s", worker)):
            user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
            found[name] = (int(user) + int(system)) / ticks
        return found


@contextmanager
def served() -> Iterator[Served]:
    """A server until the end of the block, the model read."""
    with TemporaryDirectory() as folder:
        found = Served(Path(folder) / "service")
        try:
            for ask in WARM:
                found.ask("POST", "/v1/images/generations", ask)
            yield found
        finally:
            found.process.terminate()
            found.process.wait()


def client(server: Served, number: int) -> None:
    """The ten requests of one client."""
    for turn in range(IMAGES - 1):
        server.ask("POST", "/v1/images/generations", request(number, turn))
    ask = {**request(number, IMAGES - 1), "response_format": "url"}
    (made,) = json.loads(server.ask("POST", "/v1/images/generations", ask))["data"]
    server.ask("GET", "/v1/" + made["url"].partition("/v1/")[2])
    server.ask("GET", "/v1/jobs?limit=20")
    server.ask("GET", "/v1/models")


@cache
def server() -> dict[str, float]:
    """All clients at once, and looks at `/health` all the while."""
    waits: list[float] = []
    with served() as found:
        threads = [threading.Thread(target=client, args=(found, number)) for number in range(CLIENTS)]
        before, wall = found.spent(), time.perf_counter()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            begun = time.perf_counter()
            found.ask("GET", "/health")
            waits.append(time.perf_counter() - begun)
            time.sleep(EVERY_S)
        wall = time.perf_counter() - wall
        spent = {name: seconds - before[name] for name, seconds in found.spent().items()}
        made = json.loads(found.ask("GET", "/v1/jobs?status=completed&limit=100"))
    assert made["has_more"] or len(made["data"]) == len(WARM) + CLIENTS * IMAGES
    waits.sort()
    health = {f"health_p{part}_ms": 1000 * waits[int(part / 100 * len(waits))] for part in (50, 99)}
    rates = {"images_per_s": CLIENTS * IMAGES / wall, "requests_per_s": 10 * CLIENTS / wall}
    return {"cpu_s": sum(spent.values()), "wall_s": wall, **rates, **spent, **health}


if __name__ == "__main__":
    harness.main(
        "server_load",
        {"direct": direct, "server": server},
        [harness.Ratio("serving against direct calls", "server", "direct", at_most=2.0)],
        rounds=1,
    )
