"""The folder of a server keeps queued jobs, running jobs and outputs, however the server ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from unveil.errors import DataError, OutputError
from unveil.server.jobs import service as services
from unveil.server.jobs.folder_lock import check_unlocked, folder_lock
from unveil.server.jobs.job_table import QueueLimits
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.service import serving
from unveil.server.jobs.worker_main import MADE

# A separate worker without torch: each job writes a file after some steps.
WORK = """
import os, sys, threading, time
from pathlib import Path
from unveil.server.jobs.worker_main import _end_with_parent
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.worker import Worker

def slow(request, folder, report):
    for step in range(request["steps"]):
        report.step(step, request["steps"])
        time.sleep(0.01)
    (folder / "0.txt").write_text(request["word"])

threading.Thread(target=_end_with_parent, daemon=True).start()
queue = Queue(Path(sys.argv[1]))
Worker(sys.argv[2], queue, JobOutputs(queue.folder / "made"), {"slow": slow}).run(lambda: False)
"""
SERVER = f"""
import sys, time
from pathlib import Path
from unveil.server.jobs import service as services
from unveil.server.jobs.worker import WorkerPool
from unveil.server.jobs.job_table import QueueLimits
start = lambda folder, name, *rest: [sys.executable, "-c", {WORK!r}, str(folder), name]
services.WorkerPool = lambda queue, devices, lanes: WorkerPool(queue, devices, start)
with services.serving(Path(sys.argv[1]), "http://127.0.0.1:1", ("cpu",), QueueLimits(100, 100)) as service:
    print("ready", flush=True)
    while True:
        time.sleep(1)
"""


def until(met, seconds=60.0):
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.02)


def start(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def put(queue: Queue, word: str, steps: int = 10) -> str:
    return queue.submit("slow", {"word": word, "steps": steps}).id


def test_a_second_server_is_refused_with_the_address_of_the_first(tmp_path):
    with folder_lock(tmp_path, "http://127.0.0.1:7861"):
        with (
            pytest.raises(OutputError, match=rf"http://127.0.0.1:7861 \(process {os.getpid()}\) serves this folder"),
            folder_lock(tmp_path, "http://127.0.0.1:7862"),
        ):
            pass
        with folder_lock(tmp_path / "other", "http://127.0.0.1:7862"):
            pass
    with folder_lock(tmp_path, "http://127.0.0.1:7863"):
        pass


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"), folder_lock(tmp_path / "file" / "x", "here"):
        pass


@contextmanager
def without_rights() -> Iterator[None]:
    """Make the user of this process one without the rights of root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("has_jobs", [False, True])
def test_a_folder_that_is_read_only_is_refused_and_unchanged(has_jobs: bool):
    with TemporaryDirectory() as top:
        folder = Path(top) / "service"
        with serving(folder, "here", ()) as service:
            if has_jobs:
                service.submit("slow", {})
        if not has_jobs:
            service.queue.file.unlink()
            (folder / ".server").unlink()
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        for path in (*folder.rglob("*"), folder, Path(top)):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with without_rights():
            for use in (lambda: serving(folder, "here", ()).__enter__(), lambda: Queue(folder)):
                with pytest.raises(OutputError, match=rf"{folder}.*cannot be written.*choose another folder"):
                    use()
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        for path in (Path(top), folder):
            path.chmod(0o700)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.release)])
