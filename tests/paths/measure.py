"""How many files of unveil run for one image: from the command line, and over HTTP with server and worker together.

`python -m tests.paths.measure` prints both numbers and the files.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import unveil

PACKAGE = Path(unveil.__file__).parent
HOOK = Path(__file__).with_name("hook")
REQUEST = {"model": "ddpm-digits", "label": "3", "steps": 3}
COMMAND = ("sample", "ddpm-digits", "--label", "3", "--steps", "3")


def environment(out: Path) -> dict[str, str]:
    """The environment of a process whose files are noted."""
    path = os.pathsep.join(filter(None, [str(HOOK), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "UNVEIL_FILES_OUT": str(out), "UNVEIL_FILES_PACKAGE": str(PACKAGE)}


def files(out: Path) -> list[str]:
    """The files that were noted, relative to the package."""
    return sorted({str(Path(line).relative_to(PACKAGE)) for line in out.read_text("utf-8").splitlines()})


def of_a_command(folder: Path) -> list[str]:
    """The files of `unveil sample ddpm-digits --label 3`."""
    out = folder / "command.txt"
    command = [sys.executable, "-m", "unveil", *COMMAND, "--out", str(folder / "three.png")]
    subprocess.run(command, env=environment(out), check=True, capture_output=True)
    return files(out)


def over_http(folder: Path) -> list[str]:
    """The files of one request of an image, of a server that is up."""
    from tests.server.http.test_served import Served, children

    out = folder / "http.txt"
    before = dict(os.environ)
    os.environ.update(environment(out))
    try:
        served = Served(folder / "service")
        processes = [served.process.pid, *children(served.process.pid)]
        out.unlink(missing_ok=True)
        for process in processes:
            os.kill(process, signal.SIGUSR1)
        status, answer = served.ask("POST", "/v1/images/generations", REQUEST)
        assert status == 200, answer
        served.kill()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return files(out)


def main() -> None:
    """Prints the numbers and the files."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, found in (("command", of_a_command(Path(scratch))), ("HTTP", over_http(Path(scratch)))):
            print(f"{name}: {len(found)} files")
            print("".join(f"  {file}\n" for file in found))


if __name__ == "__main__":
    main()
