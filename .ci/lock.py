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
PYTHON = "3.11.5"  # the oldest one for which all tools have a release
TOOLS = "pip\neditables\n"  # what installs the project; its own requirements are in pyproject.toml
# Builds of the same version that the package index does not list, because another index has them
OTHER_BUILDS = {
    # torch 2.13.0+cpu for CPython 3.11 on x86-64 Linux
    "torch==2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"],
}
HEAD = """\
# Written by `make lock`: exact versions with the hashes of their files, for Python 3.11 to 3.13 on Linux, macOS and
# Windows. The tests and the recorded results ran with these versions. `make setup` accepts no other file.
# torch is the CPU build of this version where a package index offers one.
"""


def with_other_builds(lines: list[str]) -> list[str]:
    """Return the lines of a lock with the hashes of further builds added.

    Raises:
        SystemExit: The lock has another version of such a package.
    """
    left = dict(OTHER_BUILDS)
    result: list[str] = []
    for line in lines:
        result.append(line)
        hashes = left.pop(line.removesuffix(" \\"), [])
        result += [f"    --hash=sha256:{digest} \\" for digest in hashes]
    if left:
        raise SystemExit(f"{', '.join(left)} is not in the lock any more: update OTHER_BUILDS in {Path(__file__).name}")
    return result


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
        fresh.write_text(HEAD + "\n".join(with_other_builds(lines)) + "\n", "utf-8")
        os.replace(fresh, LOCK)
    except subprocess.CalledProcessError as problem:
        return problem.returncode
    finally:
        fresh.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
