"""The page for those who use a keyboard, a screen reader or a phone: no serious fault that axe-core knows of."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("axe_playwright_python")

from tests.studio.conftest import MARKS, chosen, opened
from tests.web.conftest import Server

pytestmark = MARKS
TABS = ("picture", "video", "train", "models", "evaluate", "gallery", "queue")


def serious(page: Any, part: str) -> list[str]:
    """Faults that keep somebody out, with their places."""
    options = {"resultTypes": ["violations"]}
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=part, options=options).response["violations"]
    return [
        f"{one['id']}: {node['html'][:160]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_tab_keeps_anybody_out(page: Any, studio: Server, language: str):
    opened(page, studio, language)
    faults = []
    for tab in TABS:
        chosen(page, tab)
        for part in page.locator(f"#tab-{tab} button.label-wrap").all():  # what is folded in is looked at too
            part.click()
        page.wait_for_timeout(300)
        faults += [f"{tab}: {one}" for one in serious(page, f"#tab-{tab}")]
    faults += serious(page, "header")
    assert not faults, "\n".join(faults)


def test_what_axe_would_find_is_found(page: Any):
    page.evaluate("document.querySelector('header').insertAdjacentHTML('beforeend', '<img src=x><button></button>')")
    assert {one.partition(":")[0] for one in serious(page, "header")} == {"image-alt", "button-name"}


def test_a_picture_is_made_by_the_keyboard_alone(page: Any):
    page.locator("#picture-prompt textarea").focus()
    page.keyboard.type("a ring")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "picture-go":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#picture-status [data-state=completed]")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_reaches_beyond_the_page(page: Any, width: int):
    page.set_viewport_size({"width": width, "height": 844})
    for tab in TABS:
        listed = page.locator(f"#tab-{tab}-button")
        if not listed.is_visible():  # a narrow page keeps some in a menu
            page.locator("#tabs button.overflow-menu, #tabs .overflow-menu button").first.click()
            listed = page.locator(".overflow-dropdown button", has_text=re.compile(f"^\\s*{tab}", re.IGNORECASE))
        listed.click()
        page.wait_for_selector(f"#tab-{tab}:visible")
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
