"""The process of a worker: `python -m unveil.server.jobs.worker_main FOLDER NAME DEVICE`, as `crew` starts it.

It ends with whoever started it: its standard input is held open by that one alone, and reads as ended when it is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from unveil.server.jobs.outputs import Results
from unveil.server.jobs.queue import Damaged, Queue
from unveil.server.jobs.worker import Worker

MADE = "made"  # the folder of results in that of the queue


def main(folder: Path, name: str, device: str) -> None:
    """Works until it is told to end, by SIGTERM between two jobs, or by the end of its parent at once.

    Where the table of jobs is damaged, it says so and ends with a code of its own.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the parent says when to end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        queue = Queue(folder, mends=False)  # the server holds it as well
    except Damaged as problem:
        sys.exit(_told(problem))
    from unveil.server.jobs.job_types import kinds  # with it comes torch

    Worker(name, queue, Results(folder / MADE), kinds(folder, device)).run(over.is_set)


def _told(problem: Damaged) -> int:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return problem.exit_code


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)  # its job goes back into the queue, and what it wrote has no name yet


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
