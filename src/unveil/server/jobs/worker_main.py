"""Worker process: `python -m unveil.server.jobs.worker_main FOLDER NAME DEVICE [LANE]`.

`worker.WorkerPool` starts it. It ends with its parent, which holds the only other end of its standard input.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from unveil.io.console import log_to_stderr, printable
from unveil.server.jobs.job_table import ALL_JOBS
from unveil.server.jobs.outputs import JobOutputs
from unveil.server.jobs.queue import Queue, QueueCorrupted
from unveil.server.jobs.worker import Worker

MADE = "made"  # subfolder of outputs in the state folder


def main(folder: Path, name: str, device: str, lane: str = ALL_JOBS.name) -> None:
    """Run jobs until SIGTERM, which takes effect between two jobs, or until the parent ends.

    If the job database is corrupt, print an error and exit with a special code.
    """
    log_to_stderr("%(asctime)s %(levelname)s %(message)s", logging.INFO)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches all processes; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        queue = Queue(folder, mends=False)  # the server has it open as well
    except QueueCorrupted as problem:
        sys.exit(_report(problem))
    from unveil.server.jobs.job_types import job_handlers  # late: imports torch
    from unveil.server.jobs.task_job import lanes

    claimed = {entry.name: entry for entry in (ALL_JOBS, *lanes())}[lane]
    Worker(name, queue, JobOutputs(folder / MADE), job_handlers(folder, device), claimed).run(over.is_set)


def _report(problem: QueueCorrupted) -> int:
    print(f"error: {printable(str(problem))}", file=sys.stderr, flush=True)
    return problem.exit_code


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)  # its job is queued again, and its temporary folder is deleted later


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
