"""Looking at every file of a folder once, with several threads; what was seen is kept until a file changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

from unveil.data.cache import cache_get, cache_put
from unveil.data.folder_index import FolderIndex
from unveil.data.image_decoding import safe_join
from unveil.errors import DataError

Progress = Callable[[int, int], None]
HeaderT = TypeVar("HeaderT")

_VERSION = 1  # of the kept form; another one is not read
_THREADS = 4  # decoding leaves Python's lock; each thread may hold one image of max_pixels


class FileInfo(NamedTuple, Generic[HeaderT]):
    """Result of inspecting a file: its header and content hash, or the reason why it cannot be used."""

    header: HeaderT | None
    digest: str = ""
    reason: str = ""


class FileInspector(NamedTuple, Generic[HeaderT]):
    """Inspection of one kind of file.

    stamp: dependencies of the result besides the files: limits and versions. view: the header of an open file, or a
    DataError. again: the facts of what JSON kept of them.
    """

    stamp: str
    view: Callable[[IO[bytes]], HeaderT]
    again: Callable[[Sequence[Any]], HeaderT]


def inspect_files(
    index: FolderIndex, viewer: FileInspector[HeaderT], progress: Progress | None
) -> dict[str, FileInfo[HeaderT]]:
    """The look of every file of a listing, those of an earlier call where no file has changed since.

    Results with unreadable files are not kept.
    """
    seen = _kept(index, viewer)
    if seen is None:
        seen = dict(_looks(index, viewer, progress))
        if all(look.header for look in seen.values()):
            cache_put(_name(index, viewer), {"version": _VERSION, "looks": seen})
    return seen


def _looks(
    index: FolderIndex, viewer: FileInspector[HeaderT], progress: Progress | None
) -> Iterator[tuple[str, FileInfo[HeaderT]]]:
    paths = list(dict.fromkeys(entry.path for entry in index.entries))  # a file may have several captions
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for done, (path, look) in enumerate(
                zip(paths, pool.map(lambda path: _look(index.root, path, viewer), paths), strict=True), 1
            ):
                yield path, look
                if progress and (done % 16 == 0 or done == len(paths)):
                    progress(done, len(paths))
        except BaseException:  # Ctrl-C included: what is queued is not worth waiting for
            pool.shutdown(cancel_futures=True)
            raise


def _look(root: Path, path: str, viewer: FileInspector[HeaderT]) -> FileInfo[HeaderT]:
    try:
        with safe_join(root, path).open("rb") as file:
            facts = viewer.view(file)
            file.seek(0)
            return FileInfo(facts, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())
    except DataError as error:
        return FileInfo(None, reason=str(error))
    except OSError as error:
        return FileInfo(None, reason=f"cannot be read: {error.strerror or error}; check it and its permissions")


def _name(index: FolderIndex, viewer: FileInspector[Any]) -> str:
    facts = f"{_VERSION}\0{viewer.stamp}\0{index.root}\0{index.stamp}"
    return f"checks/{hashlib.blake2b(os.fsencode(facts), digest_size=16).hexdigest()}.json"


def _kept(index: FolderIndex, viewer: FileInspector[HeaderT]) -> dict[str, FileInfo[HeaderT]] | None:
    """The looks of an earlier check of the same files; None when there was none that covers every file."""
    stored = cache_get(_name(index, viewer))
    try:
        if stored is None or stored["version"] != _VERSION:
            return None
        seen = {
            path: FileInfo(viewer.again(facts), digest, why) for path, (facts, digest, why) in stored["looks"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return seen if all(entry.path in seen for entry in index.entries) else None
