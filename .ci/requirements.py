"""Prints what the project and some of its extras require, one requirement per line, as pyproject.toml states it.

`pip install --require-hashes` takes no folder of sources: it has no hash. So the packages that the project needs are
installed by this list, and the project itself after them, without its dependencies.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """Return the requirements of a project and of extras, with extras that consist of others resolved.

    Raises:
        SystemExit: The project has no such extra.
    """
    own = re.compile(rf"{re.escape(project['name'])}\[(.*)\]$")
    lines = {line: None for line in project["dependencies"]}
    waiting = list(extras)
    while waiting:
        extra = waiting.pop(0)
        if extra not in project["optional-dependencies"]:
            raise SystemExit(f"{extra}: no such extra; there are {', '.join(project['optional-dependencies'])}")
        for line in project["optional-dependencies"][extra]:
            if others := own.match(line):
                waiting += others[1].split(",")
            else:
                lines[line] = None
    return list(lines)


if __name__ == "__main__":
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    tools = [*table["build-system"]["requires"], "editables"]  # the backend needs the second for `pip install -e`
    print("\n".join([*tools, *requirements(table["project"], sys.argv[1:])]))
