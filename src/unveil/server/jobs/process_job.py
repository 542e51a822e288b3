"""Jobs of tasks that run in a separate process, such as training.

The output of the process is kept until its job is deleted. Its progress becomes the job's progress. A cancelled task is
interrupted as by Ctrl-C, so that a training run saves a checkpoint; the same request resumes it. If anything else ends
the process, its job is queued again.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from unveil.errors import Cancelled, Error, OutOfResources
from unveil.server.jobs.catalog import Catalog
from unveil.server.jobs.child_process import ChildError, ChildProcess, end_orphans
from unveil.server.jobs.outputs import LOG, UploadStore
from unveil.server.jobs.task_job import ServerNames, parse_request
from unveil.server.jobs.worker import Interrupted, JobProgress, WorkerFailure
from unveil.tasks import NAME
from unveil.tasks.task import Task

POLL_S = 0.2  # interval at which the process and the cancellation flag are checked
STOP_CODES = (130, 143, -signal.SIGINT, -signal.SIGTERM)  # exit codes of an interrupted process


class ProcessJob:
    """Handler of the jobs of one task that runs in a separate process.

    Args:
        name: Name of the task.
        catalog: Names that requests may use.
        uploads: Uploaded files.
        device: Device to compute on.
    """

    def __init__(self, name: str, catalog: Catalog, uploads: UploadStore, device: str) -> None:
        self._name, self._catalog, self._uploads, self._device = name, catalog, uploads, device

    def __call__(self, request: Mapping[str, Any], folder: Path, progress: JobProgress) -> None:
        """Run the task; its log and its files become files of the job.

        Raises:
            Error: The task failed.
            Cancelled: The job was cancelled, and the process has ended.
            Interrupted: Something else stopped the process, such as the end of the server.
        """
        task = parse_request(self._name, request)
        self._catalog.runs.mkdir(parents=True, exist_ok=True)
        values = self._with_paths(task)
        run = self._catalog.runs / str(getattr(task, "run_name", ""))
        order = {"task": values, "out": str(folder), "device": self._device}
        end_orphans(progress.note_file.parent, progress.check)
        with ChildProcess(order, progress.log_file, progress.note_file) as child:
            code = _follow(child, run, progress)
            error = child.error()
        if code and (code in STOP_CODES or progress.should_stop()):
            raise Interrupted("its process was interrupted")
        if code:
            raise _failure(error, f"{self._name}: its process ended with code {code}")
        _link_log(progress.log_file, folder / LOG)

    def _with_paths(self, task: Task) -> dict[str, Any]:
        """The plain values of a task, in which paths are in the place of names."""
        names = ServerNames(self._catalog, self._uploads)
        values = task.values_with(lambda reference: names.path(reference.value, reference.mark))
        ready = type(task).parse(values).for_server()
        return {NAME: self._name, **ready.values_with(lambda reference: reference.value)}


def _follow(child: ChildProcess, run: Path, progress: JobProgress) -> int:
    """Wait for a process while showing its progress; return its exit code.

    Raises:
        Cancelled: The job was cancelled, and the process has ended.
    """
    shown_mtime = 0
    while (code := child.ended(POLL_S)) is None:
        try:
            # a full disk or a busy database must not end hours of work
            with suppress(OutOfResources, OSError, sqlite3.OperationalError):
                progress.step(*child.progress())
                shown_mtime = _show_samples(run / "samples", shown_mtime, progress)
            progress.check()
        except Cancelled:
            child.end(signal.SIGINT)
            raise
        if progress.should_stop():
            child.end(signal.SIGTERM)
    return code


def _failure(error: ChildError | None, fallback: str) -> Error:
    """Build the error of a job from the reported one."""
    if error is None:
        return WorkerFailure(fallback)
    kinds = {"resources": OutOfResources, "server": WorkerFailure}
    return kinds.get(error.source, Error)(error.message or fallback)


def _show_samples(samples: Path, shown_mtime: int, progress: JobProgress) -> int:
    """Show the newest sample image of a run as the preview; return its modification time."""
    newest = max(samples.glob("*.png"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None or newest.stat().st_mtime_ns == shown_mtime or time.time() - newest.stat().st_mtime < POLL_S:
        return shown_mtime
    progress.preview(newest.read_bytes())
    return newest.stat().st_mtime_ns


def _link_log(log: Path, destination: Path) -> None:
    """Add the log to the files of a job, as a hard link if the system supports it."""
    try:
        os.link(log, destination)
    except OSError:
        shutil.copyfile(log, destination)
