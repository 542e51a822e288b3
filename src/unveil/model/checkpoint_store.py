"""Checkpoints as folders that are whole or absent.

A folder is written beside its final place as `.staging-NAME-PID-RANDOM`: every file flushed and synced,
`manifest.json` with the size and sha256 of each last, then one rename. What is there under its own name was
complete; what a crash left behind is under another name and is swept at the next start. Weights, optimiser
and counters are safetensors, YAML and JSON: nothing here can run code.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from unveil.errors import OutOfResources, OutputError, WeightsError
from unveil.io.files import sha256
from unveil.io.safetensors_io import write_tensors

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 10_000_000  # bytes

# What a file of a checkpoint holds: text; plain values for .json; tensors by name for .safetensors.
Content = str | Mapping[str, Any]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = re.compile(r"\.(?P<what>staging|dropped|replaced)-(?P<name>.+)-(?P<pid>\d+)-[0-9a-f]{8}")
_STEP = re.compile(r"step_(\d+)")
_log = logging.getLogger(__name__)


class ManifestEntry(NamedTuple):
    """What the manifest says of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The last file of a folder to be written; its presence says that the others are complete.

    kind: "model" or "training". step: optimiser steps behind it. files: by name inside the folder. former_sha256: what
    `identity` was before the same tensors were described by other words.
    """

    kind: str
    step: int
    files: Mapping[str, ManifestEntry]
    versions: Mapping[str, str]
    format: int = FORMAT
    former_sha256: Sequence[str] = ()


def step_name(step: int) -> str:
    """The folder's name of a training checkpoint: step_000500."""
    return f"step_{step:06d}"


# ---------------------------------------------------------------------- writing


