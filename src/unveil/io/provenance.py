"""Provenance of results: the commit of the running source, and the command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def commit() -> str | None:
    """The commit of the source that runs, with "+" when files were changed since; None outside a checkout."""
    folder = Path(__file__).parents[1]

    def ask(command: Sequence[str]) -> str | None:
        try:
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    head, changes = ask(["rev-parse", "--short=12", "HEAD"]), ask(["status", "--porcelain", "--", "."])
    return f"{head}+" if head and changes else head


def command() -> str:
    """The command line of this process as a person types it."""
    name = Path(sys.argv[0]).name
    return shlex.join(["unveil" if name == "__main__.py" else name, *sys.argv[1:]])


def cpu_seconds() -> float:
    """User and system seconds of this process and of its ended children."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
