"""Commands in a process of their own, which finds the packages of its PYTHONPATH."""

from __future__ import annotations

import json
import subprocess
import sys

# Its first argument is a list of command lines, as JSON. A form feed follows what each printed.
PROGRAM = """
import json, sys
from unveil.cli.commands import run

for words in json.loads(sys.argv[1]):
    if code := run(words):
        sys.exit(code)
    print(end="\\f", flush=True)
"""


def unveil(*words: object, code: int = 0) -> str:
    """Run one command; what it printed, or its error."""
    command = [sys.executable, "-m", "unveil", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def unveil_each(*commands: tuple[object, ...]) -> list[str]:
    """Run several commands one after the other in one process; what each printed."""
    lines = json.dumps([[*map(str, words)] for words in commands])
    done = subprocess.run([sys.executable, "-c", PROGRAM, lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *printed, rest = done.stdout.split("\f")
    assert (len(printed), rest) == (len(commands), "")
    return printed
