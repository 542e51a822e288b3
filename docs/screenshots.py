"""Screenshots of the studio for its guide: each tab in a wide browser, two in a narrow one, with results of real jobs.

    python docs/screenshots.py            about five minutes; writes docs/images/studio-*.png

It needs Chromium with a font for Chinese, and the extra `studio` with playwright.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from PIL import Image
from playwright.sync_api import sync_playwright

from unveil.io.images import png

IMAGES = Path(__file__).parent / "images"
TABS = {  # key of the tab: its title
    "image": "Image", "video": "Video", "tasks": "All tasks", "train": "Train",
    "models": "Models", "evaluate": "Evaluate", "gallery": "Gallery", "queue": "Queue",
}  # fmt: skip
WIDE, NARROW = 1280, 390  # pixels
NARROW_TABS = ("image", "gallery")
MAX_WIDTH = 960  # pixels of a screenshot in the guide
COLOURS = 96
PORT = 7899
# Chromium in a container, as root, without requests to other machines
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
OVERRIDES = (
    "train.steps: 1500\ntrain.save_every: 300\ntrain.sample_every: 300\ntrain.validate_every: 150\nsample.steps: 25"
)


def main() -> None:
    """Run jobs on the page, then write a screenshot of each tab at each width."""
    with tempfile.TemporaryDirectory() as folder, studio(Path(folder)), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        context = browser.new_context(viewport={"width": WIDE, "height": 900})
        page = context.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"http://127.0.0.1:{PORT}/en/")
        page.wait_for_selector("#image-go")
        run_jobs(page)
        for tab in TABS:
            open_tab(page, tab)
            page.wait_for_timeout(1500)
            if tab == "evaluate":
                page.locator("#evaluate-show").click()
                page.set_viewport_size({"width": WIDE, "height": 1000})
                page.wait_for_timeout(3000)
            # The frame of a report keeps its layout only in a screenshot of the viewport; the form of a task is long.
            save(page.screenshot(full_page=tab not in ("evaluate", "tasks")), IMAGES / f"studio-{tab}.png")
            page.set_viewport_size({"width": WIDE, "height": 900})
        page.set_viewport_size({"width": NARROW, "height": 900})
        for tab in NARROW_TABS:
            open_tab(page, tab)
            page.wait_for_timeout(1500)
            save(page.screenshot(full_page=True), IMAGES / f"studio-{tab}-narrow.png")
        browser.close()


@contextmanager
def studio(folder: Path) -> Iterator[None]:
    """Serve the studio in a new folder with images to train on."""
    squares = folder / "data" / "squares"
    squares.mkdir(parents=True)
    for number in range(60):
        square = torch.full((3, 16, 16), 4 * number, dtype=torch.uint8)
        square[number % 3, 4:12, 4:12] = 255
        (squares / f"{number:02d}.png").write_bytes(png(square))
    command = [sys.executable, "-m", "unveil", "studio", "--state-dir", "service", "--port", str(PORT), "--quiet"]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | {"HOME": str(folder)})
    try:
        while True:
            try:
                urlopen(f"http://127.0.0.1:{PORT}/health")
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"unveil studio ended with exit code {process.returncode}") from None
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def run_jobs(page: Any) -> None:
    """Generate an image and a video, extend the video, train a model and evaluate another one."""
    page.locator("#image-prompt textarea").fill("a large blue square on green")
    page.locator("#image-go").click()
    wait_for_job(page, "image")
    open_tab(page, "video")
    page.locator("#video-prompt textarea").fill("a small red circle moves left")
    page.locator("#video-go").click()
    first = wait_for_job(page, "video")
    page.locator("#video-again").click()
    page.wait_for_selector("#video-clip video")
    page.locator("#video-go").click()
    wait_for_job(page, "video", first)
    open_tab(page, "train")
    select(page, "train-folder", "squares")
    page.get_by_label("Smoke test (the recipe's small form)").check()
    page.get_by_label("Run name").fill("squares")
    page.get_by_label("Recipe overrides, one per line").fill(OVERRIDES)
    page.locator("#train-go").click()
    wait_for_job(page, "train")
    page.wait_for_timeout(4000)
    open_tab(page, "evaluate")
    select(page, "evaluate-model", "ddpm-digits")
    select(page, "evaluate-recipe", "ddpm-digits")
    page.get_by_label("Samples", exact=True).fill("200")
    page.locator("#evaluate-go").click()
    wait_for_job(page, "evaluate")


def open_tab(page: Any, tab: str) -> None:
    """Open a tab, also one that a narrow page moves into the overflow menu."""
    page.evaluate("tab => document.getElementById(`tab-${tab}-button`)?.click()", tab)
    if not page.locator(f"#tab-{tab}").is_visible():
        page.locator("#tabs button.overflow-menu, #tabs .overflow-menu button").first.click()
        page.locator(".overflow-dropdown button", has_text=TABS[tab]).click()
    page.wait_for_selector(f"#tab-{tab}:visible")


def select(page: Any, field: str, option: str) -> None:
    """Select an option of a dropdown."""
    page.locator(f"#{field} input").click()
    page.locator(f"#{field} input").fill(option)
    page.get_by_role("option", name=option, exact=True).first.click()


def wait_for_job(page: Any, tab: str, previous: str = "none") -> str:
    """Wait for the tab's next job and return its id."""
    status = page.locator(f"#{tab}-status [data-state=completed]:not([data-job='{previous}'])")
    status.wait_for()
    return str(status.get_attribute("data-job"))


def save(screenshot: bytes, path: Path) -> None:
    """Write a screenshot as a small PNG with a palette."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    if image.width > MAX_WIDTH:
        image = image.resize((MAX_WIDTH, round(image.height * MAX_WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
