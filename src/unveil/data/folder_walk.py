"""One pass over a folder tree, before the files are opened."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath

from unveil.data.image_decoding import safe_join
from unveil.errors import DataError


class FolderWalk:
    """One pass over the tree: regular files in order, a mark of their state, and what cannot be followed.

    Args:
        root: Root folder.
        noun: Noun for one file of the type that is searched for.
        suffixes: names that promise one.

    Attributes:
        files: regular ones, in order.
        refused: path and reason of what should have been one and cannot be.
        ignored: path and reason of other things.
    """

    def __init__(self, root: Path, noun: str, suffixes: frozenset[str]) -> None:
        self.files: list[str] = []
        self.refused: list[tuple[str, str]] = []
        self.ignored: list[tuple[str, str]] = []
        self._root, self._noun, self._suffixes = root, noun, suffixes
        self._marks: list[str] = []
        self._visit("")
        self.files.sort()
        self._marks.sort()

    def stamp(self) -> str:
        """A hash over the path, size and time of every file."""
        return hashlib.blake2b("\n".join(self._marks).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def _visit(self, folder: str) -> None:
        try:
            children = list(os.scandir(self._root / folder))
        except OSError as error:
            self.refused.append((folder, f"a folder that cannot be opened: {error.strerror}; change its permissions"))
            return
        for child in children:
            if child.name.startswith("."):
                continue
            path = f"{folder}/{child.name}" if folder else child.name
            suffix = PurePosixPath(child.name).suffix.lower()
            if child.is_dir(follow_symlinks=False):
                if suffix in self._suffixes:
                    self.refused.append((path, f"a folder, not a {self._noun}; rename it or move its content"))
                else:
                    self._visit(path)
            else:
                self._add(path, child, suffix)

    def _add(self, path: str, child: os.DirEntry[str], suffix: str) -> None:
        try:
            if child.is_symlink():
                safe_join(self._root, path)
            facts = child.stat()
        except DataError as error:
            self.refused.append((path, str(error)))
        except OSError as error:  # a link to nothing, or to itself
            self.refused.append((path, f"cannot be read: {error.strerror or error}"))
        else:
            if stat.S_ISREG(facts.st_mode):
                self.files.append(path)
                self._marks.append(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}")
            elif stat.S_ISDIR(facts.st_mode):
                self.ignored.append((path, "a link to a folder, which is not followed"))
            elif suffix in self._suffixes:
                self.refused.append((path, "not a regular file; remove it"))
            else:
                self.ignored.append((path, "not a regular file"))
