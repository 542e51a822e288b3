"""Ends of command jobs: their output is kept, and interrupted ones are resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unveil.errors import OutOfResources
from unveil.io import staging
from unveil.server.jobs import child_process
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.child_process import CHILDREN, ChildProcess
from unveil.server.jobs.outputs import JobOutputs, UploadStore
from unveil.server.jobs.process_job import LOG, ProcessJob
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.service import Service, serving
from unveil.server.jobs.worker import LOGS, JobProgress, Worker, WorkerPool, log_path

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are known by /proc")
TRAIN, CHECK = "train", "data-check"
ASK = {"recipe": "ddpm-digits", "run_name": "mine"}
# A fake command: it starts, is interrupted and saves; started again, it completes.
SAVES = """
import os, signal, sys, time
from pathlib import Path
place = Path(os.environ["UNVEIL_TEST_PLACE"])

def stop(number, frame):
    print("saving", flush=True)
    time.sleep(float(os.environ.get("UNVEIL_TEST_SAVING", "0")))
    (place / "saved").write_text("")
    sys.exit(128 + number)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("step 1/2", flush=True)
if (place / "begun").exists():
    sys.exit(0 if (place / "saved").exists() else 1)
(place / "begun").write_text("")
time.sleep(60)
"""
# In the place of the process of a worker, without torch.
WORKER = f"""
import os, signal, sys, threading
from pathlib import Path
from unveil.server.jobs import child_process
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.process_job import ProcessJob
from unveil.server.jobs.outputs import UploadStore
from unveil.server.jobs.queue import Queue
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.worker import Worker

over = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: over.set())
child_process.PROGRAM = (sys.executable, "-c", {SAVES!r})
queue = Queue(Path(sys.argv[1]))
work = ProcessJob("train", Catalog(queue.folder / "runs"), UploadStore(queue.folder / "inputs"), "cpu")
Worker(sys.argv[2], queue, JobOutputs(queue.folder / "made"), {{"train": work}}).run(over.is_set)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the fake command saves."""
    monkeypatch.setenv("UNVEIL_TEST_PLACE", str(tmp_path))
    return tmp_path


@pytest.fixture
def own(queue: Queue, results: JobOutputs) -> Worker:
    catalog, uploads = Catalog(queue.folder / "runs"), UploadStore(queue.folder / "inputs")
    kinds = {name: ProcessJob(name, catalog, uploads, "cpu") for name in (TRAIN, CHECK)}
    return Worker("w", queue, results, kinds)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replace commands by a program."""
    return lambda program: monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c", program))


def until(met: Callable[[], object], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def begun(call: Callable[..., object], *given: object) -> threading.Thread:
    thread = threading.Thread(target=call, args=given)
    thread.start()
    return thread


# A fake task that fails: it prints, and reports an error.
FAILS = """
import sys
from unveil import errors
from unveil.server.jobs.task_main import TaskReports

print("begun", flush=True)
problem = errors.{error}("so it is; do that")
TaskReports(int(sys.argv[1])).error(problem)
sys.exit(problem.exit_code)
"""


@pytest.mark.parametrize(
    ("error", "source"),
    [
        ("WeightsError", "request"),  # such as a checkpoint that is damaged
        ("RecipeError", "request"),
        ("NonFinite", "request"),
        ("DataError", "request"),
        ("OutOfResources", "resources"),
    ],
)
def test_a_failed_task_keeps_its_error_and_its_source(queue, own, says, error: str, source: str):
    says(FAILS.format(error=error))
    id = queue.submit(TRAIN, ASK).id
    own.run_next()
    job = queue.get(id)
    assert (job.state, job.error, job.error_source) == ("failed", "so it is; do that", source)
    assert log_path(queue.folder, id).read_text() == "begun\n"


def test_progress_and_errors_are_data(queue, tmp_path):
    """And the error of a real task in its own process names its class and the remedy."""
    order = {"task": {"name": "data-check", "folder": str(tmp_path / "none")}, "out": str(tmp_path), "device": "cpu"}
    with child_process.ChildProcess(order, tmp_path / "log.txt", tmp_path / "note.json") as child:
        until(lambda: child.ended(1.0) is not None)
        error = child.error()
    assert error is not None
    assert (error.code, error.kind, error.source) == (4, "DataError", "request")
    assert error.remedy
    assert error.message.endswith(error.remedy)
    assert error.message in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (
            "import sys; from unveil.server.jobs import task_main; task_main.run_order = lambda *_: 1 // 0; "
            "sys.exit(task_main.main(int(sys.argv[1])))",
            "ZeroDiv",
        ),
        ("import sys; sys.exit(1)", "train: its process ended with code 1"),
        ("import os; os.kill(os.getpid(), 9)", "train: its process ended with code -9"),
    ],
)
def test_internal_and_silent_failures_have_the_source_server(queue, own, says, program, why):
    says(program)
    id = queue.submit(TRAIN, ASK).id
    own.run_next()
    assert why in queue.get(id).error
    assert queue.get(id).error_source == "server"


