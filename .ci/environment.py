"""Sets up .venv of this checkout from a kept copy of an earlier one, or with `make setup`, whose result is then kept.

A copy belongs to what decides what is installed: the pinned versions, the project's metadata, the commands of the
Makefile, and the Python. It is made under a name of its own and renamed, and its mark is written last, so that half a
copy is never taken for one; two checkouts may do this at the same time. Files are hard links where the folder is on
the same file system: installers replace files and do not write into them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

DECIDES = ("constraints.txt", "pyproject.toml", "Makefile", ".ci/requirements.py", ".ci/torch-cpu.txt")
VERSION = "src/unveil/__init__.py"  # its number is in the metadata of the installed project
MARK = "complete"  # holds the folder in which the environment was made
READY = (".ready", ".ready-dev")  # what `make` looks at
UNUSED_DAYS = 14
HALF_HOURS = 3  # an unfinished copy of that age has been left by a process that ended


def kept_in() -> Path:
    """The folder of copies."""
    if named := os.environ.get("UNVEIL_VENV_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unveil" / "ci"


def key(root: Path) -> str:
    """What decides what is installed, in 32 digits."""
    found = hashlib.sha256()
    for name in DECIDES:
        found.update((root / name).read_bytes())
    version = re.search(r"__version__ = .*", (root / VERSION).read_text("utf-8"))
    for text in (version and version[0], sys.version, sys.base_prefix, platform.platform(), platform.machine()):
        found.update(f"\n{text}".encode())
    return found.hexdigest()[:32]


def copied(source: Path, target: Path) -> None:
    """Copies a folder: hard links where that can be."""

    def link(one: str, other: str) -> str:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:
            shutil.copy2(one, other, follow_symlinks=False)
        return other

    shutil.copytree(source, target, symlinks=True, copy_function=link)


def moved(environment: Path, old: str, new: str) -> None:
    """Writes the checkout's folder in the place of the one where the environment was made; links are left as they are.

    Scripts, the settings of the environment, and what leads to the project's sources name it.
    """
    places = [environment / "pyvenv.cfg", *(environment / "bin").iterdir()]
    for packages in environment.glob("lib/python*/site-packages"):
        places += [*packages.glob("*.pth"), *packages.glob("unveil-*.dist-info/*")]
    for path in places:
        if path.is_symlink() or not path.is_file():
            continue
        content = path.read_bytes()
        if old.encode() in content and b"\0" not in content:
            fresh = path.with_name(path.name + ".new")  # the file itself may be shared with other checkouts
            fresh.write_bytes(content.replace(old.encode(), new.encode()))
            shutil.copymode(path, fresh)
            fresh.replace(path)


def works(root: Path) -> bool:
    """Whether the environment's Python finds this checkout's sources, and its tools are there."""
    program = "import importlib.util as u, pytest, pip; print(u.find_spec('unveil').origin)"
    commands = [[root / ".venv" / "bin" / "python", "-c", program], [root / ".venv" / "bin" / "unveil", "--help"]]
    try:
        python, tool = (subprocess.run(c, capture_output=True, text=True, cwd="/", check=False) for c in commands)
    except OSError:
        return False
    return tool.returncode == 0 and python.stdout.strip() == str(root / VERSION)


def taken(root: Path, copy: Path) -> bool:
    """Whether .venv could be made of the copy."""
    try:
        made_in = (copy / MARK).read_text("utf-8")
        os.utime(copy / MARK)
        copied(copy / "venv", root / ".venv")
        moved(root / ".venv", made_in, str(root))
    except (OSError, shutil.Error):
        made_in = ""
    if not made_in or not works(root):
        shutil.rmtree(root / ".venv", ignore_errors=True)
        return False
    for name in READY:  # newer than the files that they depend on
        (root / ".venv" / name).unlink(missing_ok=True)
        (root / ".venv" / name).touch()
    return True


def keep(root: Path, copy: Path) -> None:
    """Keeps a copy of .venv; a copy that is there already, and could not be used, is replaced."""
    half = copy.with_name(f"{copy.name}.{os.getpid()}.half")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copied(root / ".venv", half / "venv")
        (half / MARK).write_text(str(root), "utf-8")
        if copy.exists():
            copy.rename(half / "former")
        half.rename(copy)
        shutil.rmtree(copy / "former", ignore_errors=True)
    except (OSError, shutil.Error) as problem:
        print(f"{copy}: the environment is not kept: {problem}", file=sys.stderr)
        shutil.rmtree(half, ignore_errors=True)


def tidied(folder: Path, now: float) -> None:
    """Removes copies that nobody has used for a while, and unfinished ones of processes that ended."""
    for one in folder.iterdir() if folder.is_dir() else ():
        try:
            age = now - (one / MARK if (one / MARK).exists() else one).stat().st_mtime
        except OSError:
            continue
        if age > (HALF_HOURS * 3600 if one.suffix == ".half" else UNUSED_DAYS * 86400):
            shutil.rmtree(one, ignore_errors=True)


def main() -> int:
    """Leaves a .venv that `make` need not touch; the exit code of `make setup` where that was run."""
    root = Path(__file__).resolve().parents[1]
    if (root / ".venv").exists():  # as a user's own: `make` brings it up to date
        return subprocess.run(["make", "setup"], cwd=root, check=False).returncode
    tidied(kept_in(), time.time())
    copy = kept_in() / key(root)
    begun = time.monotonic()
    if taken(root, copy):
        print(f"environment: of {copy}, in {time.monotonic() - begun:.0f} s")
        return 0
    code = subprocess.run(["make", "setup"], cwd=root, check=False).returncode
    if code == 0:
        keep(root, copy)
    return code


if __name__ == "__main__":
    sys.exit(main())
