"""A full disk: no job is lost, no worker counts as dead, and work continues when there is room again."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.server.jobs.disk import Disk, no_file_above
from tests.server.jobs.test_queue import Clock
from unveil.errors import OutOfResources
from unveil.server.jobs import job_table
from unveil.server.jobs.job_table import QueueLimits
from unveil.server.jobs.outputs import JobOutputs, UploadStore
from unveil.server.jobs.queue import FILE, Queue
from unveil.server.jobs.service import serving
from unveil.server.jobs.worker import Worker, WorkerPool


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def until(met, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def test_a_queue_that_cannot_grow_names_the_remedy_and_keeps_its_jobs(tmp_path: Path, monkeypatch):
    real = job_table.connect

    def small(file: Path):
        table = real(file)
        table.execute("PRAGMA max_page_count = 20")
        return table

    monkeypatch.setattr(job_table, "connect", small)
    queue, taken = Queue(tmp_path, QueueLimits(100, 100)), list[str]()

    def fill() -> None:
        for _ in range(100):
            taken.append(queue.submit("image", {"prompt": 5000 * "a"}).id)

    with pytest.raises(OutOfResources, match=rf"{FILE}: the disk is full; free some space"):
        fill()
    assert 0 < len(taken) < 100
    assert [job.id for job in queue.jobs()] == taken
    monkeypatch.setattr(job_table, "connect", real)
    assert Queue(tmp_path).claim("w").id == taken[0]


def test_the_end_of_a_job_is_stored_when_there_is_room_again(tmp_path: Path, disk: Disk):
    queue, go, calls = Queue(tmp_path), threading.Event(), list[str]()

    def draws(request, folder, report) -> None:
        calls.append(request["prompt"])
        go.wait(20)
        if request["prompt"] == "fails":
            report.heartbeat()
        (folder / "0.txt").write_text(request["prompt"])

    ids = [queue.submit("image", {"prompt": word}).id for word in ("fails", "is made")]
    over = threading.Event()
    worker = Worker("w", queue, JobOutputs(tmp_path / "made"), {"image": draws})
    thread = threading.Thread(target=worker.run, args=(over.is_set,))
    thread.start()
    try:
        until(lambda: calls)
        disk.full = True
        go.set()
        time.sleep(1.2)  # two tries to say how it ended
        assert [queue.get(id).state for id in ids] == ["running", "queued"]
        disk.full = False
        until(lambda: queue.get(ids[1]).state == "completed")
    finally:
        over.set()
        thread.join()
    failed = queue.get(ids[0])
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert failed.error == f"{queue.file}: the disk is full; free some space"
    assert calls == ["fails", "is made"]


def test_queued_jobs_are_claimed_when_that_can_be_written(tmp_path: Path, disk: Disk):
    queue, over = Queue(tmp_path), threading.Event()
    id = queue.submit("image", {}).id
    disk.full = True
    worker = Worker("w", queue, JobOutputs(tmp_path / "made"), {"image": lambda request, folder, report: None})
    thread = threading.Thread(target=worker.run, args=(over.is_set,))
    thread.start()
    try:
        time.sleep(0.2)
        assert thread.is_alive()
        assert queue.get(id).state == "queued"
        disk.full = False
        until(lambda: queue.get(id).state == "completed")
    finally:
        over.set()
        thread.join()


def test_a_table_that_is_there_is_opened_without_a_change(tmp_path: Path):
    first = Queue(tmp_path)
    first.submit("image", {})
    before = [path.read_bytes() for path in (first.file, tmp_path / f"{FILE}-wal")]
    assert len(Queue(tmp_path).jobs()) == 1
    assert [path.read_bytes() for path in (first.file, tmp_path / f"{FILE}-wal")] == before


def test_no_worker_counts_as_dead_because_the_disk_was_full(tmp_path: Path, disk: Disk):
    clock = Clock()
    queue = Queue(tmp_path, QueueLimits(lease=10.0), clock)
    pool = WorkerPool(queue, ())
    id = queue.submit("image", {}).id
    queue.claim("w")
    disk.full = True
    clock.now += 60
    pool.check()
    disk.full = False
    pool.check()
    assert queue.get(id).state == "running"
    clock.now += 9
    pool.check()
    assert queue.get(id).state == "running"
    clock.now += 2  # from then on it counts as ever
    pool.check()
    assert queue.get(id).state == "queued"


def test_the_queue_reserves_its_space(tmp_path: Path):
    """Jobs are submitted, claimed, reported, completed and deleted; the files do not grow."""
    files = [tmp_path / FILE, tmp_path / f"{FILE}-wal"]
    with serving(tmp_path, "here", ()) as service:
        queue, sizes = service.queue, [file.stat().st_size for file in files]
        for number in range(100):
            id = service.submit("image", {"prompt": "a red ring", "seed": number}).id
            assert queue.claim("w").id == id
            queue.heartbeat(id, "w", 1, 4)
            queue.fail(id, "w", "the disk is full")
            assert service.delete(id) or number % 2
        assert [file.stat().st_size for file in files] == sizes
        assert min(sizes) >= 1 << 20
    with serving(tmp_path, "here", ()):
        assert files[0].stat().st_size == sizes[0]  # no more each time


def test_a_server_starts_on_a_full_disk_and_lists_what_to_delete(tmp_path: Path, disk: Disk):
    with serving(tmp_path, "here", ()) as service:
        id = service.submit("image", {}).id
    disk.full = True
    with serving(tmp_path, "here", ()) as service:
        assert [job.id for job in service.queue.jobs()] == [id]


def test_an_uploaded_video_without_disk_space_is_refused_with_the_reason(tmp_path: Path):
    inputs = UploadStore(tmp_path)
    with no_file_above(1 << 20), pytest.raises(OutOfResources, match=r"the disk is full .*; free some space"):
        inputs.store(b"GIF89a" + bytes(2 << 20))
    assert not list(tmp_path.iterdir())
