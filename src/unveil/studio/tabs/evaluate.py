"""Evaluation: judge a model, read its report, and lay two side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.model.config import recipe_names
from unveil.server.jobs.command_job import EVALUATE
from unveil.server.jobs.job import Job
from unveil.server.jobs.sqlite_store import Part
from unveil.studio import job_html
from unveil.studio.form_parsing import filled
from unveil.studio.tab_base import Desk, Tab, Watch
from unveil.types import DataError, RecipeError

PAGE, NUMBERS = "report.html", "report.json"
REPORTS = 200  # that are listed, at most


class Judged(Watch):
    """Watches an evaluation, whose result is a report."""

    def made(self, job: Job) -> Markup:
        """The way to the report."""
        words = job_html.plain(self._tab.say("The report as a page of its own"))
        return Markup('<p><a href="{}" target="_blank" rel="noopener">{}</a></p>').format(
            job_html.address(job, PAGE), words
        )


class Evaluate(Tab):
    """The tab of reports."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "evaluate")

    def lay(self) -> None:
        """Places its parts."""
        say = self.say
        self.begin()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self.model = gr.Dropdown(self.client.models(), label=say("Model"), elem_id="evaluate-model")
                own = [(say("the model's own"), ""), *((name, name) for name in recipe_names())]
                self.recipe = gr.Dropdown(own, value="", label=say("Recipe"), elem_id="evaluate-recipe")
                self.samples = gr.Textbox(
                    label=say("Samples"), placeholder=say("as the recipe says"), elem_id="evaluate-samples"
                )
                self.changes = gr.Textbox(label=say("Changes of the recipe, a line each"), elem_id="evaluate-changes")
                self.go = gr.Button(say("Judge it"), variant="primary", elem_id="evaluate-go")
                self.watch = Judged(self, "evaluate", say("Choose a model, and judge it."))
                self.watch.lay()
            with gr.Column(scale=3, min_width=300):
                self.one = gr.Dropdown([], label=say("Report"), elem_id="evaluate-one")
                self.other = gr.Dropdown([], label=say("Beside it"), elem_id="evaluate-other")
                self.show = gr.Button(say("Show"), elem_id="evaluate-show")
                self.shown = gr.HTML(elem_id="evaluate-shown")
        self._wire()

    def _wire(self) -> None:
        asked = [self.model, self.recipe, self.samples, self.changes]
        self.watch.begins(self.go.click, self._submit, asked)
        self.on(self.watch.result.change, lambda owner: self.reports(owner), [], self.listed, asked=False)
        self.on(self.show.click, self._shown, [self.one, self.other], [self.shown])

    def _submit(self, owner: str, model: str, recipe: str, samples: str, changes: str) -> tuple[Job, list[Any]]:
        if not model:
            raise RecipeError(self.say("Choose a model first."))
        request = filled(model=model, recipe=recipe, samples=self.typed.whole(samples, self.say("Samples")))
        request["settings"] = self.typed.settings(changes, self.say("Changes of the recipe, a line each"))
        return self.client.submit(EVALUATE, request, owner), []

    # -- reports ------------------------------------------------------------------------------------------------

    @property
    def listed(self) -> list[Any]:
        """What `reports` gives values for."""
        return [self.one, self.other, self.shown]

    def reports(self, owner: str) -> list[Any]:
        """The reports that there are, the newest first."""
        part = Part(owner, REPORTS, state="completed", kind=EVALUATE)
        named = [(_named(job), job.id) for job in self.client.service.queue.page(part)[0] if PAGE in job.outputs]
        if not named:
            empty = job_html.hint(self.say("There is no report yet: judge a model."))
            return [gr.Dropdown(choices=[], value=None), gr.Dropdown(choices=[], value=None), empty]
        none = [(self.say("none"), ""), *named]
        return [gr.Dropdown(choices=named, value=named[0][1]), gr.Dropdown(choices=none, value=""), ""]

    def _shown(self, owner: str, one: str | None, other: str | None) -> Markup:
        jobs = [job for id in (one, other) if (job := self.client.job(id or None, owner)) is not None]
        if not jobs:
            raise RecipeError(self.say("Choose a report first."))
        frames = Markup("").join(
            Markup('<h3>{}</h3><iframe class="report" title="{}" src="{}"></iframe>').format(
                job_html.plain(_named(job)), job_html.plain(_named(job)), job_html.address(job, PAGE)
            )
            for job in jobs
        )
        return (self._compared(*jobs) if len(jobs) == 2 else Markup("")) + frames

    def _compared(self, one: Job, other: Job) -> Markup:
        """The numbers that both have, side by side."""
        say = self.say
        reports = [self._read(job) for job in (one, other)]
        first, second = (dict(_numbers(report.get("results", {}))) for report in reports)
        rows = [[name, _told(value), _told(second[name])] for name, value in first.items() if name in second]
        if not rows:
            return job_html.hint(say("The two reports have no number in common."))
        alike = reports[0].get("protocol_sha256") == reports[1].get("protocol_sha256")
        warned = say("The two were judged by different protocols; their numbers are not to be compared closely.")
        return (Markup("") if alike else job_html.alert(warned)) + job_html.table(
            [say("Number"), _named(one), _named(other)], rows
        )

    def _read(self, job: Job) -> Mapping[str, Any]:
        try:
            return json.loads(self.client.service.results.file(job.id, NUMBERS).read_text("utf-8"))
        except (DataError, OSError, ValueError):
            return {}

    def refreshed(self) -> list[Any]:
        """The lists of names as they are now."""
        return [gr.Dropdown(choices=self.client.models())]

    @property
    def named(self) -> list[Any]:
        """The parts that list names."""
        return [self.model]


def _named(job: Job) -> str:
    ended = datetime.fromtimestamp(job.ended or 0).strftime("%Y-%m-%d %H:%M")
    return f"{job.request.get('model', '')} {ended}"


def _numbers(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of a report with its place; one with an interval is one."""
    if isinstance(found, Mapping):
        if "value" in found and "low" in found:
            yield path, found
            return
        for key, value in found.items():
            yield from _numbers(value, f"{path} / {key}" if path else str(key))
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield path, found


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    return f"{value:.4g}"
