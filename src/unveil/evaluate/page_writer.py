"""Writer of all pages: blocks to a self-contained HTML page or to Markdown.

Texts are plain; `code` in backticks and **strong** words are the only markup. An HTML page contains its images; a
Markdown page links to files beside it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from PIL import Image

from unveil.evaluate.findings import Figure, Finding

_WIDE, _LARGER = 960, 4  # pixels of a page; largest enlargement of a small image
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
.remark, figcaption { color: #777; font-size: .9rem; }
.warning { border-left: 4px solid #b3261e; padding: .2rem 1rem; }
code { font-size: .85rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading below the title; `anchor` is its id in HTML."""

    text: str
    level: int = 2
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a remark is set small, a warning is marked at its side."""

    text: str
    kind: Literal["", "remark", "warning"] = ""


@dataclass(frozen=True)
class Table:
    """A table; in HTML the second of three or more columns is set as numbers, and a cell may be a figure."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Figure]]


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Contents:
    """Links to the pages of these names: a hidden table of contents of Sphinx in Markdown."""

    names: Sequence[str]


Block = Heading | Paragraph | Table | Bullets | Figure | Contents


@dataclass(frozen=True)
class Page:
    """A title and the blocks below it."""

    title: str
    blocks: Sequence[Block]


def findings_table(findings: Iterable[Finding], head: str = "95 % interval in brackets") -> Table:
    """Return a table of findings with their remarks."""
    return Table(("", head, ""), [(finding.name, finding.text, finding.remark) for finding in findings])


def bars_table(findings: Iterable[Finding]) -> list[Block]:
    """Return a section with the bars of the findings; empty if no finding has a bar."""
    rows = [
        (finding.name, finding.text, finding.bar_text, "yes" if finding.met else "no")
        for finding in findings
        if finding.bar is not None
    ]
    return [Heading("Bars"), Table(("task", "value", "bar", "met"), rows)] if rows else []


# ---------------------------------------------------------------------- HTML


def to_html(page: Page) -> str:
    """Return the page with its images inside it."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join([f"<h1>{escape(page.title)}</h1>", *map(_html, page.blocks)])
        + "\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text, level, anchor):
            name = f' id="{escape(anchor)}"' if anchor else ""
            return f"<h{level}{name}>{escape(text)}</h{level}>"
        case Paragraph(text, kind):
            style = f' class="{kind}"' if kind else ""
            return f"<p{style}>{_inline(text)}</p>"
        case Table(heads, rows):
            top = "".join(f"<th>{escape(head)}</th>" for head in heads) if any(heads) else ""
            return f"<table><tr>{top}</tr>{''.join(map(_html_row, rows))}</table>"
        case Figure(caption):
            return f"<figure>{_html_image(block)}<figcaption>{escape(caption)}</figcaption></figure>"
        case Bullets(items):
            entries = (f"<li>{_inline(item)}</li>" for item in items)
            return f"<ul>{''.join(entries)}</ul>"
        case Contents(names):
            links = (f'<li><a href="{escape(name)}.html">{escape(name)}</a></li>' for name in names)
            return f"<ul>{''.join(links)}</ul>"


def _html_row(row: Sequence[str | Figure]) -> str:
    cells = (
        f"<td{' class=number' if i == 1 and len(row) > 2 else ''}>"
        f"{_html_image(cell) if isinstance(cell, Figure) else escape(cell)}</td>"
        for i, cell in enumerate(row)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _html_image(figure: Figure) -> str:
    """Return an image tag that contains the image; a small image is enlarged."""
    image = figure.image
    with Image.open(io.BytesIO(image)) as opened:  # reads the header only
        width, kind = opened.width, str(opened.format).lower()
    factor = min(_LARGER, _WIDE // max(1, width))
    large = f' width="{factor * width}" style="image-rendering: pixelated"' if factor > 1 else ""
    data = base64.b64encode(image).decode()
    return f'<img alt="{escape(figure.alt or figure.caption)}"{large} src="data:image/{kind};base64,{data}">'


def _inline(text: str) -> str:
    strong = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escape(text))
    return re.sub(r"`(.+?)`", r"<code>\1</code>", strong)


# ---------------------------------------------------------------------- Markdown


def to_markdown(page: Page, comment: str = "") -> str:
    """Return the page below a comment; images are files in the same folder."""
    parts = [comment, f"# {page.title}", *map(_markdown, page.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Table(heads, rows):
            return markdown_table(heads, rows)
        case Figure(caption):
            return _markdown_image(block) + (f"\n\n{caption}" if caption else "")
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Contents(names):
            return "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str | Figure]]) -> str:
    """Return a table in Markdown; a bar within a cell becomes a slash."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = (_markdown_image(cell) if isinstance(cell, Figure) else cell.replace("|", "/") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _markdown_image(figure: Figure) -> str:
    return f"![{figure.alt or figure.caption}]({figure.file})"
