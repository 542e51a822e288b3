"""Process of one task: `python -m unveil.server.jobs.task_main DESCRIPTOR`, as started by `child_process`.

The order is one JSON object on the standard input: the task's plain values, in which names are paths, and where its
files go. Progress and the error are JSON lines on the file descriptor; the output is text for the log of the job.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from unveil.errors import OUR_FAULT, OutOfResources
from unveil.io.console import Console, exit_code_and_message, progress_listener, run_with_exit_code
from unveil.server.jobs.outputs import write_result
from unveil.tasks import NAME, registry
from unveil.tasks.task import TaskContext, TaskOutput

PROGRESS_S = 0.1  # interval between two reports of progress


class TaskReports:
    """Reports of this process, as JSON lines.

    Args:
        descriptor: Descriptor of a pipe. A full pipe loses reports, so that the work never waits for a reader.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._next = descriptor, 0.0
        os.set_blocking(descriptor, False)

    def progress(self, completed: int, total: int) -> None:
        """Report the completed steps, now and then."""
        now = time.monotonic()
        if now >= self._next or completed == total:
            self._next = now + PROGRESS_S
            self._write({"progress": [completed, total]})

    def error(self, problem: BaseException) -> None:
        """Report an error: its exit code, its class, its message, and the remedy, which is the message's last part."""
        code, message = exit_code_and_message(problem)
        remedy = message.rpartition("; ")[2] if "; " in message else ""
        source = "server" if OUR_FAULT in message or not message else "request"
        source = "resources" if code == OutOfResources.exit_code else source
        error = {"code": code, "kind": type(problem).__name__, "message": message, "remedy": remedy, "source": source}
        self._write({"error": error})

    def _write(self, report: Mapping[str, Any]) -> None:
        with suppress(OSError):  # the pipe is full, or the worker is dead
            os.write(self._descriptor, json.dumps(report).encode() + b"\n")


def run_order(order: Mapping[str, Any], reports: TaskReports) -> None:
    """Run a task, and print its result.

    Args:
        order: The task as `task`, the folder for its files as `out`, the device as `device`.
        reports: Takes the progress.
    """
    task, console = registry.parse(order["task"]), Console()
    sys.argv[1:] = [str(order["task"][NAME]), json.dumps(order["task"], ensure_ascii=False)]  # recorded in reports
    context = TaskContext(TaskOutput(Path(order["out"])), console, str(order["device"]), confirmed=True)
    with progress_listener(reports.progress):
        result = task.run(context)
    if task.makes == "text":
        write_result(Path(order["out"]), result.facts)
    if result.facts or result.text:
        console.result(result.facts, result.text.replace(f"{order['out']}{os.sep}", ""))  # the folder has another name


def main(descriptor: int) -> int:
    """Run the order on the standard input; return the exit code, as those of the command line."""
    reports = TaskReports(descriptor)

    def run(**_: object) -> None:
        try:
            run_order(json.load(sys.stdin), reports)
        except BaseException as problem:
            reports.error(problem)
            raise

    return run_with_exit_code(run, [])


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
