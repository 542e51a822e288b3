"""Training on the page: from a folder to a model, stopped and resumed on the way; and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gradio")

from tests.server.http.conftest import Server
from tests.studio.conftest import MARKS, another, chosen, ended, picked
from unveil.io.images import png

pytestmark = MARKS
CHANGES = """train.steps: 90000
train.save_every: 20
train.sample_every: 40
"""


@pytest.fixture(scope="module")
def folder(places: Path) -> str:
    """Twenty squares of grey."""
    made = places / "data" / "squares"
    made.mkdir()
    for number in range(20):
        image = torch.full((3, 16, 16), 12 * number, dtype=torch.uint8)
        image[:, 4:12, 4:12] = 255
        (made / f"{number:02d}.png").write_bytes(png(image))
    return made.name


def shown_steps(page: Any) -> int:
    return int(page.locator("#train-curves [data-steps]").get_attribute("data-steps"))


def test_a_model_is_trained_on_a_folder_sampled_and_evaluated(page: Any, studio: Server, folder: str, places: Path):
    chosen(page, "train")
    picked(page, "train-folder", folder)
    page.get_by_role("button", name="Check the data").click()
    looked = ended(page, "prepare")
    page.locator("#prepare-result pre").get_by_text("20").first.wait_for()
    page.get_by_role("button", name="Write captions").click()
    another(page, "prepare", looked)
    assert len((places / "data" / folder / "metadata.jsonl").read_text().splitlines()) == 20

    assert page.locator("#train-recipe input").input_value() == "own-images"
    page.get_by_label("Smoke test (the recipe's small form)").check()
    page.locator("#train-delay .message").get_by_text("wait until this one ends").wait_for()  # before it starts
    page.get_by_label("Run name").fill("squares")
    page.get_by_label("Recipe overrides, one per line").fill(CHANGES)
    page.get_by_role("button", name="Start or resume training").click()
    page.wait_for_selector("#train-curves [data-steps]")
    seen = shown_steps(page)
    page.wait_for_function(
        "old => Number(document.querySelector('#train-curves [data-steps]').dataset.steps) > old", arg=seen
    )
    page.wait_for_selector("#train-samples img")
    page.locator("#train-cancel").click()
    stopped = ended(page, "train", "cancelled")

    page.get_by_role("button", name="Start or resume training").click()
    page.wait_for_selector(f"#train-status [data-state=running]:not([data-job='{stopped}'])")
    page.wait_for_function(
        "old => Number(document.querySelector('#train-curves [data-steps]').dataset.steps) > old + 20", arg=seen
    )
    page.locator("#train-cancel").click()
    again = another(page, "train", stopped, "cancelled")
    assert again != stopped

    page.get_by_role("button", name="Use this model").click()
    page.wait_for_selector("#tab-image:visible")
    page.get_by_role("button", name="Generate images").click()
    id = ended(page, "image")
    assert studio.service.queue.get(id).request["model"] == "squares"
