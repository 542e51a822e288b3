"""Every benchmark in turn, then docs/benchmarks.md from their records.

`python -m benchmarks [--short | --page] [NAME...]`

--short only compares with the records; --page only writes the page anew.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

This page is written by `make bench` from the records in `benchmarks/results`. Every case runs in a fresh process with
one compute thread; peers take turns with ours, several rounds, and a ratio is the median over the rounds of the ratio
within a round. CPU seconds are those of the process. The tests run the scripts in a short form, in which the cases
may share a process, and fail when half of a recorded gain is lost; those without a bar are run before a release.
"""


def names() -> list[str]:
    """The scripts."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("__init__", "__main__", "harness"))


def run(name: str, short: bool) -> int:
    """Runs one script; returns its exit code."""
    command = [sys.executable, str(HERE / f"{name}.py"), *(["--short"] if short else [])]
    return subprocess.run(command, check=False).returncode


def page() -> str:
    """All records as Markdown."""
    parts = [HEAD]
    for name in names():
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            parts.append(section(name, json.loads(path.read_text())))
    return "\n".join(parts)


def section(name: str, record: dict[str, Any]) -> str:
    """One record: what was measured, the ratios with their bars, the cases, the machine."""
    about = (ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or "").split("\n\n")[0]
    lines = [f"## {name}", "", " ".join(about.split()), "", "| ratio | measured | bar | goal |", "|---|---|---|---|"]
    for ratio, found in record["ratios"].items():
        words = (("at_least", "at least"), ("at_most", "at most"))
        bar = ", ".join(f"{word} {found[key]:g}" for key, word in words if key in found) or "none"
        goal = f"{found['goal']:g}" if "goal" in found else ""
        lines.append(f"| {ratio} | {found['value']:.3g} | {bar}{'' if found['ok'] else ' (missed)'} | {goal} |")
    measures = list(dict.fromkeys(key for case in record["cases"].values() for key in case))
    lines += ["", f"| case | {' | '.join(measures)} |", "|---|" + "---|" * len(measures)]
    for case, values in record["cases"].items():
        shown = [f"{values[key]:.4g}" if key in values else "" for key in measures]
        lines.append(f"| {case} | {' | '.join(shown)} |")
    machine = record["machine"]
    bf16 = ", ".join(machine["bf16"]) or "no bf16"
    lines += [
        "",
        f"{machine['processor']}, {machine['cores']} cores, {bf16}; {machine['threads']} thread; "
        f"load {machine['load']}; Python {machine['python']}, torch {machine['torch']}; "
        f"{record['rounds']} rounds, {record['date']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all when left out")
    parser.add_argument("--short", action="store_true", help="one quick round, compared with the records")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(names()))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}")
    missed = [] if given.page else [name for name in given.names or names() if run(name, given.short)]
    if not given.short:
        part = PAGE.with_suffix(".part")
        part.write_text(page(), encoding="utf-8")
        os.replace(part, PAGE)
        print(PAGE)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
