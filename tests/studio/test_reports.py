"""Evaluation, two reports side by side, and import and export of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import expect

from tests.checkpoints import tiny_sd
from tests.server.http.conftest import Server
from tests.studio.conftest import LONG_MS, MARKS, another, chosen, ended, picked
from unveil.io.files import write_tensors

pytestmark = MARKS


def test_two_reports_stand_side_by_side(page: Any, studio: Server):
    chosen(page, "evaluate")
    page.get_by_text("No report exists yet: evaluate a model.").wait_for()
    picked(page, "evaluate-model", "ddpm-digits")
    picked(page, "evaluate-recipe", "ddpm-digits")
    page.get_by_label("Samples", exact=True).fill("40")
    page.get_by_role("button", name="Evaluate the model").click()
    one = ended(page, "evaluate")
    page.get_by_label("Samples", exact=True).fill("60")
    page.get_by_role("button", name="Evaluate the model").click()
    another(page, "evaluate", one)
    page.locator("#evaluate-other input").click()
    expect(page.get_by_role("option")).to_have_count(3, timeout=LONG_MS)  # the new list, which resets the choice
    page.get_by_role("option").nth(2).click()
    page.locator("#evaluate-show").click()
    page.locator("#evaluate-shown table").wait_for()
    assert page.locator("#evaluate-shown tbody tr").count() > 3
    page.locator("#evaluate-shown").get_by_text("different protocols").wait_for()  # 40 samples and 60
    frames = page.locator("#evaluate-shown iframe")
    assert frames.count() == 2
    frames.first.content_frame.locator("h1").wait_for()


def test_a_file_is_imported_and_exported_in_another_format(page: Any, places: Path, tmp_path: Path):
    write_tensors(tmp_path / "style.safetensors", tiny_sd.lora())
    tiny_sd.pipeline().save_pretrained(places / "models" / "checkpoints" / "tiny")
    chosen(page, "models")
    page.get_by_role("button", name="Import a file").click()
    page.locator("#models-file input[type=file]").set_input_files(tmp_path / "style.safetensors")
    page.locator("#models-file").get_by_text("style").first.wait_for()
    page.get_by_label("LoRA", exact=True).check()
    page.get_by_role("button", name="Import", exact=True).click()
    page.locator("#models-table").get_by_text("style").first.wait_for()
    page.get_by_role("status").get_by_text("style.safetensors was imported: a LoRA.").wait_for()
    there = places / "models" / "loras" / "style.safetensors"
    assert there.read_bytes() == (tmp_path / "style.safetensors").read_bytes()

    page.get_by_role("button", name="Convert to another format").click()
    picked(page, "models-source", "tiny")
    page.get_by_label("ldm", exact=True).check()
    page.get_by_label("Output name").fill("one-file")
    page.get_by_role("button", name="Convert", exact=True).click()
    ended(page, "convert")
    assert (places / "models" / "checkpoints" / "one-file.safetensors").is_file()
    page.get_by_role("button", name="Convert", exact=True).click()
    page.get_by_role("alert").get_by_text("is in the models folder already").wait_for()
