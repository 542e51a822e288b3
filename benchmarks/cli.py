"""Start-up of `--help` and of importing the package: CPU seconds of a fresh process, start of Python included."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import harness

HELP_LIMIT, IMPORT_LIMIT = 0.25, 0.1  # CPU seconds, the bars


def of_process(*command: str) -> dict[str, float]:
    """The median over a few starts of a program; the first one, which reads from disk, is left out."""
    spent = []
    for _ in range(2 if harness.short() else 6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"cpu_s": statistics.median(spent[1:])}


def python(*arguments: str) -> Callable[[], dict[str, float]]:
    return lambda: of_process(sys.executable, *arguments)


def limit(seconds: float) -> Callable[[], dict[str, float]]:
    return lambda: {"cpu_s": seconds}


CASES = {
    "unveil --help": python("-m", "unveil", "--help"),
    "unveil train --help": python("-m", "unveil", "train", "--help"),
    "diffusers-cli --help": lambda: of_process(str(Path(sys.executable).parent / "diffusers-cli"), "--help"),
    "import unveil": python("-c", "import unveil"),
    "import diffusers": python("-c", "import diffusers"),
    "import diffusers' pipeline": python("-c", "from diffusers import DDPMPipeline"),
    "import unveil's model": python("-c", "from unveil import Model"),
    "limit of help": limit(HELP_LIMIT),
    "limit of import": limit(IMPORT_LIMIT),
}
RATIOS = [
    harness.Ratio("help against its limit", "unveil --help", "limit of help", at_most=1.0, goal=0.6),
    harness.Ratio("import against its limit", "import unveil", "limit of import", at_most=1.0),
    harness.Ratio("help", "diffusers-cli --help", "unveil --help", at_least=10.0),
    harness.Ratio("model", "import diffusers' pipeline", "import unveil's model", at_least=1.0),
]

if __name__ == "__main__":
    harness.main("cli", CASES, RATIOS)
