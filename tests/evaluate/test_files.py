"""Files are whole or not there, and nothing of the user's is overwritten unasked."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unveil.errors import OutOfResources, OutputError
from unveil.io.files import refuse_overwrite, sha256, write_atomically


def test_content_arrives_whole_and_leaves_no_other_file(tmp_path: Path):
    path = write_atomically(tmp_path / "new" / "a.txt", "one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_a_path_below_a_file_is_not_writable(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(OutputError, match="file is a file, not a folder"):
        refuse_overwrite(tmp_path / "file" / "deeper" / "a.txt")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_there_is_refused_unless_forced(tmp_path: Path):
    path = write_atomically(tmp_path / "a", "x")
    with pytest.raises(OutputError, match="exists already"):
        refuse_overwrite(path)
    assert refuse_overwrite(path, force=True) == path
    assert refuse_overwrite(tmp_path / "b") == tmp_path / "b"


def test_a_full_disk_leaves_the_old_content(tmp_path: Path):
    write_atomically(tmp_path / "a", "old")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    def run(write: str) -> subprocess.CompletedProcess[str]:
        program = f"from pathlib import Path\nfrom unveil.io.files import write_atomically\n{write}"
        command = [sys.executable, "-c", program, str(tmp_path / "a")]
        return subprocess.run(command, preexec_fn=limited, capture_output=True, text=True, check=False)

    done = run("import sys; write_atomically(sys.argv[1], b'x' * 5000)")
    assert OutOfResources.__name__ in done.stderr
    assert "the disk is full" in done.stderr
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
    run("import sys; Path(sys.argv[1]).write_bytes(b'x' * 5000)")  # the control: a plain write destroys it
    assert (tmp_path / "a").read_text() != "old"


def test_the_hash_is_that_of_the_content(tmp_path: Path):
    path = write_atomically(tmp_path / "a", "abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
