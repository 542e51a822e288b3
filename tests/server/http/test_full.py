"""A full disk over HTTP: requests fail with the reason, and the server continues when there is room again."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.server.http.conftest import Answer, Begin, Server
from tests.server.http.test_middleware import form
from tests.server.jobs.disk import Disk, no_file_above
from unveil.server.jobs.worker import JobProgress

MIB = 1 << 20
RING = {"prompt": "a ring", "seed": 7}


def large(request: Mapping[str, Any], folder: Path, report: JobProgress) -> None:
    """Write four files of 1 MB."""
    with (folder / "0.png").open("wb") as file:
        for part in range(4):
            report.step(part, 4)
            file.write(bytes(MIB))


def noise() -> bytes:
    """An image of 3 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (MIB, 3), dtype=np.uint8).reshape(1024, 1024, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=0)
    return out.getvalue()


def send(server: Server, content: bytes) -> Answer:
    headers, body = form(("file", '; filename="a.png"', content))
    return server.ask("POST", "/v1/inputs", headers=headers, body=body)


def reports_full_disk(answer: Answer) -> bool:
    """Return True if an answer reports the full disk and the remedy, as text and as codes."""
    error = answer.json["error"]
    reported = ": the disk is full" in error["message"] and "free some space" in error["message"]
    return reported and (answer.status, error["type"], error["code"]) == (507, "server_error", "out_of_resources")


def test_a_job_without_disk_space_fails_with_the_reason_and_the_next_one_succeeds(begin: Begin):
    server = begin(work={"sample": large})
    made, image = server.service.results.folder, noise()
    with no_file_above(2 * MIB):
        id = server.ask("POST", "/v1/jobs", {"kind": "sample", "request": RING}).json["id"]
        job = server.until(id, "failed")
        assert f"{made}/{id}: the disk is full" in job["error"]
        assert "free some space" in job["error"]
        assert job["outputs"] == []
        assert reports_full_disk(server.ask("POST", "/v1/images/generations", RING))
        assert reports_full_disk(send(server, image))
        assert server.ask("GET", "/health").json == {"status": "ok", "workers": 1}
        assert not list(made.iterdir())  # nothing half
        assert not server.service.uploads().folder.exists()
    id = server.ask("POST", "/v1/jobs", {"kind": "sample", "request": RING}).json["id"]
    assert [one["name"] for one in server.until(id, "completed", "failed")["outputs"]] == ["0.png"]
    assert (made / id / "0.png").stat().st_size == 4 * MIB
    assert send(server, image).status == 200


def test_jobs_wait_while_the_queue_cannot_be_written(begin: Begin, monkeypatch: pytest.MonkeyPatch):
    disk, go = Disk(monkeypatch), threading.Event()

    def waits(request: Mapping[str, Any], folder: Path, report: JobProgress) -> None:
        assert go.wait(30)
        (folder / "0.png").write_bytes(b"made")

    server = begin(work={"sample": waits})
    ask = {"kind": "sample", "request": RING}
    ids = [server.ask("POST", "/v1/jobs", ask).json["id"] for _ in range(2)]
    server.until(ids[0], "running")
    disk.full = True
    go.set()
    assert reports_full_disk(server.ask("POST", "/v1/jobs", ask))
    assert reports_full_disk(server.ask("POST", f"/v1/jobs/{ids[1]}/cancel"))
    assert [server.ask("GET", f"/v1/jobs/{id}").json["status"] for id in ids] == ["running", "queued"]
    assert server.ask("GET", "/health").status == 200
    disk.full = False
    for id in [*ids, server.ask("POST", "/v1/jobs", ask).json["id"]]:
        assert server.until(id, "completed", "failed")["attempts"] == 1
        assert [one["name"] for one in server.ask("GET", f"/v1/jobs/{id}").json["outputs"]] == ["0.png"]


# -- a separate disk of 4 MB --------------------------------------------------------------------------------------

APART = ["unshare", "--user", "--map-root-user", "--mount"]
SMALL = """
import json, sys, time
from pathlib import Path
from tests.server.http.test_served import Served, children

disk, seen = Path(sys.argv[1]), {}
server = Served(disk / "service")
short = {"prompt": "a ring", "seed": 1, "steps": 4}
long = {"kind": "sample", "request": {"prompt": "a ring", "count": 16, "steps": 60}}

def fill():
    with open(disk / "filled", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as problem:
            seen["filled"] = problem.errno

def health():
    return server.ask("GET", "/health")[1]["status"]

try:
    seen["before"] = server.ask("POST", "/v1/images/generations", short)[0]
    workers = children(server.process.pid)
    id = server.ask("POST", "/v1/jobs", long)[1]["id"]
    server.until(id, "running")
    fill()
    seen["running"] = server.until(id, "failed", "completed")["error"]
    seen["answer"] = server.ask("POST", "/v1/images/generations", short)
    seen["health"] = health()
    (disk / "filled").unlink()
    seen["after"] = server.ask("POST", "/v1/images/generations", {**short, "seed": 2})[0]
    fill()
    for job in server.ask("GET", "/v1/jobs?status=completed")[1]["data"]:
        seen.setdefault("deleted", []).append(server.ask("DELETE", "/v1/jobs/" + job["id"])[0])
    seen["freed"] = server.ask("POST", "/v1/images/generations", {**short, "seed": 3})[0]
    seen["workers"] = children(server.process.pid) == workers
    seen["made"] = len(list((disk / "service" / "made").iterdir()))
finally:
    server.kill()
print("SEEN " + json.dumps(seen))
"""


@pytest.mark.release
@pytest.mark.slow
def test_on_a_full_disk_jobs_fail_with_the_reason_and_deletion_makes_room(tmp_path: Path):
    if subprocess.run([*APART, "mount", "-t", "tmpfs", "tmpfs", tmp_path], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk of his own")
    shell = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$0" -c "$2" "$1"'
    command = [*APART, "sh", "-c", shell, sys.executable, str(tmp_path), SMALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    (line,) = (one for one in done.stdout.splitlines() if one.startswith("SEEN ")) if not done.returncode else ("",)
    assert line, done.stderr
    seen = json.loads(line.removeprefix("SEEN "))
    print(seen)
    assert (seen["before"], seen["after"], seen["freed"], seen["deleted"]) == (200, 200, 200, [200, 200])
    assert "the disk is full (No space left on device); free some space" in seen["running"]
    status, answer = seen["answer"]
    assert (status, answer["error"]["code"]) == (507, "out_of_resources")
    assert (seen["health"], seen["workers"], seen["made"]) == ("ok", True, 1)
