"""Parts of a self-contained HTML page: images and plots are inside it, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

_WIDE, _LARGER = 960, 4  # pixels of a page; how often a small image's own are repeated at most
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


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page; empty parts are left out."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def image(picture: bytes, words: str) -> str:
    """An image, PNG or animated WebP, with words for those who do not see it; a small one is shown larger."""
    film = picture[:4] == b"RIFF" and picture[12:16] == b"VP8X"
    width = int.from_bytes(picture[24:27], "little") + 1 if film else int.from_bytes(picture[16:20], "big")
    factor = min(_LARGER, _WIDE // max(1, width))
    large = f' width="{factor * width}" style="image-rendering: pixelated"' if factor > 1 else ""
    data = base64.b64encode(picture).decode()
    return f'<img alt="{escape(words)}"{large} src="data:image/{"webp" if film else "png"};base64,{data}">'


def figure(picture: bytes, caption: str) -> str:
    """An image with its caption."""
    return f"<figure>{image(picture, caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are plain text; the second of three or more columns holds the numbers."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads) if any(heads) else ""
    body = (
        "<tr>"
        + "".join(
            f"<td{' class=number' if i == 1 and len(row) > 2 else ''}>{escape(cell)}</td>" for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{''.join(body)}</table>"