def save(
    folder: Path, files: Mapping[str, Content], *, kind: str = "model", step: int = 0, replace: bool = False
) -> Manifest:
    """Publishes the files as one folder: afterwards all of them are there, or nothing changed.

    Args:
        folder: the final place; missing parents are made.
        files: content by name inside the folder, such as "ema/denoiser.safetensors"; the suffix decides the format.
        kind: recorded in the manifest.
        step: recorded in the manifest.
        replace: take the place of a folder that is there already.

    Raises:
        OutputError: something is there already, or the place cannot be written.
        OutOfResources: the disk is full; nothing changed.
    """
    if not replace and (folder.exists() or folder.is_symlink()):
        raise OutputError(f"{folder}: exists already and is not overwritten; choose another name or pass force")
    staging = _beside(folder, "staging")
    with _explained(folder):
        try:
            staging.mkdir(parents=True)
            entries = {name: _write(staging, name, content) for name, content in files.items()}
            manifest = Manifest(kind, step, entries, versions())
            text = asdict(manifest) | {"files": {name: entry._asdict() for name, entry in entries.items()}}
            del text["former_sha256"]  # of what is written anew there is none
            _write(staging, MANIFEST, text)
            for inner in {(staging / name).parent for name in files} | {staging}:
                _sync_folder(inner)
            _publish(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest


def prune(parent: Path, keep: int) -> None:
    """Deletes all but the newest `keep` training checkpoints; call it after the newest is published."""
    for folder in checkpoints(parent)[max(keep, 1) :]:
        dropped = _beside(folder, "dropped")
        with suppress(OSError):
            os.rename(folder, dropped)  # first out of sight: a half-deleted checkpoint would look damaged
            shutil.rmtree(dropped, ignore_errors=True)


def remove_stale(parent: Path) -> list[Path]:
    """Removes what writers that died have left in `parent`; returns what was removed.

    A folder that was moved away while its successor was published is moved back if there is no successor.
    Folders of processes that still run are left alone.
    """
    removed: list[Path] = []
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or _runs_elsewhere(int(found["pid"])):
            continue
        home = parent / found["name"]
        if found["what"] == "replaced" and not home.exists():
            os.rename(path, home)
            continue
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def versions() -> dict[str, str]:
    """The libraries whose versions may matter to whoever reads a checkpoint later."""
    import safetensors
    import torch

    import unveil

    return {
        "unveil": unveil.__version__,
        "torch": str(torch.__version__),
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }


# ---------------------------------------------------------------------- reading


def checkpoints(parent: Path) -> list[Path]:
    """The training checkpoints in a folder, newest first; whether they are valid is not asked."""
    if not parent.is_dir():
        return []
    numbered = [(int(found[1]), path) for path in parent.iterdir() if (found := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder; the files it names are not looked at.

    Raises:
        WeightsError: there is none, or it is damaged or of a later format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise WeightsError(
            f"{folder}: no {MANIFEST}, so this is not a saved model, or its writing never ended; choose another"
        )
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise ValueError("too large")
        raw = json.loads(path.read_bytes())
        if not isinstance(raw["format"], int) or raw["format"] > FORMAT:
            raise WeightsError(f"{path}: format {raw['format']!r}; this version reads up to {FORMAT}: update unveil")
        files = {str(name): ManifestEntry(int(e["size"]), str(e["sha256"])) for name, e in raw["files"].items()}
        former = tuple(map(str, raw.get("former_sha256", ())))
        manifest = Manifest(str(raw["kind"]), int(raw["step"]), files, dict(raw["versions"]), raw["format"], former)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        if isinstance(problem, WeightsError):
            raise
        raise WeightsError(
            f"{path}: damaged ({type(problem).__name__}: {problem}); use another checkpoint"
        ) from problem
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name:
            raise WeightsError(
                f"{path}: names the file {name!r}, which lies outside the folder; do not use this checkpoint"
            )
    return manifest


def verify(folder: Path) -> Manifest:
    """The manifest of a folder of which every file has the recorded size and sha256.

    Raises:
        WeightsError: a line for each file that is missing or differs, with what was expected and found.
    """
    manifest = read_manifest(folder)
    faults: list[str] = []
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.size:
                faults.append(f"{path}: {size} bytes, {entry.size} were written")
            elif (found := sha256(path)) != entry.sha256:
                faults.append(f"{path}: sha256 {found[:16]}..., {entry.sha256[:16]}... was written")
        except OSError as problem:
            faults.append(f"{path}: cannot be read ({problem.strerror})")
    if faults:
        raise WeightsError("\n".join(faults) + "\nthe checkpoint is damaged: copy it again, or use an earlier one")
    return manifest


def latest_valid(parent: Path, on_invalid: Callable[[Path, WeightsError], None] | None = None) -> Path | None:
    """The newest training checkpoint in `parent` that verifies, or None.

    Args:
        on_invalid: is told of each newer one that was passed over, and why; without it a warning is logged.
    """
    for folder in checkpoints(parent):
        try:
            verify(folder)
        except WeightsError as problem:
            if on_invalid is None:
                _log.warning("checkpoint passed over: %s", problem)
            else:
                on_invalid(folder, problem)
        else:
            return folder
    return None


def read_json(path: Path) -> Any:
    """The values of a JSON file of a checkpoint.

    Raises:
        WeightsError: missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise WeightsError(f"{path}: cannot be read ({problem}); use another checkpoint") from problem


# ---------------------------------------------------------------------- details


def _write(staging: Path, name: str, content: Content) -> ManifestEntry:
    path = staging / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        assert not isinstance(content, str)
        write_tensors(path, content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return ManifestEntry(path.stat().st_size, sha256(path))


def _publish(staging: Path, folder: Path) -> None:
    replaced: Path | None = None
    if folder.exists():
        replaced = _beside(folder, "replaced")
        os.rename(folder, replaced)
    try:
        os.rename(staging, folder)
    except OSError:
        if replaced is not None:
            os.rename(replaced, folder)
        raise
    _sync_folder(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True) if replaced.is_dir() else replaced.unlink()


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{what}-{folder.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _sync_folder(folder: Path) -> None:
    """Makes names durable, where the system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _runs_elsewhere(pid: int) -> bool:
    """Whether another process of this number exists; our own number is a former life's (containers start at 1)."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        if isinstance(problem, OutputError | OutOfResources):
            raise
        if problem.errno in _FULL:
            raise OutOfResources(
                f"{folder}: the disk is full ({problem.strerror}); free some space: what was saved before is untouched"
            ) from problem
        raise OutputError(
            f"{folder}: cannot be written ({problem.strerror or problem}); choose another place"
        ) from problem
