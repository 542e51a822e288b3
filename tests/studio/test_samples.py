"""Watching a training: earlier samples are shown while it runs, and the page is reloaded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gradio")

from tests.server.http.conftest import Many, Server, server
from tests.studio.conftest import MARKS, chosen, ended
from unveil.io.images import png
from unveil.server.jobs.catalog import RUNS
from unveil.server.jobs.worker import JobProgress
from unveil.studio.server import add_studio

pytestmark = MARKS
EVERY_S = 1.0


@pytest.fixture(scope="module")
def studio(places: Path) -> Iterator[Server]:
    """A server where a training writes a sheet of samples every second, until it is cancelled."""
    folder = places / "service"

    def train(request: Mapping[str, Any], out: Path, report: JobProgress) -> None:
        samples = folder / RUNS / request["run_name"] / "samples"
        samples.mkdir(parents=True)
        for number in range(600):
            (samples / f"{number:04d}.png").write_bytes(png(torch.full((3, 8, 8), number % 256, dtype=torch.uint8)))
            report.step(number, 600)
            time.sleep(EVERY_S)

    with server(folder, limits=Many, work={"train": train}, extend=add_studio) as found:
        yield found


def grown(page: Any, beyond: int) -> int:
    """The number of the last sheet, once it is a later one."""
    page.wait_for_function(
        "least => Number(document.querySelector('#train-at input[type=range]')?.max) > least", arg=beyond
    )
    return int(page.locator("#train-at input[type=range]").get_attribute("max"))


def shown(page: Any, number: str) -> None:
    page.wait_for_function("text => document.querySelector('#train-samples img')?.alt.includes(text)", arg=number)


def test_earlier_samples_stay_in_sight_and_the_run_is_found_again(page: Any, studio: Server):
    chosen(page, "train")
    page.get_by_label("Run name").fill("squares-2")
    page.get_by_label("Recipe overrides, one per line").fill("train.steps: 600")
    page.get_by_role("button", name="Start or resume training").click()
    last = grown(page, 3)
    slider = page.locator("#train-at input[type=range]")
    page.wait_for_function(  # it goes with the newest
        "least => Number(document.querySelector('#train-at input[type=range]').value) >= least", arg=last
    )

    slider.focus()
    slider.press("Home")
    shown(page, "0000")
    last = grown(page, grown(page, last))  # two looks later
    shown(page, "0000")
    assert slider.input_value() == "0"
    slider.press("End")
    page.wait_for_function(
        "least => Number(document.querySelector('#train-at input[type=range]').value) > least", arg=last
    )

    page.reload()
    chosen(page, "train")
    page.wait_for_selector("#train-status [data-state=running]")
    assert page.get_by_label("Run name").input_value() == "squares-2"
    assert page.get_by_label("Recipe overrides, one per line").input_value().strip() == "train.steps: 600"
    grown(page, last)
    page.locator("#train-cancel").click()
    ended(page, "train", "cancelled")
