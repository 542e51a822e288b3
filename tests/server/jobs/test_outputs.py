"""Outputs of a job are complete or absent, and only they can be requested."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unveil.errors import DataError
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.outputs import RECORD, JobOutputs
from unveil.server.jobs.queue import Queue

ID = "00112233445566ff"


@pytest.fixture
def results(tmp_path):
    return JobOutputs(tmp_path / "made")


def job(id: str = ID, **changes: object) -> Job:
    return Job(id, "image", {"prompt": "a 红色 ring"}, "me", submitted=5.0, state="running", worker="w")._replace(
        **changes
    )


def make(results: JobOutputs, one: Job, **files: bytes) -> None:
    with results.writing(one) as folder:
        for name, content in (files or {"0.png": b"image"}).items():
            (folder / name).write_bytes(content)


def test_files_and_their_record_are_there_when_all_is_written(results):
    make(results, job(), **{"1.png": b"second", "0.png": b"first"})
    assert results.file(ID, "1.png").read_bytes() == b"second"
    found = results.read(ID)
    assert (found.state, found.outputs, found.request) == ("completed", ("0.png", "1.png"), {"prompt": "a 红色 ring"})
    assert found.ended > 0


def test_a_failed_job_leaves_nothing(results):
    def fails(folder: Path) -> None:
        (folder / "0.png").write_bytes(b"half")
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"), results.writing(job()) as folder:
        fails(folder)
    assert results.read(ID) is None
    assert list(results.folder.iterdir()) == []


def test_files_of_a_killed_worker_are_deleted_and_never_served(results):
    script = (
        "import os, sys; from pathlib import Path; from unveil.server.jobs.job_table import Job\n"
        "from unveil.server.jobs.outputs import JobOutputs\n"
        f"with JobOutputs(Path(sys.argv[1])).writing(Job({ID!r}, 'image', {{}})) as folder:\n"
        "    (folder / '0.png').write_bytes(b'half'); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(results.folder)], check=False)
    assert done.returncode == -9
    assert len(list(results.folder.iterdir())) == 1
    assert results.all() == []
    assert results.sweep() == 1
    assert list(results.folder.iterdir()) == []
    make(results, job())
    assert results.sweep() == 0
    assert len(results.all()) == 1


def test_a_lost_database_is_restored_from_the_outputs(results, tmp_path):
    for number, id in enumerate(("cc" * 8, "aa" * 8, "bb" * 8)):
        make(results, job(id, submitted=float(number)))
    queue = Queue(tmp_path / "q")
    assert queue.restore(results.all()) == 3
    assert [one.id[:2] for one in queue.jobs("completed")] == ["cc", "aa", "bb"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": "00112233445566ff"}', b"\xff\xfe", None])
def test_a_record_that_cannot_be_read_is_passed_over(results, content, caplog):
    make(results, job("ab" * 8))
    make(results, job())
    record = results.folder_of(ID) / RECORD
    record.unlink() if content is None else record.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="unveil"):
        assert [one.id for one in results.all()] == ["ab" * 8]
    assert ("skipped" in caplog.text) == (content is not None)


def test_a_job_that_lacks_a_file_is_not_complete(results):
    make(results, job())
    (results.folder_of(ID) / "0.png").unlink()
    assert results.read(ID) is None


@pytest.mark.parametrize("id", ["..", "", "../made", "/etc", ID + "/..", ID.upper(), "x" * 16, ID + "\n", "0" * 65])
def test_no_other_folder_is_reached_by_a_jobs_name(results, id):
    make(results, job())
    with pytest.raises(DataError, match="is not a job id"):
        results.folder_of(id)


@pytest.mark.parametrize("name", ["..", "../secret", "/etc/passwd", "", ".", RECORD, "0.png/", "./0.png"])
def test_no_other_file_is_reached_by_a_files_name(results, name):
    make(results, job())
    (results.folder / "secret").write_text("secret")
    with pytest.raises(DataError, match="has no output file"):
        results.file(ID, name)
    with pytest.raises(DataError, match="has no output file"):
        results.file("ff" * 8, "0.png")


def test_a_chosen_name_cannot_leave_the_folder(results, tmp_path):
    """Metadata with a path elsewhere was not written by the server."""
    make(results, job())
    (tmp_path / "secret").write_text("secret")
    record = results.folder_of(ID) / RECORD
    record.write_text(record.read_text().replace('"0.png"', '"../../secret"'))
    with pytest.raises(DataError):
        results.file(ID, "../../secret")
    make(results, job("ab" * 8))
    file = results.folder_of("ab" * 8) / "0.png"
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(DataError):
        results.file("ab" * 8, "0.png")


def test_removed_outputs_are_gone(results):
    make(results, job())
    results.remove(ID)
    assert results.all() == []
    assert os.listdir(results.folder) == []
    results.remove(ID)
