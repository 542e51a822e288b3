"""Cache folder of reproducible content: checks of folders, downloaded data."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from unveil.errors import OutOfResources, OutputError
from unveil.io.files import write_atomically

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$UNVEIL_CACHE, or else ~/.cache/unveil ($XDG_CACHE_HOME/unveil where that is set). Not made here."""
    chosen = os.environ.get("UNVEIL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unveil"


def cache_get(name: str) -> dict[str, Any] | None:
    """Return the content cached under a name; None if there is nothing, or nothing readable."""
    try:
        content = json.loads((cache_folder() / name).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def cache_put(name: str, content: dict[str, Any]) -> None:
    """Keeps the content under this name. A cache that cannot be written costs time, not the run."""
    try:
        write_atomically(cache_folder() / name, json.dumps(content))
    except (OutputError, OutOfResources) as problem:
        _log.info("not kept for the next run: %s", problem)
