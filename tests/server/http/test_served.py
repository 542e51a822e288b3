"""`unveil serve` as a separate process with its worker: under load, killed and terminated."""

from __future__ import annotations

import base64
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="processes are looked at through /proc"),
]

RING = {"prompt": "a ring", "steps": 4, "expand": False}


class Served:
    """A server of a folder."""

    def __init__(self, folder: Path, *options: str, verb: str = "serve", port: int = 0) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "unveil", verb, "--state-dir", str(folder), "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.begun = time.monotonic()
        self.port = 0
        while not self.port:
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() - self.begun < 120
            lease = (folder / ".server").read_text() if (folder / ".server").is_file() else ""
            if lease and json.loads(lease)["pid"] == self.process.pid:
                self.port = int(json.loads(lease)["address"].rpartition(":")[2])
            time.sleep(0.02)
        while True:
            try:
                if self.ask("GET", "/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.02)
        self.ready, self.waited = spent(self.process.pid), time.monotonic() - self.begun

    def ask(self, method: str, path: str, given: Any = None) -> tuple[int, Any]:
        body = b"" if given is None else json.dumps(given).encode()
        return self.send(method, path, body, "application/json")

    def send(self, method: str, path: str, body: bytes, kind: str) -> tuple[int, Any]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            line.request(method, path, body or None, {"content-type": kind} if body else {})
            found = line.getresponse()
            return found.status, json.loads(found.read() or b"null")
        finally:
            line.close()

    def until(self, id: str, *states: str, seconds: float = 120) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while (job := self.ask("GET", f"/v1/jobs/{id}")[1])["status"] not in states:
            assert time.monotonic() < end, job
            time.sleep(0.05)
        return job

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path / "service")
    yield found
    found.kill()


