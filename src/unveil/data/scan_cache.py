"""Looking at every file of a folder once, with several threads; what was seen is kept until a file changes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

from unveil.data.cache import keep, recall
from unveil.data.folder_index import Listing
from unveil.data.image_decoding import inside
from unveil.types import DataError

Progress = Callable[[int, int], None]
Facts = TypeVar("Facts")

_VERSION = 1  # of the kept form; another one is not read
_THREADS = 4  # decoding leaves Python's lock; each thread may hold one picture of max_pixels


class Look(NamedTuple, Generic[Facts]):
    """What decoding a file showed: its header and the hash of its content, or the reason why it cannot be used."""

    header: Facts | None
    digest: str = ""
    reason: str = ""


class Viewer(NamedTuple, Generic[Facts]):
    """How files of a kind are looked at.

    stamp: what the result depends on beside the files: limits and versions. view: the facts of an open file, or a
    MediaError. again: the facts of what JSON kept of them.
    """

    stamp: str
    view: Callable[[IO[bytes]], Facts]
    again: Callable[[Sequence[Any]], Facts]


def looks(found: Listing, viewer: Viewer[Facts], progress: Progress | None) -> dict[str, Look[Facts]]:
    """The look of every file of a listing, those of an earlier call where no file has changed since.

    Results with unreadable files are not kept.
    """
    seen = _kept(found, viewer)
    if seen is None:
        seen = dict(_looks(found, viewer, progress))
        if all(look.header for look in seen.values()):
            keep(_name(found, viewer), {"version": _VERSION, "looks": seen})
    return seen


def _looks(found: Listing, viewer: Viewer[Facts], progress: Progress | None) -> Iterator[tuple[str, Look[Facts]]]:
    paths = list(dict.fromkeys(entry.path for entry in found.entries))  # a file may have several captions
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for done, (path, look) in enumerate(
                zip(paths, pool.map(lambda path: _look(found.root, path, viewer), paths), strict=True), 1
            ):
                yield path, look
                if progress and (done % 16 == 0 or done == len(paths)):
                    progress(done, len(paths))
        except BaseException:  # Ctrl-C included: what is queued is not worth waiting for
            pool.shutdown(cancel_futures=True)
            raise


def _look(root: Path, path: str, viewer: Viewer[Facts]) -> Look[Facts]:
    try:
        with inside(root, path).open("rb") as file:
            facts = viewer.view(file)
            file.seek(0)
            return Look(facts, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())
    except DataError as error:
        return Look(None, reason=str(error))
    except OSError as error:
        return Look(None, reason=f"cannot be read: {error.strerror or error}; check it and its permissions")


def _name(found: Listing, viewer: Viewer[Any]) -> str:
    facts = f"{_VERSION}\0{viewer.stamp}\0{found.root}\0{found.stamp}"
    return f"checks/{hashlib.blake2b(os.fsencode(facts), digest_size=16).hexdigest()}.json"


def _kept(found: Listing, viewer: Viewer[Facts]) -> dict[str, Look[Facts]] | None:
    """The looks of an earlier check of the same files; None when there was none that covers every file."""
    kept = recall(_name(found, viewer))
    try:
        if kept is None or kept["version"] != _VERSION:
            return None
        seen = {path: Look(viewer.again(facts), digest, why) for path, (facts, digest, why) in kept["looks"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return seen if all(entry.path in seen for entry in found.entries) else None
