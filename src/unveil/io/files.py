"""Files that are either whole or not there: every small output of the package is written through here."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unveil.errors import AlreadyExists, Error, OutOfResources, OutputError

_JUNK = (".DS_Store", "Thumbs.db")  # of systems that show folders
_FRAME = re.compile(r"frame_\d+\.png")
_SAYS = ("model_index.json", "adapter_config.json", "config.json")  # what a folder is, in the layouts of others
_PARTS = {".json", ".safetensors", ".txt", ".model", ".md", ".yaml"}  # that it then may hold
# The disk's own limits, as opposed to a path that was never going to work.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL = "the disk is full"  # the wording of every message


def refuse_overwrite(path: str | os.PathLike[str], force: bool = False) -> Path:
    """Check that a path may be written, before the work whose result goes there.

    Raises:
        OutputError: something is there and `force` is not set, or `force` would delete what no command wrote; a
            parent folder is a regular file, or the path has no last part.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise OutputError(f"{path}: names no file or folder; add a name")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise OutputError(f"{path}: {parent} is a file, not a folder; choose another place")
            break
    if not force and (path.is_symlink() or path.exists()):
        raise AlreadyExists(f"{path}: exists already and is not overwritten; choose another name or pass --force")
    refuse_foreign(path)
    return path


def refuse_foreign(folder: Path) -> None:
    """Refuses to replace a folder that holds more than the frames of a video, or the files of a model.

    Raises:
        OutputError: names what else there is.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    every = (path for path in folder.rglob("*") if not path.is_dir() and path.name not in _JUNK)
    held = sorted(path.relative_to(folder).as_posix() for path in every)
    if (folder / "manifest.json").is_file():
        with suppress(OSError, ValueError, KeyError, TypeError):
            ours = {"manifest.json", "recipe.yaml", *json.loads((folder / "manifest.json").read_bytes())["files"]}
            held = [name for name in held if name not in ours]
    elif any((folder / name).is_file() for name in _SAYS):
        held = [name for name in held if Path(name).suffix not in _PARTS]
    else:
        held = [name for name in held if not _FRAME.fullmatch(name)]
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise OutputError(f"{folder}: would be replaced, and holds {held[0]}{more}; choose another name")


@contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder under; it takes the place of `path` when all went well.

    A reader, or a crash, finds the old content or the new one, never a part. Missing parent folders are made; a
    folder that was there before is removed.

    Raises:
        OutputError: the place cannot be written.
        OutOfResources: the disk is full; what was there before is untouched.
    """
    path = Path(path)
    # in the same folder: a rename is atomic only within one file system
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        before = None
        if temporary.is_dir() and path.is_dir():
            before = path.with_name(f".{path.name}.{secrets.token_hex(4)}.before")
            os.rename(path, before)
        try:
            os.replace(temporary, path)
        except OSError:
            if before is not None:
                os.rename(before, path)
            raise
        _sync_folder(path.parent)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
    except OSError as problem:
        if isinstance(problem, Error):
            raise
        raise explained(path, problem) from problem
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Writes the file whole: a reader, or a crash, finds the old content or the new one, never a part.

    Missing parent folders are made. Text is written as UTF-8.

    Raises:
        OutputError: the place cannot be written.
        OutOfResources: the disk is full; what was there before is untouched.
    """
    with staged(path) as temporary, open(temporary, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    return Path(path)


def sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def explained(path: Path, problem: OSError) -> OutputError | OutOfResources:
    """Return the error for a path that could not be written, with its remedy."""
    if problem.errno in _FULL:
        return OutOfResources(f"{path}: {FULL} ({problem.strerror}); free some space, or write elsewhere")
    return OutputError(f"{path}: cannot be written ({problem.strerror or problem}); choose another place")


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