def test_a_job_that_is_reported_as_completed_has_its_file_whenever_its_worker_is_killed(tmp_path: Path, kills: int):
    """The worker is killed as soon as one more job is reported, when it does the next one."""
    queue, results = Queue(tmp_path, QueueLimits(100, 100)), JobOutputs(tmp_path / MADE)
    ids = [put(queue, f"job {number}", steps=1) for number in range(2 * kills)]
    reported = 0
    for number in range(kills):
        command = [sys.executable, "-c", WORK, str(tmp_path), f"w{number}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
            until(lambda seen=reported: queue.counts()["completed"] > seen)
            worker.kill()
        completed = queue.jobs("completed")
        for job in completed:
            record = results.read(job.id)
            assert record is not None
            assert record.outputs == job.outputs == ("0.txt",)
            assert results.file(job.id, "0.txt").read_text() == job.request["word"]
        reported = len(completed)
        if reported == len(ids):  # the worker was faster than this test
            break
        queue.reclaim(f"w{number}", counts=False)
    assert reported >= min(kills, len(ids))
    queue.close()


# over HTTP it is tried in every run
@pytest.mark.release
@pytest.mark.parametrize("times", [6])
def test_a_server_that_is_killed_again_and_again_loses_nothing_and_makes_nothing_twice(tmp_path, times):
    queue = Queue(tmp_path, QueueLimits(100, 100))
    ids = [put(queue, f"job {number}", steps=30) for number in range(12)]
    for _ in range(times):
        begun = time.monotonic()
        with start(tmp_path) as server:
            assert time.monotonic() - begun < 10
            until(lambda: queue.counts()["running"] == 1)
            time.sleep(0.4)
            os.kill(server.pid, signal.SIGKILL)
    with start(tmp_path) as server:
        until(lambda: queue.counts()["completed"] == len(ids))
        server.kill()
    jobs = queue.jobs()
    assert [job.id for job in jobs] == ids
    assert [job.ended for job in jobs] == sorted(job.ended for job in jobs)  # in their order
    assert [path.name for path in (tmp_path / MADE).iterdir() if path.name.startswith(".")] == []
    results = JobOutputs(tmp_path / MADE)
    assert [results.file(id, "0.txt").read_text() for id in ids] == [f"job {number}" for number in range(12)]
    assert len(results.all()) == len(ids)


def test_a_damaged_database_is_restored_from_the_outputs_with_a_message(tmp_path):
    queue = Queue(tmp_path)
    made = [put(queue, word, steps=1) for word in "ab"]
    with start(tmp_path) as server:
        until(lambda: queue.counts()["completed"] == 2)
        server.kill()
    queue.close()
    for end in ("-wal", "-shm"):
        queue.file.with_name(queue.file.name + end).unlink(missing_ok=True)
    queue.file.write_bytes(b"nonsense" * 1000)
    with serving(tmp_path, "here", ()) as service:
        assert [job.id for job in service.queue.jobs("completed")] == made
        (message,) = service.messages
    assert "was damaged and is now jobs.damaged-" in message
    assert "2 completed jobs were restored" in message
    with serving(tmp_path, "here", ()) as service:
        assert service.messages == ()


@pytest.mark.parametrize("lose", [lambda file: file.write_bytes(b""), Path.unlink], ids=["empty", "gone"])
def test_a_lost_database_is_restored_from_the_outputs_with_a_message(tmp_path, lose):
    with serving(tmp_path, "here", ()) as service:
        assert service.messages == ()  # there is nothing, and nothing was lost
        id, waits = (service.submit("slow", {}).id for _ in range(2))
        with service.results.writing(service.queue.claim("w")) as folder:
            (folder / "0.txt").write_text("made")
        service.queue.complete(id, "w", ["0.txt"])
        file = service.queue.file
    with serving(tmp_path, "here", ()) as service:  # control
        assert (service.messages, len(service.queue.jobs())) == ((), 2)
    lose(file)
    with serving(tmp_path, "here", ()) as service:
        assert [job.id for job in service.queue.jobs()] == [id]
        assert service.results.file(id, "0.txt").read_text() == "made"
        assert service.queue.get(waits) is None
        (message,) = service.messages
        assert message.startswith("jobs.sqlite3 contained no job; 1 completed jobs were restored")
        assert service.delete(id)
    with serving(tmp_path, "here", ()) as service:
        assert (service.messages, service.queue.jobs()) == ((), [])


def test_ended_jobs_are_deleted_with_their_files(tmp_path):
    with serving(tmp_path, "here", ()) as service:
        id = service.submit("slow", {}).id
        assert not service.delete(id)
        with service.results.writing(service.queue.claim("w")) as folder:
            (folder / "0.txt").write_text("made")
        service.queue.complete(id, "w", ["0.txt"])
        assert service.delete(id)
        assert service.queue.get(id) is None
        assert service.results.read(id) is None
        assert not service.delete(id)
        for wrong in ("..", "../made", "/"):
            with pytest.raises(DataError, match="is not a job id"):
                service.delete(wrong)
            with pytest.raises(DataError, match="is not a job id"):
                service.preview(wrong)


def test_previews_of_a_server_that_was_killed_are_gone_with_the_next_one(tmp_path):
    folder = tmp_path / services.PREVIEWS
    folder.mkdir()
    (folder / ("ab" * 8 + ".png")).write_bytes(b"old")
    with serving(tmp_path, "here", ()) as service:
        assert service.preview("ab" * 8) is None
        (folder / ("cd" * 8 + ".png")).write_bytes(b"new")
        assert service.preview("cd" * 8) == b"new"


def modes(folder: Path) -> dict[str, str]:
    """The rights of a folder and of all in it, by name."""
    return {
        path.relative_to(folder.parent).as_posix(): f"{path.stat().st_mode & 0o777:04o}"
        for path in (folder, *folder.rglob("*"))
    }


def test_only_its_user_can_read_the_folder_of_a_server(tmp_path: Path):
    """All that the server and its processes write; also a folder of an earlier version, and a link is not followed."""
    folder, outside = tmp_path / "service", tmp_path / "outside"
    outside.write_text("of others")
    before = os.umask(0o022)
    try:
        outside.chmod(0o644)
        with serving(folder, "http://127.0.0.1:1", ()) as service:
            assert subprocess.run(["sh", "-c", f"echo a > {folder}/made_by_a_child"]).returncode == 0
            service.queue.submit("sample", {"prompt": "a ring"})
            new = modes(folder)
            assert service.uploads().folder.parent == folder
        assert {"service/jobs.sqlite3", "service/.server", "service/made_by_a_child"} <= new.keys()
        files = {name for name in new if (tmp_path / name).is_file() or "-" in name}
        assert {name: mode for name, mode in new.items() if mode != ("0600" if name in files else "0700")} == {}
        (folder / "made" / "old").mkdir(parents=True)
        (folder / "made" / "old" / "a.png").write_text("an image")
        (folder / "link").symlink_to(outside)
        folder.chmod(0o755)
        with serving(folder, "http://127.0.0.1:1", ()):
            assert modes(folder)["service"] == "0700"
            assert modes(folder)["service/made/old/a.png"] == "0600"
            assert modes(folder)["service/made/old"] == "0700"
        assert outside.stat().st_mode & 0o777 == 0o644
        assert os.umask(0o022) == 0o022  # as before
    finally:
        os.umask(before)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="the system does not tell who holds a lock")
@pytest.mark.parametrize("record", ["", "{", '{"pid": 1, "address": "http://127.0.0.1:1"}'])
def test_the_process_that_holds_a_folder_is_named(tmp_path: Path, record: str):
    """Also where it has not recorded itself: it is starting, or a record of an earlier server is still there."""
    (tmp_path / ".server").write_text(record)
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".server")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        for check in (check_unlocked, lambda folder: folder_lock(folder, "here").__enter__()):
            with pytest.raises(OutputError, match=rf"another process \({holder.pid}\) serves this folder"):
                check(tmp_path)
        holder.stdin.close()
