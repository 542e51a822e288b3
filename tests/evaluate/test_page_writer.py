"""One page gives HTML and Markdown; findings state value, interval and bar alike everywhere."""

from __future__ import annotations

import re

import pytest
import torch

from unveil.evaluate.findings import Figure, Finding
from unveil.evaluate.page_writer import (
    Bullets,
    Contents,
    Heading,
    Page,
    Paragraph,
    Table,
    bars_table,
    findings_table,
    to_html,
    to_markdown,
)
from unveil.evaluate.plots import animated_sheet, make_grid

ERROR = Finding("error", 3.0, 2.5, 3.5, unit="px", bar=4.0, rule="at most", ceiling=1.0, remark="lower is better")
SHARE = Finding("share", 0.5, 0.25, 0.75, unit="%", bar=0.9, ceiling=0.6)


def test_a_finding_states_value_interval_and_bar():
    assert ERROR.text == "3.00 px (2.50 to 3.50)"
    assert ERROR.line == "error: 3.00 px (2.50 to 3.50), bar at most 4.00 px met"
    assert SHARE.line == "share: 50.0% (25.0% to 75.0%), bar at least 90.0% not met"
    assert Finding("count", 12, form="d", note=" values").text == "12 values"
    assert Finding("free", 1.0).met is None


def test_a_finding_is_worse_than_its_ceiling_by_its_whole_interval():
    assert ERROR.is_worse_than_ceiling
    assert not SHARE.is_worse_than_ceiling
    assert not Finding("alone", 0.1, ceiling=1.0).is_worse_than_ceiling
    both = [Finding("alike", value, value, value, rule="like", ceiling=1.0) for value in (0.5, 1.0, 1.5)]
    assert [finding.is_worse_than_ceiling for finding in both] == [True, False, True]


@pytest.fixture
def page() -> Page:
    image = make_grid(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), 2)
    return Page(
        "A & B",
        [
            Paragraph("Protocol `<now>` is **new**."),
            *bars_table([ERROR, SHARE, Finding("free", 1.0)]),
            findings_table([ERROR]),
            Heading("Images", anchor="images"),
            Figure("Two images", image, "two.png"),
            Table(("", ""), [("a|b", Figure("beside", image, "beside.png"))]),
            Bullets(["first", "second"]),
            Contents(["other"]),
        ],
    )


def test_html_contains_everything_and_escapes_it(page):
    html = to_html(page)
    assert "<h1>A &amp; B</h1>" in html
    assert "Protocol <code>&lt;now&gt;</code> is <strong>new</strong>." in html
    assert "<td>error</td><td class=number>3.00 px (2.50 to 3.50)</td><td>at most 4.00 px</td><td>yes</td>" in html
    assert html.count("data:image/png;base64,") == 2
    assert '<h2 id="images">' in html
    assert "free" not in html
    assert "<li>first</li>" in html


@pytest.mark.parametrize("still", [False, True])
def test_an_animation_is_shown_at_its_width_even_if_all_frames_are_equal(still: bool):
    videos = torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8)
    videos[:, :, 1:] += 0 if still else 200
    html = to_html(Page("A", [Figure("one", animated_sheet(videos, 8.0))]))
    assert html.count("data:image/webp;base64,") == 1
    assert re.search(r'width="(\d+)"', html)[1] == "96"


def test_markdown_links_to_files(page):
    text = to_markdown(page, "<!-- comment -->")
    assert text.startswith("<!-- comment -->\n\n# A & B\n\nProtocol `<now>` is **new**.\n\n## Bars\n\n| task |")
    assert "![Two images](two.png)\n\nTwo images" in text
    assert "| a/b | ![beside](beside.png) |" in text
    assert "- first\n- second" in text
    assert text.endswith("```{toctree}\n:hidden:\n\nother\n```\n")
