"""The images of the page in the guide: each tab as a wide and as a narrow browser shows it, after real work.

    python docs/screenshots.py            about three minutes; writes docs/images/studio-*.png

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
TABS = ("image", "video", "train", "models", "evaluate", "gallery", "queue")
WIDTHS = {"": 1280, "-narrow": 390}
SHOWN = 960  # px of a wide one in the guide
COLOURS = 96
PORT = 7899
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
CHANGES = "train.steps: 120\ntrain.save_every: 20\ntrain.sample_every: 20\ntrain.validate_every: 20"


def main() -> None:
    """Does some work on the page, and takes its images."""
    with tempfile.TemporaryDirectory() as place, served(Path(place)), sync_playwright() as program:
        browser = program.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"http://127.0.0.1:{PORT}/en/")
        page.wait_for_selector("#image-go")
        worked(page)
        for name, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            for tab in TABS:
                choose(page, tab)
                page.wait_for_timeout(1500)
                if tab == "evaluate":
                    page.locator("#evaluate-show").click()
                    page.set_viewport_size({"width": width, "height": 1500 if name else 1000})
                    page.wait_for_timeout(3000)
                # a report in its frame is not laid out again for an image of the whole page
                kept(page.screenshot(full_page=tab != "evaluate"), IMAGES / f"studio-{tab}{name}.png")
                page.set_viewport_size({"width": width, "height": 900})
        browser.close()


@contextmanager
def served(place: Path) -> Iterator[None]:
    """The page of a new folder, with some images to train on."""
    squares = place / "data" / "squares"
    squares.mkdir(parents=True)
    for number in range(60):
        square = torch.full((3, 16, 16), 4 * number, dtype=torch.uint8)
        square[number % 3, 4:12, 4:12] = 255
        (squares / f"{number:02d}.png").write_bytes(png(square))
    command = [sys.executable, "-m", "unveil", "studio", "--folder", "service", "--port", str(PORT), "--quiet"]
    process = subprocess.Popen(command, cwd=place, env=os.environ | {"HOME": str(place)})
    try:
        while True:
            try:
                urlopen(f"http://127.0.0.1:{PORT}/health")
                break
            except OSError:
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def worked(page: Any) -> None:
    """An image, a clip that goes on, a run, two reports."""
    page.get_by_label("What is to be seen").fill("a large blue square on green")
    page.locator("#image-go").click()
    ended(page, "image")
    choose(page, "video")
    page.get_by_label("What happens", exact=True).fill("a small red circle moves left")
    page.locator("#video-go").click()
    first = ended(page, "video")
    page.locator("#video-again").click()
    page.wait_for_selector("#video-clip video")
    page.locator("#video-go").click()
    ended(page, "video", first)
    choose(page, "train")
    listed(page, "train-folder", "squares")
    page.get_by_label("The recipe's small form, to try it").check()
    page.get_by_label("Name of the run").fill("squares")
    page.get_by_label("Changes of the recipe, a line each").fill(CHANGES)
    page.locator("#train-go").click()
    ended(page, "train")
    page.wait_for_timeout(4000)
    choose(page, "evaluate")
    listed(page, "evaluate-model", "ddpm-digits")
    listed(page, "evaluate-recipe", "ddpm-digits")
    page.get_by_label("Samples", exact=True).fill("200")
    page.locator("#evaluate-go").click()
    ended(page, "evaluate")


def choose(page: Any, tab: str) -> None:
    """Chooses a tab, wherever the page keeps it."""
    page.evaluate("tab => document.getElementById(`tab-${tab}-button`)?.click()", tab)
    if not page.locator(f"#tab-{tab}").is_visible():
        page.locator("#tabs .overflow-menu button").first.click()
        page.locator(".overflow-dropdown button", has_text=tab.capitalize()).click()
    page.wait_for_selector(f"#tab-{tab}:visible")


def listed(page: Any, part: str, name: str) -> None:
    """Chooses a name of a list."""
    page.locator(f"#{part} input").click()
    page.locator(f"#{part} input").fill(name)
    page.get_by_role("option", name=name, exact=True).first.click()


def ended(page: Any, part: str, before: str = "none") -> str:
    """Waits for another job; its name."""
    found = page.locator(f"#{part}-status [data-state=completed]:not([data-job='{before}'])")
    found.wait_for()
    return str(found.get_attribute("data-job"))


def kept(shot: bytes, path: Path) -> None:
    """Writes an image as small as it can be seen well."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    if image.width > SHOWN:
        image = image.resize((SHOWN, round(image.height * SHOWN / image.width)), Image.Resampling.LANCZOS)
    image.quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
