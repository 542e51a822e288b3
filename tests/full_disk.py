"""A disk that is full at chosen calls of write: `open` gives files whose `write` stores a half and fails."""

from __future__ import annotations

import builtins
import errno
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class FullDisk:
    """Fault of the writes below a folder.

    Attributes:
        is_full: Function of the number of the call, from 0, and of the path; True: the call fails.
        calls: Number of calls so far, in the thread that created the object.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = str(root)
        self.is_full: Callable[[int, str], bool] = lambda call, path: False
        self.calls = 0
        self._thread = threading.get_ident()
        self._open = builtins.open
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self.open)

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **named: Any) -> Any:
        """Open a file like the built-in function."""
        ours = isinstance(file, str | Path) and str(file).startswith(self.root) and set(mode) & set("wxa")
        if not ours or threading.get_ident() != self._thread:
            return self._open(file, mode, buffering, *arguments, **named)
        raw = _File(self, str(file), mode.replace("b", "").replace("t", "").replace("+", ""))
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=named.get("encoding", "utf-8"))


class _File(io.FileIO):
    def __init__(self, disk: FullDisk, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self.disk, self.path = disk, path

    def write(self, data: Any) -> int:
        call = self.disk.calls
        self.disk.calls += 1
        if self.disk.is_full(call, self.path):
            super().write(bytes(data)[: len(bytes(data)) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)
