"""What jobs make: a folder for each, there whole or not at all, from which a lost table of jobs is made again."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unveil.io.files import staged, sync_file, write_atomically
from unveil.server.jobs.job import Job
from unveil.types import DataError

RECORD = "job.json"
_ID = re.compile(r"[0-9a-f]{8,64}")
log = logging.getLogger(__name__)


class Results:
    """The folders of completed jobs.

    Args:
        folder: where they lie; made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def writing(self, job: Job, said: Sequence[str] = ()) -> Iterator[Path]:
        """A folder to write a job's files in; at the end it is on the disk under the job's name, with its record.

        What is `said` is looked at then, and may grow until then.

        Whoever ends it early, or dies in it, leaves nothing under that name.

        Raises:
            NotWritable, OutOfResources: as `files.staged`.
        """
        with staged(self.of(job.id)) as part:
            part.mkdir()
            yield part
            outputs = tuple(sorted(path.name for path in part.iterdir()))
            for name in outputs:
                sync_file(part / name)
            ended = job._replace(state="completed", ended=time.time(), worker=None, error=None)
            ended = ended._replace(outputs=outputs, said=tuple(said))
            write_atomically(part / RECORD, json.dumps(ended._asdict(), ensure_ascii=False))

    def of(self, id: str) -> Path:
        """The folder of a job, whether it is there or not.

        Raises:
            MediaError: no name that a job could have.
        """
        if not _ID.fullmatch(id):
            raise DataError(f"{id[:80]!r}: no job has such a name")
        return self.folder / id

    def read(self, id: str) -> Job | None:
        """The record of a job whose files are there; None: there are none, or no record that can be read."""
        file = self.of(id) / RECORD
        try:
            said = json.loads(file.read_text("utf-8"))
            job = Job(**said)._replace(outputs=tuple(said["outputs"]), said=tuple(said["said"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as problem:
            log.warning("%s: passed over, its record cannot be read (%s)", file, problem)
            return None
        return job if job.id == id and all(_is_own(file.parent, name) for name in job.outputs) else None

    def file(self, id: str, name: str) -> Path:
        """A file that a job made.

        Raises:
            MediaError: there is no such job, or it made no such file.
        """
        job = self.read(id)
        if job is None or name not in job.outputs:
            raise DataError(f"{id[:80]!r} made no file {name[:80]!r}")
        return self.of(id) / name

    def all(self) -> list[Job]:
        """The records of all jobs whose files are there, in the order in which they were put in."""
        if not self.folder.is_dir():
            return []
        names = sorted(path.name for path in self.folder.iterdir() if path.is_dir() and _ID.fullmatch(path.name))
        found = [job for name in names if (job := self.read(name)) is not None]
        return sorted(found, key=lambda job: job.submitted)

    def remove(self, id: str) -> None:
        """Deletes what a job made."""
        shutil.rmtree(self.of(id), ignore_errors=True)

    def parts(self) -> list[Path]:
        """Folders that are written, or that workers who died left half-way."""
        return list(self.folder.glob(".*.part")) if self.folder.is_dir() else []

    def sweep(self) -> int:
        """Deletes what workers that died left half-way; how many there were. Only while nobody works."""
        stale = self.parts()
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        return len(stale)


def _is_own(folder: Path, name: str) -> bool:
    """Whether a name is that of a file right in a folder, and not of a link to another place."""
    return name == Path(name).name and (folder / name).is_file() and not (folder / name).is_symlink()
