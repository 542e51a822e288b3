"""`unveil reproduce`: a paper's claim as a small experiment."""

from __future__ import annotations

from pathlib import Path

from unveil import study
from unveil.app.console import Console


def reproduce(name: str | None, quick: bool, out: Path | None, force: bool, console: Console) -> None:
    """Lists the claims, or runs one."""
    if name is None:
        facts = {"claims": {name: claim.claim for name, claim in study.CLAIMS.items()}}
        console.result(facts, "\n".join(f"{name:18} {text}" for name, text in facts["claims"].items()))
        return
    record = study.reproduce(name, quick=quick, out=out, force=force, console=console)
    if console.as_json:
        console.result(record, "")
