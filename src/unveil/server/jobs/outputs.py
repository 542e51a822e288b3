"""Output folders of jobs, written atomically; a lost job database is restored from their records."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unveil.errors import DataError
from unveil.io.files import staged, sync_file, write_atomically
from unveil.server.jobs.job import Job
from unveil.server.jobs.job_migration import migrate_record

RECORD = "job.json"
LOG, RESULT = "log.txt", "result.json"  # of a task whose output is text: the text, and its values
_ID = re.compile(r"[0-9a-f]{8,64}")
log = logging.getLogger(__name__)


class JobOutputs:
    """Output folders of completed jobs.

    Args:
        folder: Parent folder; created with the first output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def writing(self, job: Job, messages: Sequence[str] = ()) -> Iterator[Path]:
        """Open a temporary folder for a job's files; on exit it is renamed to the job's id, with the job's record.

        `messages` is read on exit and may grow until then. If the block fails or the process dies, no folder of this id
        remains.

        Raises:
            OutputError, OutOfResources: As `files.staged`.
        """
        with staged(self.folder_of(job.id)) as part:
            part.mkdir()
            yield part
            outputs = tuple(sorted(path.name for path in part.iterdir()))
            for name in outputs:
                sync_file(part / name)
            ended = job._replace(state="completed", ended=time.time(), worker=None, error=None)
            ended = ended._replace(outputs=outputs, messages=tuple(messages))
            write_atomically(part / RECORD, json.dumps(ended._asdict(), ensure_ascii=False))

    def folder_of(self, id: str) -> Path:
        """Return the path of a job's folder, which may be missing.

        Raises:
            DataError: Not a valid job id.
        """
        if not _ID.fullmatch(id):
            raise DataError(f"{id[:80]!r}: is not a job id")
        return self.folder / id

    def read(self, id: str) -> Job | None:
        """Read the record of a completed job; None if it is missing or unreadable."""
        file = self.folder_of(id) / RECORD
        try:
            record = json.loads(file.read_text("utf-8"))
            job = Job(**migrate_record(record))
            job = job._replace(outputs=tuple(job.outputs), messages=tuple(job.messages))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as problem:
            log.warning("%s: skipped: its record cannot be read (%s)", file, problem)
            return None
        return job if job.id == id and all(_is_regular(file.parent, name) for name in job.outputs) else None

    def file(self, id: str, name: str) -> Path:
        """Return the path of an output file.

        Raises:
            DataError: The job does not exist, or has no such output file.
        """
        job = self.read(id)
        if job is None or name not in job.outputs:
            raise DataError(f"{id[:80]!r} has no output file {name[:80]!r}")
        return self.folder_of(id) / name

    def all(self) -> list[Job]:
        """Read the records of all completed jobs, in the order of submission."""
        if not self.folder.is_dir():
            return []
        names = sorted(path.name for path in self.folder.iterdir() if path.is_dir() and _ID.fullmatch(path.name))
        jobs = [job for name in names if (job := self.read(name)) is not None]
        return sorted(jobs, key=lambda job: job.submitted)

    def remove(self, id: str) -> None:
        """Delete the outputs of a job."""
        shutil.rmtree(self.folder_of(id), ignore_errors=True)

    def parts(self) -> list[Path]:
        """List temporary folders, those in use and those left by dead workers."""
        return list(self.folder.glob(".*.part")) if self.folder.is_dir() else []

    def sweep(self) -> int:
        """Delete temporary folders and return their number; call only while no worker runs."""
        stale = self.parts()
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)


def write_result(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the values that a task returned as an output file of its job."""
    (folder / RESULT).write_text(json.dumps(facts, ensure_ascii=False, indent=1), "utf-8")


def _is_regular(folder: Path, name: str) -> bool:
    """Return True if a name is that of a regular file directly in the folder, not of a link."""
    return name == Path(name).name and (folder / name).is_file() and not (folder / name).is_symlink()
