"""English and Chinese pages say the same: headings, blocks of code and figures in the same order."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, Block, Page, guides, name, read, translated

PAIRS = [*guides(), DOCS / "index.md"]


def code(block: Block) -> str:
    """The block without its comments, which are translated; directives (tables of contents) are not compared."""
    if block.language == "python":
        kept = [
            (kind, text)
            for kind, text, *_ in tokenize.generate_tokens(io.StringIO(block.text).readline)
            if kind not in (tokenize.COMMENT, tokenize.NL)
        ]
        return " ".join(text for _, text in kept)
    if block.language in ("bash", "yaml"):
        lines = [re.sub(r"(^|\s+)#.*$", "", line) for line in block.text.splitlines()]
        return "\n".join(line for line in lines if line)
    return block.text


def faults(english: Page, chinese: Page) -> list[str]:
    """How two pages differ."""
    found = []
    one, two = ([element for element in page.order if element[0] != "{"] for page in (english, chinese))
    if one != two:
        places = [i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b]
        at = places[0] if places else min(len(one), len(two))
        found.append(f"element {at}: {one[at : at + 2]} and {two[at : at + 2]}")
    if [h.level for h in english.headings] != [h.level for h in chinese.headings]:
        found.append("headings")
    blocks = ([block for block in page.blocks if block.language[0:1] != "{"] for page in (english, chinese))
    for mine, theirs in zip(*blocks, strict=False):
        if code(mine) != code(theirs) or mine.notes != theirs.notes:
            found.append(f"block at line {mine.line} and {theirs.line}")
    figures = [[(page.path.parent / src).resolve() for src in page.figures] for page in (english, chinese)]
    return found + ([] if figures[0] == figures[1] else ["figures"])


@pytest.mark.parametrize("path", PAIRS, ids=name)
def test_both_languages_have_the_same_structure(path: Path):
    assert not faults(read(path), read(translated(path)))


@pytest.mark.parametrize("path", PAIRS, ids=name)
def test_the_translation_is_chinese(path: Path):
    page = read(translated(path))
    assert all(re.search(r"[\u4e00-\u9fff]", h.text) or h.text in ("unveil",) for h in page.headings)


def test_no_page_is_without_its_translation():
    chinese = {path for path in (DOCS / "zh").rglob("*.md")}
    assert chinese == {translated(path) for path in PAIRS} - {translated(guides()[0])}


def test_a_difference_is_seen(tmp_path: Path):
    texts = ["# A\n\n```bash\nunveil train x  # go\n```\n", "# B\n\n```bash\nunveil train y  # los\n```\n\n## C\n"]
    pages = []
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.md").write_text(text)
        pages.append(read(tmp_path / f"{number}.md"))
    assert [fault.split(" ")[0] for fault in faults(*pages)] == ["element", "headings", "block"]
    assert not faults(pages[0], pages[0])
