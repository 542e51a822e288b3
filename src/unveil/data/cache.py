"""Where things are kept that can be made again: checks of folders, downloaded data."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from unveil.io.files import write_atomically
from unveil.types import OutOfResources, OutputError

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """$UNVEIL_CACHE, or else ~/.cache/unveil ($XDG_CACHE_HOME/unveil where that is set). Not made here."""
    chosen = os.environ.get("UNVEIL_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unveil"


def recall(name: str) -> dict[str, Any] | None:
    """What was kept under this name; None when there is nothing, or nothing readable."""
    try:
        kept = json.loads((cache_folder() / name).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return kept if isinstance(kept, dict) else None


def keep(name: str, content: dict[str, Any]) -> None:
    """Keeps the content under this name. A cache that cannot be written costs time, not the run."""
    try:
        write_atomically(cache_folder() / name, json.dumps(content))
    except (OutputError, OutOfResources) as problem:
        _log.info("not kept for the next run: %s", problem)
