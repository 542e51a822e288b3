"""The page shows the last event's result, also where the result of an earlier event arrives later."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gradio")

from tests.server.http.conftest import Many, Server, server
from tests.studio.conftest import MARKS, another, begun, chosen
from unveil.io.images import png
from unveil.server.jobs.catalog import RUNS
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.worker import JobProgress
from unveil.studio.server import add_studio
from unveil.studio.tab_base import JobWatcher
from unveil.studio.tabs.train import TrainTab

pytestmark = MARKS


class Held:
    """A place in a handler where one call waits until the test lets it go on."""

    def __init__(self) -> None:
        self.wanted, self.reached, self.released = threading.Event(), threading.Event(), threading.Event()

    def passed(self) -> None:
        if self.wanted.is_set() and not self.reached.is_set():
            self.reached.set()
            self.released.wait(60)

    def begin(self) -> None:
        """Wait until a call is held."""
        self.wanted.set()
        assert self.reached.wait(60)


@pytest.fixture(scope="module")
def go() -> Iterator[dict[str, threading.Event]]:
    """By prompt: the job of a prompt ends once its event is set."""
    events = {word: threading.Event() for word in ("first", "second", "sheets")}
    yield events
    for event in events.values():
        event.set()


@pytest.fixture(scope="module")
def studio(places: Path, go: dict[str, threading.Event]) -> Iterator[Server]:
    """A server whose jobs end when the test says so; a training writes sheets of samples until then."""
    folder = places / "service"

    def sample(request: Mapping[str, Any], out: Path, report: JobProgress) -> None:
        go[request["prompt"]].wait(60)
        (out / "seed0_00000.png").write_bytes(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))

    def train(request: Mapping[str, Any], out: Path, report: JobProgress) -> None:
        samples = folder / RUNS / request["run_name"] / "samples"
        samples.mkdir(parents=True)
        for number in range(600):
            (samples / f"{number:04d}.png").write_bytes(png(torch.zeros(3, 8, 8, dtype=torch.uint8)))
            report.step(number, 600)
            if go["sheets"].wait(0.5):
                return

    with server(folder, limits=Many, work={"sample": sample, "train": train}, extend=add_studio) as found:
        yield found


def test_a_late_look_at_an_earlier_job_does_not_hide_the_next_job(
    page: Any, go: dict[str, threading.Event], monkeypatch: pytest.MonkeyPatch
):
    held, shows = Held(), JobWatcher.shows

    def late(watch: JobWatcher, job: Job) -> list[Any]:
        if job.state == "completed":
            held.passed()
        return shows(watch, job)

    begun(page, "first", 1)
    page.wait_for_selector("#image-status [data-state=running]")
    first = str(page.locator("#image-status [data-job]").get_attribute("data-job"))
    monkeypatch.setattr(JobWatcher, "shows", late)
    held.wanted.set()
    go["first"].set()
    held.begin()  # the page looks at the job, which has ended
    begun(page, "second", 1)
    page.wait_for_selector(f"#image-status [data-job]:not([data-job='{first}'])")
    page.wait_for_timeout(1000)  # for a look at the second job, if it does not wait for the first look
    held.released.set()
    page.wait_for_timeout(1000)
    go["second"].set()
    assert another(page, "image", first) != first


def test_a_late_look_at_a_run_does_not_move_the_slider_back(
    page: Any, go: dict[str, threading.Event], monkeypatch: pytest.MonkeyPatch
):
    held, curves = Held(), TrainTab._curves

    def late(tab: TrainTab, run: Path) -> Any:
        held.passed()
        return curves(tab, run)

    def newest() -> int:
        return int(slider.get_attribute("max"))

    monkeypatch.setattr(TrainTab, "_curves", late)
    chosen(page, "train")
    page.get_by_role("button", name="Start or resume training").click()
    slider = page.locator("#train-at input[type=range]")
    page.wait_for_function("Number(document.querySelector('#train-at input[type=range]')?.max) > 1")
    before = newest()
    held.begin()  # the page looks at the run, and will move the slider to the newest samples
    slider.focus()
    slider.press("Home")
    page.wait_for_timeout(1000)  # for the chosen samples, if they do not wait for the look
    held.released.set()
    page.wait_for_function(f"Number(document.querySelector('#train-at input[type=range]').max) > {before}")
    page.wait_for_function("document.querySelector('#train-at input[type=range]').value == '0'")
    page.wait_for_function("document.querySelector('#train-samples img').alt.includes('0000')")
    later = newest()
    page.wait_for_function(f"Number(document.querySelector('#train-at input[type=range]').max) > {later}")
    assert slider.input_value() == "0"
    go["sheets"].set()


def test_no_event_reads_the_values_of_other_components(studio: Server):
    """Gradio reads the value of each component with a status: all layers of an image editor at each poll."""
    config = studio.ask("GET", "/en/config").json
    types = {part["id"]: part["type"] for part in config["components"]}
    watched = [event for event in config["dependencies"] if event["backend_fn"] and event["show_progress_on"] != []]
    # the form of the chosen task is made by Gradio's own event, which has no such option
    assert [[types[part] for part in event["outputs"]] for event in watched] == [["column"]]
