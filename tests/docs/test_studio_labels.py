"""The guides of the studio name buttons and fields as the page labels them."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.rules.source import PACKAGE, ROOT

CATALOGUES = [PACKAGE / "studio" / name for name in ("chinese.yaml", "chinese_tasks.yaml")]  # of the page, of tasks
LABELS: dict[str, str] = {}
for catalogue in CATALOGUES:
    LABELS |= yaml.safe_load(catalogue.read_text("utf-8"))
ITALIC, QUOTED = r"(?<![*\w])\*([^*\n]+)\*(?!\*)", "\u201c([^\u201d\n]+)\u201d"


@pytest.mark.parametrize(
    ("page", "quotation", "labels"),
    [
        ("docs/howto/studio.md", ITALIC, set(LABELS)),
        ("docs/zh/howto/studio.md", QUOTED, set(LABELS.values())),
    ],
)
def test_labels_of_the_guide_are_those_of_the_page(page: str, quotation: str, labels: set[str]):
    named = re.findall(quotation, (ROOT / page).read_text("utf-8"))
    assert len(named) > 15
    assert [label for label in named if label not in labels] == []


def test_labels_of_the_screenshots_are_those_of_the_page():
    """The script finds fields by their labels and tabs by their titles; it is too slow to run in a test."""
    script = (ROOT / "docs/screenshots.py").read_text("utf-8")
    fields = re.findall(r'get_by_label\("([^"]+)"', script)
    titles = re.findall(r'"[a-z]+": "([^"]+)"', script.split("TABS = {")[1].split("}")[0])
    assert len(fields) > 3
    assert len(titles) == 8
    assert [label for label in [*fields, *titles] if label not in LABELS] == []


def test_a_label_has_one_chinese_term_on_the_whole_page():
    page, tasks = (yaml.safe_load(catalogue.read_text("utf-8")) for catalogue in CATALOGUES)
    different = {
        label: (page[label], tasks[label]) for label in page.keys() & tasks.keys() if page[label] != tasks[label]
    }
    assert different == {
        "Source": ("来源", "源文件")
    }  # a column of the table of models, and the file that is converted