def spent(process: int) -> float:
    """CPU seconds of a process; on a busy machine the wall time is longer."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def memory(process: int, which: str = "VmRSS") -> int:
    """Return the memory of a process in bytes, now or at its peak (VmHWM)."""
    (line,) = (one for one in Path(f"/proc/{process}/status").read_text().splitlines() if one.startswith(which))
    return int(line.split()[1]) << 10


def image_of(answer: Any) -> bytes:
    return base64.b64decode(answer["data"][0]["b64_json"])


def sent(kind: int, seed: int, image: bytes) -> tuple[str, str, bytes, str]:
    """A request of the load: method, path, body and the kind of the body."""
    size = ("32x32", "48x32", "64x64")[seed % 3]
    ask = {**RING, "seed": seed, "steps": (2, 4, 6)[seed % 3]}
    if kind == 0:
        return "POST", "/v1/images/generations", json.dumps(ask).encode(), "application/json"
    if kind == 1:
        return "POST", "/v1/images/generations", json.dumps({**ask, "size": size}).encode(), "application/json"
    if kind == 2:
        fields = {"prompt": "a ring", "seed": seed, "steps": 4, "strength": 0.5, "expand": "false"}
        parts = [f'--x\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{fields[key]}\r\n' for key in fields]
        head = '--x\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        body = "".join([*parts, head]).encode() + image + b"\r\n--x--\r\n"
        return "POST", "/v1/images/edits", body, "multipart/form-data; boundary=x"
    return "GET", ("/v1/jobs?limit=20", "/v1/models", "/v1/videos")[seed % 3], b"", ""


@pytest.mark.parametrize("turns", [5, pytest.param(20, marks=pytest.mark.release)])
def test_concurrent_requests_get_the_image_of_their_seed(served: Served, turns: int):
    """64 clients of mixed requests: 200 or 429 alone, the same bytes as one after the other, health all the while."""
    answers: list[tuple[tuple[int, int], int, Any]] = []
    first = served.ask("POST", "/v1/images/generations", {**RING, "seed": 0})[1]  # the model is read

    def client(number: int) -> None:
        for turn in range(turns):
            kind, seed = (number + turn) % 4, (turns * number + turn) % 37
            answers.append(((kind, seed), *served.send(*sent(kind, seed, image_of(first)))))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    waits = []
    while any(thread.is_alive() for thread in threads):
        begun = time.monotonic()
        assert served.ask("GET", "/health")[0] == 200
        waits.append(time.monotonic() - begun)
        time.sleep(0.01)
    waits.sort()
    late = waits[int(0.99 * len(waits))]
    statuses = [status for _, status, _ in answers]
    print(f"health: median {waits[len(waits) // 2]:.4f} s, p99 {late:.4f} s; ", end="")
    print({status: statuses.count(status) for status in set(statuses)})
    assert len(answers) == 64 * turns
    assert set(statuses) <= {200, 429}
    assert {status for (kind, _), status, _ in answers if kind == 3} == {200}  # who only looks is never refused
    made: dict[tuple[int, int], set[bytes]] = {}
    for which, status, answer in answers:
        if status == 200 and which[0] != 3:
            made.setdefault(which, set()).add(image_of(answer))
    assert len(made) >= 10
    assert {kind for kind, _ in made} == {0, 1, 2}
    assert all(len(every) == 1 for every in made.values())
    assert len(set.union(*made.values())) == len(made)  # control: requests differ
    for which in list(made)[:9]:
        (one,) = made[which]
        assert image_of(served.send(*sent(*which, image_of(first)))[1]) == one
    assert late <= (0.1 if turns > 10 else 10.0)  # clients and other programs share the CPU with it


@pytest.mark.parametrize(("half", "last"), [(3.0, 10.0), pytest.param(0.5, 0.05, marks=pytest.mark.release)])
def test_jobs_beyond_the_limit_are_refused_at_once(served: Served, half: float, last: float):
    """200 in about a second on a queue of 32, while one runs; seconds until half of them and the last are refused."""
    long = {"kind": "sample", "request": {"prompt": "a ring", "count": 64, "steps": 1000}}
    served.until(served.ask("POST", "/v1/jobs", long)[1]["id"], "running")
    answers: list[tuple[int, float]] = []

    def ask() -> None:
        begun = time.monotonic()
        status, _ = served.ask("POST", "/v1/jobs", {"kind": "sample", "request": {"prompt": "a ring"}})
        answers.append((status, time.monotonic() - begun))

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    refused = sorted(seconds for status, seconds in answers if status == 429)
    print(f"refused: median {refused[len(refused) // 2]:.4f} s, last {refused[-1]:.4f} s")
    assert sorted(status for status, _ in answers) == [202] * 32 + [429] * 168
    assert refused[len(refused) // 2] <= half  # clients and other programs share the CPU with the server
    assert refused[-1] <= last


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.release)])
def test_a_killed_server_resumes_its_jobs(tmp_path: Path, kills: int):
    """With one job that runs and 20 that wait: twice as soon as it answers, or 20 times while the job runs again."""
    folder, draw, starts = tmp_path / "service", random.Random(0), list[tuple[float, float]]()
    short = {"kind": "sample", "request": {"prompt": "a ring", "seed": 1, "steps": 4}}
    slow = {**short, "request": {**short["request"], "count": 16, "steps": 60}}
    server = Served(folder)
    try:
        ids = [server.ask("POST", "/v1/jobs", slow)[1]["id"]]
        ids += [server.ask("POST", "/v1/jobs", short)[1]["id"] for _ in range(20)]
        server.until(ids[0], "running")
        for kill in range(kills):
            if kills > 2 and kill:
                server.until(ids[0], "running")
                time.sleep(draw.random())
                states = [job["status"] for job in server.ask("GET", "/v1/jobs?limit=100&order=asc")[1]["data"]]
                assert states == ["running"] + 20 * ["queued"]
            server.kill()
            server = Served(folder)
            assert server.ready <= 10
            assert server.waited <= (10 if kills > 2 else 120)  # by the clock, which a busy machine draws out
            starts.append((server.ready, server.waited))
        print("ready: at most {:.2f} CPU s, {:.2f} s of wall time".format(*map(max, zip(*starts, strict=True))))
        ended = [server.until(id, "completed", "failed") for id in ids]
        assert {job["status"] for job in ended} == {"completed"}
        for moment in ("started_at", "ended_at"):
            times = [job[moment] for job in ended]
            assert times == sorted(times)  # the order is kept
        assert sorted(path.name for path in (folder / "made").iterdir()) == sorted(ids)
        assert [len(job["outputs"]) for job in ended] == [17] + 20 * [1]  # a sheet where there are several
        made = [folder / "made" / job["id"] / job["outputs"][0]["name"] for job in ended[1:]]
        assert len({path.read_bytes() for path in made}) == 1  # of one seed, and whole
        workers = children(server.process.pid)
        assert workers
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 143
        assert "Traceback" not in server.process.stdout.read().decode()
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        assert (folder / ".server").read_text() == ""
    finally:
        server.kill()


@pytest.mark.parametrize("moments", [10, pytest.param(100, marks=pytest.mark.release)])
def test_a_running_job_can_be_cancelled_at_any_moment(served: Served, moments: int):
    """At random moments from the first sight of a job to its end."""
    (worker,) = children(served.process.pid)
    ask = {"kind": "sample", "request": {"prompt": "a ring", "seed": 5, "count": 8, "steps": 30}}
    served.until(served.ask("POST", "/v1/jobs", ask)[1]["id"], "completed")
    first = served.until(served.ask("POST", "/v1/jobs", ask)[1]["id"], "completed")
    lasts = first["ended_at"] - first["started_at"]
    before, draw, stops, tries = memory(worker), random.Random(0), list[float](), 0
    while len(stops) < moments / 2 or tries < moments:
        assert tries < 3 * moments, stops
        tries += 1
        id = served.ask("POST", "/v1/jobs", ask)[1]["id"]
        time.sleep(lasts * draw.random())
        cancelled = time.time()
        status, _ = served.ask("POST", f"/v1/jobs/{id}/cancel")
        assert status in (200, 409)
        begun = time.monotonic()
        job = served.until(id, "cancelled", "completed")
        assert time.monotonic() - begun < (5 if moments > 10 else 30)
        if job["status"] == "cancelled":
            stops.append(job["ended_at"] - cancelled)
        else:  # on a busy machine the first one may have taken longer than the others
            lasts = min(lasts, job["ended_at"] - job["started_at"])
        assert bool(job["outputs"]) == (job["status"] == "completed")
        assert (served.folder / "made" / id).exists() == (job["status"] == "completed")
    stops.sort()
    step, half = lasts / 30, stops[len(stops) // 2]
    print(f"{len(stops)} of {tries} cancelled, after {half:.3f} s in the median, {stops[-1]:.3f} s at most; ", end="")
    print(f"a step is {step:.3f} s; {(memory(worker) - before) / 2**20:.1f} MB more")
    assert half <= step + (0.25 if moments > 10 else 1.0)  # which is for the disk, and for programs that share the CPU
    assert stops[-1] <= (1.0 if moments > 10 else 10.0)
    assert not list((served.folder / "made").glob(".*"))
    assert not list((served.folder / "previews").glob("*"))
    assert memory(worker) - before < 50 << 20
    assert children(served.process.pid) == [worker]  # the same one all the while
