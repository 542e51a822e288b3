"""Evaluation tab: evaluate a model, read its report, and compare two reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.errors import DataError, RecipeError
from unveil.model.config import recipe_names
from unveil.server.jobs.job_table import Job, PageQuery
from unveil.studio import job_html
from unveil.studio.form_parsing import non_empty
from unveil.studio.tab_base import JobWatcher, Tab, TabContext
from unveil.tasks.evaluate import Evaluate

PAGE, NUMBERS = "report.html", "report.json"
REPORTS = 200  # maximum number of listed reports


class ReportWatcher(JobWatcher):
    """Watches an evaluation, whose result is a report."""

    def result_html(self, job: Job) -> Markup:
        """Return a link to the report."""
        words = job_html.safe_text(self._tab.tr("Open the report as a separate page"))
        return Markup('<p><a href="{}" target="_blank" rel="noopener">{}</a></p>').format(
            job_html.file_url(job, PAGE), words
        )


class EvaluateTab(Tab):
    """Tab of evaluations."""

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "evaluate")

    def build(self) -> None:
        """Create the components."""
        tr = self.tr
        self.begin()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self.model = gr.Dropdown(self.client.models(), label=tr("Model"), elem_id="evaluate-model")
                recipes = [(tr("model default"), ""), *((name, name) for name in recipe_names())]
                self.recipe = gr.Dropdown(recipes, value="", label=tr("Recipe"), elem_id="evaluate-recipe")
                self.samples = gr.Textbox(
                    label=tr("Samples"), placeholder=tr("recipe default"), elem_id="evaluate-samples"
                )
                self.changes = gr.Textbox(label=tr("Recipe overrides, one per line"), elem_id="evaluate-changes")
                self.go = gr.Button(tr("Evaluate the model"), variant="primary", elem_id="evaluate-go")
                self.watch = ReportWatcher(self, "evaluate", tr("Choose a model and evaluate it."))
                self.watch.build()
            with gr.Column(scale=3, min_width=300):
                self.report = gr.Dropdown([], label=tr("Report"), elem_id="evaluate-report")
                self.compared = gr.Dropdown([], label=tr("Compare with"), elem_id="evaluate-other")
                self.show = gr.Button(tr("Show"), elem_id="evaluate-show")
                self.shown = gr.HTML(elem_id="evaluate-shown")
        self._connect()

    def _connect(self) -> None:
        inputs = [self.model, self.recipe, self.samples, self.changes]
        self.watch.begins(self.go.click, self._submit, inputs)
        self.on(self.watch.result.change, lambda owner: self.reports(owner), [], self.listed, by_user=False)
        self.on(self.show.click, self._shown, [self.report, self.compared], [self.shown])

    def _submit(self, owner: str, model: str, recipe: str, samples: str, changes: str) -> tuple[Job, list[Any]]:
        if not model:
            raise RecipeError(self.tr("Choose a model first."))
        request = non_empty(model=model, recipe=recipe, num_samples=self.typed.integer(samples, self.tr("Samples")))
        request["settings"] = self.typed.settings(changes, self.tr("Recipe overrides, one per line"))
        return self.client.submit(Evaluate.name, request, owner), []

    # -- reports ------------------------------------------------------------------------------------------------

    @property
    def listed(self) -> list[Any]:
        """Components that `reports` updates."""
        return [self.report, self.compared, self.shown]

    def reports(self, owner: str) -> list[Any]:
        """List the reports, newest first."""
        part = PageQuery(owner, REPORTS, state="completed", kinds=(Evaluate.name,))
        named = [(_named(job), job.id) for job in self.client.service.queue.page(part)[0] if PAGE in job.outputs]
        if not named:
            empty = job_html.hint(self.tr("No report exists yet: evaluate a model."))
            return [gr.Dropdown(choices=[], value=None), gr.Dropdown(choices=[], value=None), empty]
        none = [(self.tr("none"), ""), *named]
        return [gr.Dropdown(choices=named, value=named[0][1]), gr.Dropdown(choices=none, value=""), ""]

    def _shown(self, owner: str, first_id: str | None, second_id: str | None) -> Markup:
        jobs = [job for id in (first_id, second_id) if (job := self.client.job(id or None, owner)) is not None]
        if not jobs:
            raise RecipeError(self.tr("Choose a report first."))
        frames = Markup("").join(
            Markup('<h3>{}</h3><iframe class="report" title="{}" src="{}"></iframe>').format(
                job_html.safe_text(_named(job)), job_html.safe_text(_named(job)), job_html.file_url(job, PAGE)
            )
            for job in jobs
        )
        return (self._compared(*jobs) if len(jobs) == 2 else Markup("")) + frames

    def _compared(self, job: Job, other: Job) -> Markup:
        """Return a table of the metrics that both reports have."""
        tr = self.tr
        reports = [self._read(item) for item in (job, other)]
        first, second = (dict(_numbers(report.get("results", {}))) for report in reports)
        rows = [[name, _formatted(value), _formatted(second[name])] for name, value in first.items() if name in second]
        if not rows:
            return job_html.hint(tr("The two reports have no metric in common."))
        alike = reports[0].get("protocol_sha256") == reports[1].get("protocol_sha256")
        warned = tr("The two reports use different protocols; their numbers are not directly comparable.")
        return (Markup("") if alike else job_html.alert(warned)) + job_html.table(
            [tr("Metric"), _named(job), _named(other)], rows
        )

    def _read(self, job: Job) -> Mapping[str, Any]:
        try:
            return json.loads(self.client.service.results.file(job.id, NUMBERS).read_text("utf-8"))
        except (DataError, OSError, ValueError):
            return {}

    def refreshed(self) -> list[Any]:
        """Return the current lists of names."""
        return [gr.Dropdown(choices=self.client.models())]

    @property
    def named(self) -> list[Any]:
        """Components that list names."""
        return [self.model]


def _named(job: Job) -> str:
    ended = datetime.fromtimestamp(job.ended or 0).strftime("%Y-%m-%d %H:%M")
    return f"{job.request.get('model', '')} {ended}"


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number of a report with its path; a number with a confidence interval is one entry."""
    if isinstance(node, Mapping):
        if "value" in node and "low" in node:
            yield path, node
            return
        for key, value in node.items():
            yield from _numbers(value, f"{path} / {key}" if path else str(key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, node


def _formatted(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['value']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    return f"{value:.4g}"
