"""Writes constraints.txt: one version of each package, for each supported Python and platform, with its hashes.

`make lock` keeps the versions that are there and adds what is missing; `make lock UPGRADE=--upgrade` takes the newest,
and `UPGRADE="--upgrade-package NAME"` that of one package.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
CPU_BUILD = ROOT / ".ci" / "torch-cpu.txt"
PYTHON = "3.11.5"  # the oldest one for which all tools have a release
TOOLS = "pip\neditables\n"  # what installs the project; its own requirements are in pyproject.toml
HEAD = """\
# Written by `make lock`: exact versions with the hashes of their files, for Python 3.11 to 3.13 on Linux, macOS and
# Windows. The tests and the recorded results ran with these versions. `make setup` accepts no other file,
# except for the CPU build of torch in .ci/torch-cpu.txt, which it takes where a package index offers it.
"""


def check_cpu_build(lines: list[str]) -> None:
    """Check that the CPU build of torch that is tried first is the version of the lock.

    Raises:
        SystemExit: It is another version.
    """
    build = CPU_BUILD.read_text("utf-8").split("\n")
    (pinned,) = (line.removesuffix(" \\") for line in lines if line.startswith("torch=="))
    if not any(line.startswith(f"{pinned}+cpu ") for line in build):
        raise SystemExit(f"{CPU_BUILD.name}: the lock has {pinned}; write the hash of its CPU build there, too")


def main(options: list[str]) -> int:
    """Resolve all requirements, and replace the lock when that has succeeded."""
    fresh = LOCK.with_name(f".{LOCK.name}.part")
    fresh.write_bytes(LOCK.read_bytes())  # uv takes the versions of the file that it is to write
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "-", "--all-extras", "--universal",
        "--python-version", PYTHON, "--generate-hashes", "--no-annotate", "--no-header", "--quiet",
        *options, "--output-file", str(fresh),
    ]  # fmt: skip
    try:
        subprocess.run(command, cwd=ROOT, input=TOOLS, text=True, check=True, stdout=subprocess.DEVNULL)
        lines = [line for line in fresh.read_text("utf-8").splitlines() if not line.startswith("#")]
        check_cpu_build(lines)
        fresh.write_text(HEAD + "\n".join(lines) + "\n", "utf-8")
        os.replace(fresh, LOCK)
    except subprocess.CalledProcessError as problem:
        return problem.returncode
    finally:
        fresh.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
