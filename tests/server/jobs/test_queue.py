"""The queue keeps its jobs in order, whichever process dies; tested through the calls of server and worker."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from unveil.errors import DataError, OutOfResources, OutputError, QueueFull, RecipeError
from unveil.server.jobs import job_table
from unveil.server.jobs.job_table import Job, Lane, PageQuery, QueueLimits
from unveil.server.jobs.queue import FILE, Queue


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "q", QueueLimits(waiting=6, each=4, attempts=2, lease=10.0), Clock())


def put(queue: Queue, *words: str, owner: str = "") -> list[str]:
    return [queue.submit("image", {"prompt": word}, owner=owner).id for word in words]


def taken(queue: Queue, count: int) -> list[str]:
    found = [queue.claim("w") for _ in range(count)]
    return [job.request["prompt"] for job in found if job]


def test_jobs_are_claimed_in_the_order_of_submission(queue):
    put(queue, "a", "b", "c")
    assert taken(queue, 4) == ["a", "b", "c"]


def test_a_job_is_read_as_it_was_submitted(queue):
    given = {"prompt": "一个红色的圆 'quoted' \x1b[31m", "seed": 2**40, "size": [32, 48], "nested": {"a": None}}
    made = queue.submit("clip", given, owner="me", cost=3.5)
    found = Queue(queue.folder).get(made.id)
    assert found == made
    assert (found.kind, found.request, found.owner, found.cost) == ("clip", given, "me", 3.5)
    assert abs(found.submitted - time.time()) < 60
    assert queue.get("nobody's") is None


def test_a_part_of_a_list_is_read_and_nothing_else(tmp_path, monkeypatch):
    queue, read = Queue(tmp_path, QueueLimits(waiting=500, each=500)), []
    ids = [put(queue, str(number), owner="ab"[number % 2])[0] for number in range(200)]
    real = job_table._job
    monkeypatch.setattr(job_table, "_job", lambda *row: read.append(row) or real(*row))
    seen, after, more = [], None, True
    while more:
        found, more = queue.page(PageQuery("a", 30, after))
        seen += [job.id for job in found]
        after = seen[-1]
        assert len(read) <= 31
        read.clear()
    assert seen == ids[::2][::-1]
    found, more = queue.page(PageQuery("b", 2, ids[1], newest=False, state="queued", kinds=("image", "other")))
    assert ([job.id for job in found], more) == ([ids[3], ids[5]], True)
    assert queue.page(PageQuery("b", 2, kinds=("clip",))) == ([], False)
    for other in (ids[0], "none"):
        with pytest.raises(DataError, match="is not a job of this list"):
            queue.page(PageQuery("b", 2, other))


def test_an_idle_worker_does_not_wait_for_writers(queue):
    put(queue, "a")
    assert taken(queue, 1) == ["a"]
    with sqlite3.connect(queue.file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        assert queue.claim("w") is None
        assert time.monotonic() - begun < 5  # a change waits for ten seconds
        other.execute("ROLLBACK")


def test_a_database_that_another_program_keeps_locked_is_reported_and_usable_afterwards(queue, monkeypatch):
    monkeypatch.setattr(job_table, "_BUSY_S", 0.2)
    with sqlite3.connect(queue.file, isolation_level=None) as other:
        queue.close()  # the next connection has the short time
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutOfResources, match=r"jobs\.sqlite3: another program keeps it locked; end that one"):
            put(queue, "a")
        assert queue.jobs() == []  # what only reads does not wait
        other.execute("ROLLBACK")
    put(queue, "a")
    assert taken(queue, 1) == ["a"]


def test_owners_take_turns(queue):
    put(queue, "a1", "a2", "a3", owner="a")
    put(queue, "b1", owner="b")
    put(queue, "c1", "c2", owner="c")
    waiting = {job.request["prompt"]: job.id for job in queue.jobs("queued")}
    order = sorted(waiting, key=lambda word: queue.positions()[waiting[word]].ahead)
    assert order == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert taken(queue, 6) == order


def test_a_late_owner_does_not_wait_behind_all_jobs_of_another(queue):
    put(queue, "a1", "a2", "a3", owner="a")
    assert taken(queue, 1) == ["a1"]
    put(queue, "b1", owner="b")
    assert taken(queue, 3) == ["b1", "a2", "a3"]


def test_a_queue_accepts_jobs_up_to_its_limit(queue):
    put(queue, "1", "2", "3", "4", owner="a")
    with pytest.raises(QueueFull, match="4 of your jobs"):
        put(queue, "5", owner="a")
    put(queue, "1", "2", owner="b")
    with pytest.raises(QueueFull, match="6 jobs are queued") as refused:
        put(queue, "3", owner="c")
    assert refused.value.seconds > 0
    assert queue.claim("w").owner == "a"
    put(queue, "3", owner="c")  # what runs waits no longer
    with pytest.raises(QueueFull):
        put(queue, "4", owner="a")  # but is still one of its owner's


def test_concurrent_submissions_fill_exactly_the_free_positions(tmp_path):
    queue = Queue(tmp_path, QueueLimits(waiting=16, each=100))
    refused, lock = [], threading.Lock()

    def come(number: int) -> None:
        try:
            queue.submit("image", {"number": number})
        except QueueFull:
            with lock:
                refused.append(number)

    threads = [threading.Thread(target=come, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = {job.request["number"] for job in queue.jobs("queued")}
    assert len(kept) == 16
    assert kept | set(refused) == set(range(40))


def test_no_two_workers_get_the_same_job(tmp_path):
    queue = Queue(tmp_path, QueueLimits(waiting=60, each=60))
    for number in range(60):
        queue.submit("image", {"number": number})
    got: dict[str, list[str]] = {}

    def work(name: str) -> None:
        own = got.setdefault(name, [])
        while job := queue.claim(name):
            own.append(job.id)

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [id for own in got.values() for id in own]
    assert len(every) == len(set(every)) == 60


def test_a_job_is_ended_only_by_its_own_worker(queue):
    first, second, third = put(queue, "a", "b", "c")
    for _ in range(3):
        queue.claim("w")
    assert not queue.complete(first, "somebody", ["0.png"])
    assert queue.heartbeat(first, "somebody") == "not yours"
    assert queue.complete(first, "w", ["0.png", "1.png"])
    assert queue.fail(second, "w", "no such model")
    assert queue.mark_cancelled(third, "w")
    assert not queue.fail(first, "w", "too late")
    assert queue.heartbeat(first, "w") == "not yours"
    done, failed, cancelled = (queue.get(id) for id in (first, second, third))
    assert (done.state, done.outputs) == ("completed", ("0.png", "1.png"))
    assert (failed.state, failed.error) == ("failed", "no such model")
    assert cancelled.state == "cancelled"
    assert queue.counts() == {"queued": 0, "running": 0, "completed": 1, "failed": 1, "cancelled": 1}
    assert sum(queue.counts("nobody").values()) == 0


def test_progress_is_seen_by_others(queue):
    (id,) = put(queue, "a")
    queue.claim("w")
    assert queue.heartbeat(id, "w", 3, 16) == "go on"
    assert queue.heartbeat(id, "w") == "go on"
    seen = Queue(queue.folder).get(id)
    assert (seen.completed_steps, seen.total_steps, seen.state, seen.attempts) == (3, 16, "running", 1)


def test_a_queued_job_is_cancelled_at_once_and_a_running_one_is_notified(queue):
    first, second = put(queue, "a", "b")
    queue.claim("w")
    assert queue.cancel(second).state == "cancelled"
    assert queue.cancel(first).state == "running"
    assert queue.heartbeat(first, "w") == "stop"
    assert queue.mark_cancelled(first, "w")
    assert queue.cancel(first).state == "cancelled"  # twice changes nothing
    assert queue.claim("w") is None
    assert queue.cancel("nobody's") is None


def test_a_completed_job_stays_completed(queue):
    (id,) = put(queue, "a")
    queue.claim("w")
    queue.complete(id, "w", ["0.png"])
    assert queue.cancel(id).state == "completed"


def test_a_worker_without_heartbeat_loses_its_job(queue):
    first, second = put(queue, "a", "b")
    queue.claim("dead")
    queue.claim("alive")
    queue._clock.now += 8
    assert queue.heartbeat(second, "alive") == "go on"
    assert queue.reclaim() == []
    queue._clock.now += 8
    assert [job.id for job in queue.reclaim()] == [first]
    assert queue.get(second).state == "running"
    assert queue.heartbeat(first, "dead") == "not yours"
    assert queue.claim("next").id == first
    assert not queue.complete(first, "dead", ["late.png"])


def test_a_job_that_kills_its_workers_is_retried_up_to_the_limit(queue):
    poison, other = put(queue, "poison", "other")
    assert queue.claim("w1").id == poison
    assert [job.state for job in queue.reclaim("w1", "killed by signal 9")] == ["queued"]
    assert queue.claim("w2").id == poison  # it keeps its place
    (failed,) = queue.reclaim("w2", "killed by signal 9")
    assert (failed.state, failed.error) == ("failed", "killed by signal 9; tried 2 times")
    assert queue.claim("w3").id == other


def test_a_requeued_job_keeps_its_position(queue):
    put(queue, "a1", "a2", owner="a")
    put(queue, "b1", owner="b")
    assert taken(queue, 1) == ["a1"]
    queue.reclaim("w")
    assert taken(queue, 3) == ["a1", "b1", "a2"]


def test_a_cancelled_job_of_a_dead_worker_is_not_tried_again(queue):
    (id,) = put(queue, "a")
    queue.claim("w")
    queue.cancel(id)
    assert [job.state for job in queue.reclaim("w")] == ["cancelled"]


def test_a_restarted_server_requeues_running_jobs(queue):
    put(queue, "a", "b", "c")
    queue.claim("w1")
    queue.claim("w2")
    again = Queue(queue.folder, queue.limits)
    assert {job.request["prompt"] for job in again.recover()} == {"a", "b"}
    assert [again.claim("w").request["prompt"] for _ in range(3)] == ["a", "b", "c"]


def test_the_end_of_a_server_does_not_count_against_its_jobs(queue):
    (id,) = put(queue, "a")
    for _ in range(20):
        queue.claim("w")
        assert [job.state for job in queue.recover()] == ["queued"]
    assert queue.get(id).attempts == 0
    queue.claim("w")
    queue.cancel(id)
    assert [job.state for job in queue.recover()] == ["cancelled"]


def test_submitted_jobs_survive_a_killed_process(tmp_path):
    script = (
        "import sys; from pathlib import Path; from unveil.server.jobs.queue import Queue\n"
        "queue = Queue(Path(sys.argv[1]))\n"
        "for number in range(1000):\n"
        "    print(queue.submit('image', {'number': number}, owner=str(number)).id, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        printed = [child.stdout.readline().strip() for _ in range(20)]
        os.kill(child.pid, signal.SIGKILL)
        printed += [line.strip() for line in child.stdout if line.endswith("\n")]
    kept = [job.id for job in Queue(tmp_path).jobs("queued")]
    assert kept[: len(printed)] == printed
    assert len(kept) - len(printed) <= 1  # one job may be stored but not yet printed


def test_waiting_times_are_estimated_from_former_jobs(queue, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("unveil.server.jobs.queue.time.time", lambda: now[0])
    for seconds in (8.0, 10.0, 12.0):
        queue.submit("image", {}, cost=2.0)
        job = queue.claim("w")
        now[0] += seconds
        queue.complete(job.id, "w", [])
    running = queue.submit("image", {}, cost=4.0).id
    before, last = (queue.submit("image", {}, cost=cost).id for cost in (6.0, 1.0))
    assert queue.positions()[running].seconds == 0
    assert queue.claim("w").id == running
    assert running not in queue.positions()
    assert queue.positions()[before].seconds == pytest.approx(20.0)  # 5 seconds for a unit of cost
    assert queue.positions()[last].seconds == pytest.approx(50.0)
    assert queue.positions(workers=2)[last].seconds == pytest.approx(25.0)
    now[0] += 4.0
    assert queue.positions()[before].seconds == pytest.approx(16.0)
    queue.heartbeat(running, "w", 4, 8)  # its own progress says more than others' time
    assert queue.positions()[before].seconds == pytest.approx(4.0)


@pytest.mark.parametrize("harm", ["cut", "zeros", "text"])
def test_a_damaged_database_is_moved_and_known_jobs_are_restored(queue, harm):
    put(queue, *"abcd")
    queue.close()
    with sqlite3.connect(queue.file) as table:
        table.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = queue.file.read_bytes()
    broken = {
        "cut": content[: len(content) // 2],
        "zeros": content[:100] + bytes(len(content) - 100),
        "text": b"not a database!!" * 300,
    }[harm]
    for end in ("-wal", "-shm"):
        queue.file.with_name(FILE + end).unlink(missing_ok=True)
    queue.file.write_bytes(broken)
    found = Queue(queue.folder)
    assert found.damaged is not None
    assert found.damaged.read_bytes() == broken
    assert found.jobs() == []
    known = Job("0123456789abcdef", "image", {"prompt": "a"}, state="completed", outputs=("0.png",), ended=5.0)
    assert found.restore([known]) == 1
    assert found.restore([known]) == 0
    assert found.get(known.id) == known
    assert Queue(queue.folder).damaged is None


def test_an_intact_database_is_kept(queue):
    put(queue, "a")
    again = Queue(queue.folder)
    assert again.damaged is None
    assert len(again.jobs()) == 1
    assert [path.name for path in queue.folder.glob("*damaged*")] == []


def test_a_database_of_an_earlier_version_is_migrated(queue):
    (id,) = put(queue, "a")
    with sqlite3.connect(queue.file) as table:
        table.execute("ALTER TABLE jobs DROP COLUMN error_source")
        table.execute("PRAGMA user_version = 1")
    again = Queue(queue.folder)
    assert again.damaged is None
    assert again.claim("w").id == id
    assert again.fail(id, "w", "the disk is full", "resources")
    assert again.get(id).error_source == "resources"


@pytest.mark.parametrize(
    ("kind", "request_", "task", "fields"),
    [
        ("train", {"recipe": "r", "run": "a", "small": True}, "train", {"recipe": "r", "run_name": "a", "quick": True}),
        ("evaluate", {"model": "m", "samples": 8}, "evaluate", {"model": "m", "num_samples": 8}),
        ("check", {"folder": "f", "size": 16}, "data-check", {"folder": "f", "size": 16}),
        (
            "convert",
            {"model": "m", "name": "n", "layout": "ldm", "dtype": "float16"},
            "convert",
            {"source": "m", "output": "n", "format": "ldm", "dtype": "float16"},
        ),
        ("train", {"recipe": "r", "run_name": "a"}, "train", {"recipe": "r", "run_name": "a"}),
    ],
)
def test_commands_of_version_4_are_tasks_afterwards(queue, kind: str, request_, task: str, fields):
    id = queue.submit(kind, request_).id
    with sqlite3.connect(queue.file) as table:
        table.execute("PRAGMA user_version = 4")
    job = Queue(queue.folder).get(id)
    assert (job.kind, job.request) == (task, fields)


def test_a_database_of_a_later_version_is_refused_and_kept(queue):
    put(queue, "a")
    with sqlite3.connect(queue.file) as table:
        table.execute("PRAGMA user_version = 99")
    with pytest.raises(RecipeError, match="later version"):
        Queue(queue.folder)
    assert list(queue.folder.glob("*damaged*")) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*choose another folder"):
        Queue(tmp_path / "file" / "q")


@pytest.mark.parametrize("wrong", [{"waiting": 0}, {"each": 0}, {"attempts": 0}, {"lease": 0}, {"lease": float("nan")}])
def test_limits_that_admit_no_job_are_refused(wrong):
    with pytest.raises(RecipeError, match=f"{next(iter(wrong))} = "):
        QueueLimits(**wrong)


def test_only_ended_jobs_are_deleted(queue):
    first, second = put(queue, "a", "b")
    queue.claim("w")
    assert not queue.forget(first)
    assert not queue.forget(second)
    queue.complete(first, "w", [])
    assert queue.forget(first)
    assert queue.get(first) is None
    assert not queue.forget(first)


def test_a_job_that_takes_too_long_is_stopped_and_fails(tmp_path: Path):
    """It is stopped as a cancelled one is; a worker that does not stop it is named; the job is not tried again."""
    queue = Queue(tmp_path, QueueLimits(seconds=1.0))
    for ends in ("stops", "dies", "completes"):
        job = queue.submit("sample", {})
        assert queue.claim("w").id == job.id
        assert queue.stop_overdue(60) == []
        assert not queue.cancel_requested(job.id)
        time.sleep(1.05)
        assert queue.stop_overdue(60) == []
        assert queue.cancel_requested(job.id)
        assert queue.stop_overdue(0) == ["w"]
        if ends == "completes":
            queue.complete(job.id, "w", ["a.png"])
        elif ends == "stops":
            queue.mark_cancelled(job.id, "w")
        else:
            queue.reclaim("w")
        found = queue.get(job.id)
        message = None if ends == "completes" else "took longer than the maximum of 0.0166667 minutes"
        assert found.state == ("completed" if ends == "completes" else "failed")
        assert found.error is message or found.error.startswith(message)
        assert found.error_source == (None if ends == "completes" else "request")
    unlimited = Queue(tmp_path)
    unlimited.submit("sample", {})
    unlimited.claim("w")
    assert unlimited.stop_overdue(-1e9) == []


def test_jobs_of_a_lane_wait_for_those_of_the_same_lane(tmp_path: Path):
    queue = Queue(tmp_path)
    short, long = Lane("short", ("train",), True), Lane("long", ("train",), False)
    first, image, second = (queue.submit(kind, {}).id for kind in ("train", "sample", "train"))
    assert queue.claim("w", long).id == first
    assert queue.claim("v", short).id == image
    assert queue.claim("v", short) is None
    assert not queue.has_queued(short)
    assert queue.has_queued(long)
    later = queue.submit("sample", {}).id
    positions = queue.positions(1, (short, long))
    assert {id: position.ahead for id, position in positions.items()} == {second: 0, later: 0}
    assert queue.positions(1)[later].ahead == 1  # control: without lanes it waits for the second training
    assert queue.claim("u").id == second
    queue.close()
