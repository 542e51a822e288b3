"""The page for those who use a keyboard, a screen reader or a phone: no serious fault that axe-core knows of."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("axe_playwright_python")

from playwright.sync_api import TimeoutError as TimedOut

from tests.server.http.conftest import KEY, Many, Server, server
from tests.studio.conftest import MARKS, begun, chosen, ended, opened, settled
from unveil.server.http.middleware import SecurityPolicy
from unveil.studio.login import LoginMiddleware
from unveil.studio.server import add_studio

pytestmark = MARKS
TABS = ("image", "video", "train", "models", "evaluate", "gallery", "queue")


def serious(page: Any, part: str) -> list[str]:
    """Serious accessibility faults with their elements."""
    options = {"resultTypes": ["violations"]}
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=part, options=options).response["violations"]
    return [
        f"{one['id']}: {node['html'][:160]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def still(page: Any) -> None:
    """Wait until nothing moves or fades any more; what never ends, such as a pulse, is left out."""
    ended = "one => one.playState !== 'running' || one.effect.getComputedTiming().endTime === Infinity"
    page.wait_for_function(f"document.getAnimations().every({ended})")


@pytest.mark.parametrize("language", ["en", pytest.param("zh", marks=pytest.mark.release)])
def test_every_tab_is_accessible(page: Any, studio: Server, language: str):
    opened(page, studio, language)
    faults = []
    for tab in TABS:
        chosen(page, tab)
        for part in page.locator(f"#tab-{tab} button.label-wrap").all():  # what is folded in is looked at too
            part.click()
        page.wait_for_timeout(300)
        still(page)
        faults += [f"{tab}: {one}" for one in serious(page, f"#tab-{tab}")]
    faults += serious(page, "header")
    assert not faults, "\n".join(faults)


@pytest.mark.release
def test_every_mode_is_accessible(page: Any):
    """As above for every task of the two forms; the fields of a task differ in number and not in kind."""
    faults = []
    for tab, part in (("image", "task"), ("video", "task")):
        chosen(page, tab)
        modes = page.locator(f"#{tab}-{part} input").all()
        assert len(modes) >= 5
        for mode in modes:
            mode.check()
            if mode.input_value() in ("inpaint", "video-edit"):  # its editor comes, and may go once it is laid out
                page.locator(f"#{tab}-editor canvas").first.wait_for()
            page.wait_for_timeout(400)
            settled(page)
            still(page)
            faults += [f"{tab}, {mode.input_value()}: {one}" for one in serious(page, f"#tab-{tab}")]
    assert not faults, "\n".join(faults)


@pytest.mark.usefixtures("slow_steps")
def test_results_and_queued_jobs_are_accessible(page: Any, studio: Server):
    page.get_by_label("Number of images").fill("2")
    begun(page, "a large ring", 2)
    made = ended(page, "image")
    faults = [f"result: {one}" for one in serious(page, "#tab-image")]
    request = {"prompt": "a small ring", "seed": 0, "steps": 9_000}
    jobs = [studio.service.submit("sample", request, "", 1.0) for _ in range(2)]
    failed = studio.service.submit("sample", {"prompt": "none", "model": "no such model"}, "", 1.0)
    chosen(page, "gallery")
    page.wait_for_selector(f"#gallery-cards [data-job='{made}'] .all img:nth-child(1)")
    page.get_by_role("button", name="Delete a large ring").click()
    page.get_by_text("Delete it for good?").wait_for()
    faults += [f"gallery: {one}" for one in serious(page, "#tab-gallery")]
    chosen(page, "queue")
    page.wait_for_selector("#queue-table progress")
    faults += [f"queue, running: {one}" for one in serious(page, "#tab-queue")]
    for job in jobs:
        studio.service.queue.cancel(job.id)
    studio.until(failed.id, "failed")
    page.locator("#queue-table").get_by_text("Failed.").first.wait_for()
    page.locator(f"#queue-table button[data-job='{failed.id}']").click()
    page.wait_for_selector("#queue-detail [data-state=failed]")
    faults += [f"queue, failed: {one}" for one in serious(page, "#tab-queue")]
    page.locator(f"#queue-table button[data-job='{made}']").click()
    page.wait_for_selector("#queue-detail img")
    faults += [f"queue, shown: {one}" for one in serious(page, "#tab-queue")]
    assert not faults, "\n".join(faults)


def test_the_login_form_is_accessible(browser: Any, tmp_path: Path):
    faults = []
    with server(
        tmp_path / "keyed", SecurityPolicy({"ann": KEY}), Many, extend=add_studio, before=LoginMiddleware
    ) as keyed:
        for language in ("en", "zh"):
            context = browser.new_context(locale=language, bypass_csp=True)  # for axe, which is put into the page
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{keyed.port}/en/")
            faults += serious(page, "html")
            page.locator("input[name=key]").fill("open-sesame-open-sesame")
            page.locator("button").click()
            page.get_by_role("alert").wait_for()
            assert page.evaluate("document.documentElement.lang") == language
            faults += serious(page, "html")
            if language == "zh":
                page.locator("input[name=key]").fill(KEY)
                page.locator("button").click()
                page.wait_for_selector("#image-go")
            context.close()
    assert not faults, "\n".join(faults)


def test_axe_reports_an_inaccessible_element(page: Any):
    page.evaluate("document.querySelector('header').insertAdjacentHTML('beforeend', '<img src=x><button></button>')")
    assert {one.partition(":")[0] for one in serious(page, "header")} == {"image-alt", "button-name"}


def test_an_image_is_generated_with_the_keyboard_only(page: Any):
    page.locator("#image-prompt textarea").focus()
    page.keyboard.type("a ring")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "image-go":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#image-status [data-state=completed]")


def opened_narrow(page: Any, tab: str) -> None:
    """Chooses a tab, wherever the page keeps it: some go into a menu a moment after the page is narrowed."""
    listed = page.locator(f"#tab-{tab}-button")
    kept = page.locator(".overflow-dropdown button", has_text=re.compile(f"^\\s*{tab}", re.IGNORECASE))
    menu = page.locator("#tabs button.overflow-menu, #tabs .overflow-menu button").first
    there = page.locator(f"#tab-{tab}")
    until = time.monotonic() + 60
    while not there.is_visible():
        assert time.monotonic() < until, f"{tab} is neither among the tabs nor in the menu"
        for one in (kept, listed, menu):
            if one.is_visible():
                with contextlib.suppress(TimedOut):  # it has just been moved
                    one.click(timeout=2000)
                break
        page.wait_for_timeout(100)


def test_nothing_overflows_the_page(page: Any):
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        for tab in TABS:
            opened_narrow(page, tab)
            page.wait_for_timeout(200)
            settled(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_buttons_of_a_row_are_visible_on_a_narrow_screen(page: Any):
    page.set_viewport_size({"width": 390, "height": 844})
    opened_narrow(page, "models")
    button = page.locator("#models-table button.own").first
    button.wait_for()
    # of what lies there and is not cut off, at the place of its middle
    seen = """one => {
      const box = one.getBoundingClientRect();
      return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === one;
    }"""
    assert button.evaluate(seen)
    button.click()
    page.locator("#models-detail pre").wait_for()
