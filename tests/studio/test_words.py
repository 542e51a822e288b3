"""The page says all that it says in two languages, from one catalogue."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import unveil
from unveil.studio.words import CHINESE, Say

STUDIO = Path(unveil.__file__).parent / "studio"


def said() -> set[str]:
    """What the modules of the page say."""
    found = set()
    for path in STUDIO.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name in ("say", "_say"):
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}: words that are made up"
                found.add(node.args[0].value)
    return found


def test_the_catalogue_has_all_that_is_said_and_nothing_else():
    assert said() == CHINESE.keys()


@pytest.mark.parametrize("text", sorted(CHINESE))
def test_both_languages_have_the_same_places(text: str):
    places = re.compile(r"\{(\w+)\}")
    assert sorted(places.findall(text)) == sorted(places.findall(CHINESE[text]))


def test_what_the_catalogue_lacks_is_a_fault():
    assert Say("zh")("Cancel") == "取消"
    with pytest.raises(KeyError):
        Say("zh")("nothing of ours")
