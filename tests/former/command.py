"""A command line in this process, with the fixture folder as the current one."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from unveil.cli.commands import run

FILES = Path(__file__).parent / "files"
# Words of the command lines in index.json, as they are written today
RENAMED: dict[str, tuple[str, ...]] = {
    "--scale": ("--guidance-scale",),
    "--guidance": ("--guidance-scale",),
    "--like": ("--from-metadata",),
    "--strip": ("--save-trajectory",),
    "--count": ("-n",),
    "--control": ("--controlnet",),
    "--amount": ("--variation-strength",),
    "--noise": ("--latents",),
    "--no-expand": ("--expand-prompt", "none"),
    "--at": ("--image-frame",),
    "--keep": ("--keep-mask",),
    "--fade": ("--prompt-crossfade",),
    "--context": ("--context-frames",),
    "--way": ("--method",),
    "--source": ("--source-prompt",),
}
COMMANDS = {
    ("vary",): ("variations",),
    ("hint",): ("preprocess",),
    ("video", "make"): ("video", "generate"),
    ("video", "between"): ("video", "interpolate"),
    ("video", "connect"): ("video", "join"),
}


def today(words: Iterable[str]) -> list[str]:
    """A command line of then in today's words."""
    typed = list(words)
    for former, new in COMMANDS.items():
        if tuple(typed[: len(former)]) == former:
            typed[: len(former)] = new
    renamed = [one for word in typed for one in RENAMED.get(word, (word,))]
    for place, word in enumerate(renamed[:-1]):
        if word == "--negative":
            renamed[place] = "--negative-cond" if "=" in renamed[place + 1] else "--negative-prompt"
        if word == "--jumps":
            renamed[place : place + 2] = ["--repaint-jump-length", renamed[place + 1], "--repaint-resamples"]
    return renamed


def unveil(*words: object, code: int = 0, folder: Path = FILES) -> str:
    """What `unveil WORDS` prints in a folder; an error where it ends with another code."""
    typed, printed, argv = [str(word) for word in words], StringIO(), sys.argv
    sys.argv = ["unveil", *typed]
    try:
        with chdir(folder), redirect_stdout(printed):
            found = run(typed)
    finally:
        sys.argv = argv
    if found != code:
        raise RuntimeError(f"unveil {' '.join(typed)}: exit code {found}")
    return printed.getvalue()


def run_end(run: Path) -> dict[str, Any]:
    """The losses of a run as hexadecimal numbers, and a hash of its last weights, whatever they are called."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = max((run / "checkpoints").glob("step_*"))
    weights = {str(path.relative_to(last)): tensors_sha256(path) for path in sorted(last.rglob("*.safetensors"))}
    return {"losses": [[line["step"], line["loss"].hex()] for line in lines if "loss" in line], "weights": weights}


def tensors_sha256(path: Path) -> str:
    """A hash of the tensors of a file that does not depend on their names."""
    each = sorted(hashlib.sha256(array.tobytes()).hexdigest() for array in load_file(path).values())
    return hashlib.sha256("".join(each).encode()).hexdigest()