def test_the_log_of_a_command_is_readable_until_its_job_is_deleted(tmp_path, place, says):
    says(SAVES)
    with serving(tmp_path / "service", "here", ()) as service:
        catalog = Catalog(service.queue.folder / "runs")
        worker = Worker(
            "w", service.queue, service.results, {TRAIN: ProcessJob(TRAIN, catalog, service.uploads(), "cpu")}
        )
        id = service.submit(TRAIN, ASK).id
        thread = begun(worker.run_next)
        until(lambda: service.log(id) == b"step 1/2\n" and (place / "begun").exists())
        assert service.queue.get(id).state == "running"
        service.queue.cancel(id)
        thread.join()
        assert service.queue.get(id).state == "cancelled"
        assert service.log(id) == b"step 1/2\nsaving\n"
        service.sweep()
        assert service.log(id)
        (service.queue.folder / LOGS / "abababababababab.txt").write_text("of no job")
        assert service.delete(id)
        assert service.log(id) == b""
        service.sweep()
        assert list((service.queue.folder / LOGS).glob("*.txt")) == []


def test_an_interrupted_command_is_resumed_with_its_log(queue, results, own, place, says):
    says(SAVES)
    id = queue.submit(TRAIN, ASK).id
    thread = begun(own.run_next)
    note = queue.folder / CHILDREN / f"{id}.json"
    until(lambda: (place / "begun").exists() and note.exists())
    os.kill(json.loads(note.read_text())["pid"], signal.SIGTERM)
    thread.join()
    assert (queue.get(id).state, queue.get(id).attempts, queue.get(id).error) == ("queued", 1, None)
    own.run_next()
    assert queue.get(id).state == "completed"
    assert results.file(id, LOG).read_text() == "step 1/2\nsaving\nstep 1/2\n"
    assert not note.exists()


def test_a_command_that_is_interrupted_each_time_fails_finally(queue, own, says):
    says("import os; os.kill(os.getpid(), 15)")
    id = queue.submit(TRAIN, ASK).id
    own.run_next()
    own.run_next()
    assert (queue.get(id).state, queue.get(id).error) == ("failed", "its process was interrupted; tried 2 times")


def test_a_stopping_server_waits_until_a_command_has_saved_and_the_next_one_resumes_it(queue, place, monkeypatch):
    """A server that is stopped repeatedly does not count against the job."""
    monkeypatch.setenv("UNVEIL_TEST_SAVING", "1")
    id = queue.submit(TRAIN, ASK).id
    pool = WorkerPool(queue, ["cpu"], lambda folder, name, *rest: [sys.executable, "-c", WORKER, str(folder), name])
    pool.start()
    until((place / "begun").exists)
    pool.stop(seconds=0.5)
    assert (place / "saved").exists()
    assert (queue.get(id).state, queue.get(id).attempts) == ("queued", 0)
    again = WorkerPool(queue, ["cpu"], lambda folder, name, *rest: [sys.executable, "-c", WORKER, str(folder), name])
    again.start()
    until(lambda: queue.get(id).state == "completed")
    again.stop()


