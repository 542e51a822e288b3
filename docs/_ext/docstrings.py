"""Lets Sphinx read docstrings that are plain text: only single backticks and indented blocks mean something in them.

Everything else that reStructuredText would take for markup (stars, bars, underscores at the end of a word) is escaped.
"""

from __future__ import annotations

import re
from itertools import groupby

from sphinx.application import Sphinx

SECTIONS = ("Args", "Attributes", "Raises", "Returns", "Source", "Sources", "Yields")
MARKUP = re.compile(r"[\\*|]|(?<=\w)_(?!\w)")
FIELD = re.compile(r"(?P<names>[a-z]\w*(, [a-z]\w*)*): (?=\S)")


def readable(lines: list[str]) -> list[str]:
    """The same docstring as reStructuredText."""
    result: list[str] = []
    lines = listed(lines)
    literal: int | None = None  # the indentation that a literal block must exceed
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is not None or not line.strip():
            result.append(line)
            continue
        text = escaped(line)
        if line.rstrip().endswith(":") and line.strip().rstrip(":") not in SECTIONS:
            following = next((later for later in lines[number + 1 :] if later.strip()), "")
            if len(following) - len(following.lstrip()) >= indent + 4:
                literal = indent
                result += [text.rstrip().rstrip(":") + "::", ""]
                continue
        result.append(text)
    return result


def listed(lines: list[str]) -> list[str]:
    """The lines with every paragraph of `name: what it is`, a line each or with a hanging indent, made a list."""
    result: list[str] = []
    for blank, group in groupby(lines, key=lambda line: not line.strip()):
        paragraph = list(group)
        starts = [line for line in paragraph if not line.startswith(" ")]
        if not blank and starts and paragraph[0] == starts[0] and all(map(FIELD.match, starts)):
            for line in paragraph:
                result.append(FIELD.sub(r"- `\g<names>`: ", line, count=1) if line in starts else f"  {line.strip()}")
        else:
            result += paragraph
    return result


def escaped(line: str) -> str:
    """The line with markup escaped outside of backticks."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(part if place % 2 else MARKUP.sub(r"\\\g<0>", part) for place, part in enumerate(parts))


def _process(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    del app, what, name, thing, options
    lines[:] = readable(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx; runs before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
