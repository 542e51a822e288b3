"""`unveil reproduce`: a paper's claim as a small experiment."""

from __future__ import annotations

from pathlib import Path

from unveil.io.console import Console
from unveil.reproduce import all_claims
from unveil.reproduce import reproduce as experiment


def reproduce(name: str | None, quick: bool, out: Path | None, force: bool, console: Console) -> None:
    """List the claims, or run one."""
    if name is None:
        sentences = {name: claim.claim for name, claim in all_claims().items()}
        width = max(map(len, sentences))
        lines = (f"{name:<{width}}  {sentence}" for name, sentence in sentences.items())
        console.result({"claims": sentences}, "\n".join(lines))
        return
    record = experiment(name, quick=quick, out=out, force=force, console=console)
    if console.as_json:  # otherwise the verdict is printed already
        console.result(record, "")
