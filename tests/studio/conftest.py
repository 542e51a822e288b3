"""The page in a real Chromium, with a server that works in a thread with the bundled models."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from tests.server.http.conftest import Many, Server, server
from unveil.server.jobs.job_types import job_handlers
from unveil.server.jobs.worker import JobProgress
from unveil.studio.server import add_studio

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# as root in a container; without requests to other machines
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# what Gradio leaves open, and how it speaks to pandas, is not ours
_LEFT = ("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:.*no_silent_downcasting.*")
_LEFT += ("ignore:The copy keyword is deprecated.*",)
LEFT = [pytest.mark.filterwarnings(one) for one in _LEFT]
MARKS = [pytest.mark.slow, *LEFT]
LONG_MS = 90_000
VIEWPORT = {"width": 1280, "height": 900}
# Without a GPU, a frame of an image editor and a copy of a layer take 50 ms of a core each, at every poll of a job.
NOTHING_DRAWN = """
const calls = ['clear', 'drawArrays', 'drawElements', 'readPixels'];
for (const name of calls) WebGL2RenderingContext.prototype[name] = () => {};
"""
# Gradio's image editor looks for its canvas while the page closes; at any other time this error counts.
LEAVING = "Cannot read properties of undefined (reading 'canvas')"


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Collect the resources that Gradio leaves open here, where the warning is ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium. If the environment requires it, its absence is a failure and not a skip."""
    if BROWSER is None:
        if os.environ.get("UNVEIL_BROWSER") == "required":
            pytest.fail("Chromium is not installed; the page's tests need it")
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as program:
        found = program.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the folders of models and of data that the environment names."""
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        for variable, name in (("UNVEIL_MODELS", "models"), ("UNVEIL_DATA", "data")):
            (folder / name).mkdir()
            patch.setenv(variable, str(folder / name))
        yield folder


@pytest.fixture(scope="module")
def studio(places: Path) -> Iterator[Server]:
    """The server with the page."""
    folder = places / "service"
    with server(folder, limits=Many, work=job_handlers(folder, "cpu"), extend=add_studio) as found:
        yield found


@pytest.fixture(scope="session")
def window(browser: Any) -> Iterator[Any]:
    """The window of all tests that do not paint: to load the page again is twice as fast as to open a new window."""
    context = browser.new_context(viewport=VIEWPORT, accept_downloads=True)
    context.add_init_script(NOTHING_DRAWN)
    yield context.new_page()
    context.close()


@pytest.fixture
def page(window: Any, studio: Server) -> Iterator[Any]:
    """The page in English; the browser keeps nothing of an earlier test."""

    def leave() -> None:
        window.goto(f"http://127.0.0.1:{studio.port}/health")
        window.evaluate("localStorage.clear()")
        window.context.clear_cookies()
        window.set_viewport_size(VIEWPORT)

    with without_faults(window, leave):
        opened(window, studio, "en")
        yield window


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a job of many steps wait, instead of computing while the test looks at the page."""
    step = JobProgress.step

    def slow(progress: JobProgress, done: int, total: int) -> None:
        step(progress, done, total)
        time.sleep(0.05)

    monkeypatch.setattr(JobProgress, "step", slow)


@pytest.fixture
def painting_page(browser: Any, studio: Server) -> Iterator[Any]:
    """The page in English, in a fresh browser context that draws the image editors."""
    context = browser.new_context(viewport=VIEWPORT, accept_downloads=True)
    found = context.new_page()
    with without_faults(found, context.close):
        opened(found, studio, "en")
        yield found


@contextmanager
def without_faults(page: Any, leave: Callable[[], None]) -> Iterator[None]:
    """Fails if a script of the page raises, and leaves the page at the end."""
    faults: list[str] = []

    def fault(problem: Any) -> None:
        faults.append(str(problem))

    page.set_default_timeout(LONG_MS)
    page.on("pageerror", fault)
    try:
        yield
        settled(page)
        before = len(faults)
    finally:
        leave()
        page.remove_listener("pageerror", fault)
    left = [fault for number, fault in enumerate(faults) if number < before or LEAVING not in fault]
    assert not left, left


def opened(page: Any, studio: Server, language: str) -> None:
    """Opens the page and waits until it can be used."""
    page.goto(f"http://127.0.0.1:{studio.port}/{language}/")
    page.wait_for_selector("#image-go")


def settled(page: Any) -> None:
    """Waits until every image editor that is seen has been laid out.

    Gradio's editor begins its canvas when it appears and has it some time later; taken away in between, by another
    choice or with the page, it looks for the canvas of nothing and raises.
    """
    laid_out = "one => one.offsetParent === null || one.querySelector('canvas')"
    page.wait_for_function(f"[...document.querySelectorAll('[id$=-editor]')].every({laid_out})")


def chosen(page: Any, tab: str) -> None:
    """Chooses a tab."""
    page.locator(f"#tab-{tab}-button").click()
    page.wait_for_selector(f"#tab-{tab}:visible")


def ended(page: Any, part: str, state: str = "completed") -> str:
    """Waits for the job that a part of the page shows; its name."""
    found = page.locator(f"#{part}-status [data-state={state}]")
    found.wait_for()
    return str(found.get_attribute("data-job"))


def another(page: Any, part: str, before: str, state: str = "completed") -> str:
    """Waits for a job other than the one before; its name."""
    page.wait_for_function(
        "([part, old]) => document.querySelector(`#${part}-status [data-job]:not([data-job='${old}'])`)",
        arg=[part, before],
    )
    return ended(page, part, state)


def begun(page: Any, text: str, steps: int) -> None:
    """Request an image."""
    page.locator("#image-prompt textarea").fill(text)
    page.locator("#image-steps textarea, #image-steps input").fill(str(steps))
    page.get_by_role("button", name="Generate images").click()


def painted(page: Any, part: str) -> None:
    """Paint a stroke from the centre of an image editor."""
    canvas = page.locator(f"#{part}-editor canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # the editor lays out the image with a delay
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y - 40)
    page.mouse.down()
    page.mouse.move(x, y, steps=4)
    page.mouse.up()
    page.wait_for_timeout(500)  # the editor records a stroke with a delay


def picked(page: Any, part: str, name: str) -> None:
    """Chooses a name of a list, by the keyboard."""
    field = page.locator(f"#{part} input")
    field.click()
    field.fill(name)
    page.get_by_role("option", name=name, exact=True).first.click()
