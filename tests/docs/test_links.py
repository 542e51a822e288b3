"""Links inside the project lead somewhere."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.pages import ROOT, name, read, slug, written


def broken(path: Path) -> list[str]:
    """The links and figures of a page that lead nowhere."""
    page, wrong = read(path), []
    for link in [*page.links, *page.figures]:
        if "://" in link or link.startswith("mailto:"):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = (path.parent / place).resolve() if place else path
        there = target.exists() and (not place or ROOT in target.parents)
        if not there or (anchor and anchor not in [slug(heading.text) for heading in read(target).headings]):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", written(), ids=name)
def test_links_resolve(path: Path):
    assert not broken(path)


def test_a_broken_link_is_seen(tmp_path: Path):
    page = tmp_path / "page.md"
    links = "[a](there.md) [b](#here) [c](#nowhere) [d](https://example.org) [e](#\u8fd9\u91cc)"
    page.write_text(f"# Here\n\n{links}\n\n## \u8fd9\u91cc\n", "utf-8")
    assert broken(page) == ["there.md", "#nowhere"]