def test_a_worker_gets_no_secret_of_the_server(queue, place, monkeypatch):
    for name in ("UNVEIL_SERVER_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DATABASE_URL", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("UNVEIL_MODELS", "models")
    script = f"import os; open({str(place / 'seen')!r}, 'w').write(repr(dict(os.environ)))"
    pool = WorkerPool(queue, ["cpu"], lambda folder, name, *rest: [sys.executable, "-c", script])
    pool.start()
    until(lambda: (place / "seen").exists() and (place / "seen").read_text().endswith("}"))
    pool.stop()
    seen = (place / "seen").read_text()
    assert "a secret" not in seen
    assert "'UNVEIL_MODELS': 'models'" in seen  # control


def test_a_command_left_saving_by_a_killed_worker_is_awaited(queue, own, place, says, monkeypatch):
    monkeypatch.setenv("UNVEIL_TEST_SAVING", "1.5")
    says(SAVES)
    id = queue.submit(TRAIN, ASK).id
    with subprocess.Popen([sys.executable, "-c", WORKER, str(queue.folder), "first"]) as first:
        until(lambda: (place / "begun").exists() and (queue.folder / CHILDREN / f"{id}.json").exists())
        first.kill()
    assert not (place / "saved").exists()  # control: it is saving now
    queue.reclaim("first")
    own.run_next()  # which fails where nothing is saved yet
    assert queue.get(id).state == "completed"
    assert list((queue.folder / CHILDREN).iterdir()) == []


def test_a_full_disk_does_not_end_a_command(queue, own, place, says, monkeypatch):
    says("import time; print('1/2', flush=True); time.sleep(0.8); print('trained')")
    tried: list[int] = []

    def full(report: JobProgress, done: int | None = None, total: int | None = None) -> None:
        tried.append(1)
        raise OutOfResources("the disk is full")

    monkeypatch.setattr(JobProgress, "heartbeat", full)
    id = queue.submit(TRAIN, ASK).id
    own.run_next()
    assert tried
    assert queue.get(id).state == "completed"


def test_a_command_is_terminated_before_it_is_killed(queue, own, place, says, monkeypatch):
    says(SAVES)

    def breaks(report: JobProgress, done: int, total: int) -> None:
        if (place / "begun").exists():
            raise ZeroDivisionError

    monkeypatch.setattr(JobProgress, "step", breaks)
    id = queue.submit(TRAIN, ASK).id
    own.run_next()
    assert queue.get(id).error_source == "server"
    assert (place / "saved").exists()


def test_a_workers_log_keeps_that_of_the_previous_worker_and_is_limited(queue, monkeypatch):
    from unveil.server.jobs import worker as workers

    monkeypatch.setattr(workers, "LOG_BYTES", 2000)
    script = "import sys; print('a' * 300); print('the driver'); print('is gone', flush=True); sys.exit(3)"
    pool = WorkerPool(queue, ["cpu"], lambda folder, name, *rest: [sys.executable, "-c", script])
    id = queue.submit("any", {}).id
    names: list[str] = []
    while queue.get(id).state != "failed":
        pool.check()
        for name in pool.names():
            if name not in names:
                names.append(name)
                assert queue.claim(name) is not None
        time.sleep(0.02)
    pool.stop(0.1)
    file = queue.folder / LOGS / "cpu.log"
    assert len(names) == 2
    assert file.read_text().count("is gone") >= 2  # that of the first one is kept
    assert queue.get(id).error.endswith("the driver\nis gone; tried 2 times")
    file.write_text("b" * 3000 + "the end\n")
    again = WorkerPool(queue, ["cpu"], lambda folder, name, *rest: [sys.executable, "-c", ""])
    again.check()
    again.stop(0.1)
    assert len(file.read_bytes()) < 1500
    assert "the end\n" in file.read_text()


def test_a_worker_keeps_a_damaged_database_and_the_server_reports_it(tmp_path):
    with serving(tmp_path, "here", ("cpu",)) as service:
        service.queue.close()
        for end in ("-wal", "-shm"):
            (tmp_path / f"jobs.sqlite3{end}").unlink(missing_ok=True)
        (tmp_path / "jobs.sqlite3").write_bytes(b"nonsense" * 1000)
        until(lambda: service.workers.damaged)
    assert list(tmp_path.glob("*.damaged-*")) == []
    table = (tmp_path / "jobs.sqlite3").read_bytes()
    command = [sys.executable, "-m", "unveil.server.jobs.worker_main", str(tmp_path), "w", "cpu"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.wait(60) == 6
            errors = worker.stderr.read()
        finally:
            worker.kill()
    assert errors.count("\n") == 1
    assert "is damaged" in errors
    assert (tmp_path / "jobs.sqlite3").read_bytes() == table


def test_the_server_accepts_a_workers_report_of_a_damaged_database(queue):
    pool = WorkerPool(queue, ["cpu"], lambda folder, name, *rest: [sys.executable, "-c", "import sys; sys.exit(6)"])
    assert not pool.damaged
    until(lambda: pool.check() or pool.damaged)
    pool.stop(0.1)


def test_unused_files_are_deleted_while_the_server_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("unveil.server.jobs.service.SWEEP_S", 0.05)
    with serving(tmp_path, "here", ()) as service:
        assert isinstance(service, Service)
        service.uploads().folder.mkdir(exist_ok=True)
        old = service.uploads().folder / f"{'ab' * 16}.png"
        old.write_bytes(b"")
        os.utime(old, (1, 1))
        runs = service.submit("any", {}).id
        assert service.queue.claim("w").id == runs
        parts = [staging.temporary_path(service.results.folder / runs)]
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        parts.append(parts[0].with_name(parts[0].name.replace(f".{os.getpid()}-", f".{ended.pid}-")))
        for part in parts:
            part.mkdir(parents=True)
        until(lambda: not old.exists() and not parts[1].exists())
        assert parts[0].exists()  # somebody writes it


def test_a_child_of_a_server_that_ignores_ctrl_c_is_interrupted(tmp_path: Path, says: Callable[[str], None]):
    says("import time; time.sleep(60)")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of a server that a shell started in the background
    try:
        with ChildProcess({}, tmp_path / "log.txt", tmp_path / "note.json") as child:
            child.end(signal.SIGINT, 20)
            assert child.ended(0) not in (None, -signal.SIGKILL)
    finally:
        signal.signal(signal.SIGINT, before)
