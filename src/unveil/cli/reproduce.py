"""`unveil reproduce`: a paper's claim as a small experiment."""

from __future__ import annotations

from pathlib import Path

from unveil.io.console import Console
from unveil.reproduce import CLAIMS
from unveil.reproduce import reproduce as experiment


def reproduce(name: str | None, quick: bool, out: Path | None, force: bool, console: Console) -> None:
    """Lists the claims, or runs one."""
    if name is None:
        width = max(map(len, CLAIMS))
        facts = {"claims": {claim: found.claim for claim, found in CLAIMS.items()}}
        console.result(facts, "\n".join(f"{claim:<{width}}  {found.claim}" for claim, found in CLAIMS.items()))
        return
    record = experiment(name, quick=quick, out=out, force=force, console=console)
    if console.as_json:  # otherwise it has said what it found
        console.result(record, "")
