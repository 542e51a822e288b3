"""The project's pages, taken apart: headings, blocks of code, figures and links.

A comment before a block tells the tests something that a reader need not see:

    <!-- test: given NAMES -->          files that stand in for published ones are there, see `stand_ins.py`
    <!-- test: write NAME -->           the block is the content of this file
    <!-- test: add WORDS -->            words that every command of the block gets, to make it short
    <!-- test: replace OLD with NEW --> the same for a program
    <!-- test: exit CODE -->            the last command of the block fails in this way
    <!-- test: printed -->              the commands before printed this
    <!-- test: not run, REASON -->      the block is shown only
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = ("reproductions", "results", "_build")
NOTE = re.compile(r"<!-- test: (.+?) -->")


class Block(NamedTuple):
    """A fenced block: its language or directive, its text, the line it begins at, and notes for the tests."""

    language: str
    text: str
    line: int
    notes: tuple[str, ...]

    def note(self, name: str) -> str | None:
        """What the note of this name says, None without one."""
        found = [note.removeprefix(name).strip(" ,") for note in self.notes if note.startswith(name)]
        return found[0] if found else None


class Heading(NamedTuple):
    level: int
    text: str


class Page(NamedTuple):
    """A page, in the order it is read."""

    path: Path
    headings: list[Heading]
    blocks: list[Block]
    figures: list[str]
    links: list[str]
    order: list[str]  # of all of these: "h2", "python", "figure"


def written() -> list[Path]:
    """Every page that people wrote."""
    beside = [ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    inside = [path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in GENERATED]
    return beside + inside


def guides() -> list[Path]:
    """The pages whose blocks are run: the README, the quick start, the how-tos and the questions."""
    return [ROOT / "README.md", DOCS / "quickstart.md", *sorted((DOCS / "howto").glob("*.md")), DOCS / "errors.md"]


def translated(path: Path) -> Path:
    """The Chinese page of an English one."""
    return ROOT / "README.zh.md" if path == ROOT / "README.md" else DOCS / "zh" / path.relative_to(DOCS)


@cache
def read(path: Path) -> Page:
    """The page at a path."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text("utf-8"))
    page = Page(path, [], [], [], [], [])
    notes: list[str] = []
    for place, token in enumerate(tokens):
        if token.type == "html_block":
            notes += NOTE.findall(token.content)
        elif token.type == "heading_open":
            page.headings.append(Heading(int(token.tag[1]), tokens[place + 1].content))
            page.order.append(token.tag)
        elif token.type == "fence":
            line = (token.map or [0])[0] + 1
            page.blocks.append(Block(token.info.strip(), token.content, line, tuple(notes)))
            page.order.append(token.info.strip())
            notes = []
        for inner in _inline(token):
            if inner.type == "image":
                page.figures.append(str(inner.attrs["src"]))
                page.order.append("figure")
            elif inner.type == "link_open":
                page.links.append(str(inner.attrs["href"]))
    assert not notes, f"{path}: a note without a block: {notes}"
    return page


def slug(heading: str) -> str:
    """The anchor that GitHub and MyST give a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _inline(token: Token) -> Iterator[Token]:
    for child in token.children or []:
        yield child
        yield from _inline(child)
