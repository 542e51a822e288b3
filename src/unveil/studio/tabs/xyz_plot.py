"""X/Y/Z plot: images of the same seed for all combinations of samplers, steps and guidance scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

from unveil.core.samplers import sampler_specs
from unveil.errors import RecipeError
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.outputs import image_files
from unveil.studio import job_html
from unveil.studio.error_messages import failure_text
from unveil.studio.tab_base import POLL_S, Tab

MAX_CELLS = 24  # images per plot


class Axes(NamedTuple):
    """Values of the three axes; None stands for the model's default."""

    samplers: list[str | None]
    steps: list[int | None]
    scales: list[float | None]


class XyzPlot:
    """X/Y/Z plot, as a part of a tab.

    Args:
        tab: Tab that contains it.
        request: Builds the common request from the field values of the tab.
    """

    def __init__(self, tab: Tab, request: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self._tab, self._request = tab, request

    def build(self) -> None:
        """Create the components."""
        tr = self._tab.tr
        self.browser_state = gr.BrowserState({}, storage_key="unveil-grid", secret="unveil")
        with gr.Accordion(tr("X/Y/Z plot of samplers, steps and guidance scales"), open=False, elem_id="image-grid"):
            self.samplers = gr.CheckboxGroup([*sampler_specs()], label=tr("Samplers"), elem_id="grid-samplers")
            with gr.Row():
                self.steps = gr.Textbox(label=tr("Steps to compare"), placeholder="4 8 16", elem_id="grid-steps")
                self.scales = gr.Textbox(
                    label=tr("Guidance scales to compare"), placeholder="1 4", elem_id="grid-scales"
                )
            with gr.Row():
                self.go = gr.Button(tr("Generate the plot"), elem_id="grid-go")
                self.stop = gr.Button(tr("Cancel the plot"), variant="stop", elem_id="grid-cancel")
            self.result = gr.HTML(elem_id="grid-result")
        self.timer = gr.Timer(POLL_S, active=False)

    def connect(self, fields: Mapping[str, Any]) -> None:
        """Connect the events, with the field values of the tab."""
        tab, names = self._tab, list(fields)

        def go(owner: str, samplers: list[str], steps: str, scales: str, *values: Any) -> list[Any]:
            return self._begin(owner, (samplers, steps, scales), dict(zip(names, values, strict=True)))

        inputs = [self.samplers, self.steps, self.scales, *fields.values()]
        seen = [self.result, self.timer]
        submitted = tab.on(self.go.click, go, inputs, [self.browser_state, *seen])
        self.looks(partial(submitted.then, trigger_mode="always_last"))  # as in `JobWatcher.begins`
        self.looks(self.timer.tick)
        tab.on(self.stop.click, self._cancel, [self.browser_state], seen)

    def looks(self, event: Any) -> None:
        """Connect an event to `look`; the calls run in the order of their events."""
        seen = [self.result, self.timer]
        self._tab.on(event, self.look, [self.browser_state], seen, by_user=False, in_order="grid-look")

    def _begin(self, owner: str, typed: tuple[list[str], str, str], form: Mapping[str, Any]) -> list[Any]:
        tr, client, read = self._tab.tr, self._tab.client, self._tab.typed
        axes = Axes(
            [*typed[0]] or [None],
            [read.integer(number, tr("Steps to compare")) for number in read.numbers(typed[1], tr("Steps to compare"))]
            or [None],
            [*read.numbers(typed[2], tr("Guidance scales to compare"))] or [None],
        )
        cells = list(product(*axes))
        limits = client.service.queue.limits
        most = min(MAX_CELLS, limits.each, limits.waiting)  # all of them are queued at once
        if not 2 <= len(cells) <= most:
            raise RecipeError(
                tr("An X/Y/Z plot has 2 to {most} images; this one has {count}.", most=most, count=len(cells))
            )
        request: dict[str, Any] = {**self._request(form), "count": 1}
        request.pop("save_trajectory", None)
        jobs: list[Job] = []
        try:
            for sampler, steps, scale in cells:
                overrides = {"sampler": sampler, "steps": steps, "guidance_scale": scale}
                changes = {key: value for key, value in overrides.items() if value is not None}
                jobs.append(client.submit(form["task"], {**request, **changes}, owner))
        except Exception:  # of any type: jobs of an incomplete plot could be neither seen nor cancelled
            for job in jobs:
                client.cancel(job.id, owner)
            raise
        state = {"axes": [*axes], "jobs": [job.id for job in jobs]}
        return [state, *self.look(owner, state)]

    def look(self, owner: str, state: Mapping[str, Any]) -> list[Any]:
        """Return the plot in its current state, and whether to poll again."""
        axes, ids = _plot_in(state)
        if axes is None:
            return [gr.skip(), gr.skip()]
        jobs = [self._tab.client.job(id, owner) for id in ids]
        return [self._drawn(axes, jobs), gr.Timer(active=not all(map(job_html.has_ended, jobs)))]

    def _cancel(self, owner: str, state: Mapping[str, Any]) -> list[Any]:
        for id in _plot_in(state)[1]:
            self._tab.client.cancel(id, owner)
        return self.look(owner, state)

    def _drawn(self, axes: Axes, jobs: list[Job | None]) -> Markup:
        """Return a table for each guidance scale: samplers as rows, steps as columns."""
        tr = self._tab.tr
        cells = dict(zip(product(*axes), jobs, strict=True))
        tables = Markup("")
        for scale in axes.scales:
            heads = [tr("Sampler"), *(self._steps(steps) for steps in axes.steps)]
            rows = [
                [sampler or tr("model default"), *(self._cell(cells[sampler, steps, scale]) for steps in axes.steps)]
                for sampler in axes.samplers
            ]
            caption = tr("Guidance scale {scale}", scale=f"{scale:g}") if scale is not None else ""
            tables += job_html.table(heads, rows, caption)
        return tables

    def _steps(self, steps: int | None) -> str:
        tr = self._tab.tr
        return tr("{count} steps", count=steps) if steps is not None else tr("model default")

    def _cell(self, job: Job | None) -> Markup:
        tr = self._tab.tr
        names = image_files(job) if job is not None and job.state == "completed" else []
        if job is None or (job.state == "completed" and not names):
            return job_html.safe_text(tr("deleted"))
        if names:
            source = job_html.file_url(job, names[0])
            return Markup('<img src="{}" alt="{}" data-state="completed">').format(
                source, job_html.safe_text(job_html.job_title(job))
            )
        return (
            job_html.alert(failure_text(job, tr))
            if job.state == "failed"
            else job_html.safe_text(job_html.status_text(job, None, tr))
        )


def _plot_in(state: Any) -> tuple[Axes | None, list[str]]:
    """Return the axes and the job ids in a browser state; None and no ids unless it has the form that a plot has."""
    axes, ids = (state.get(key) for key in ("axes", "jobs")) if isinstance(state, Mapping) else (None, None)
    if not isinstance(axes, list) or not isinstance(ids, list) or len(axes) != 3 or not 0 < len(ids) <= MAX_CELLS:
        return None, []
    kinds = (str | None, int | float | None, int | float | None)
    fit = all(
        isinstance(values, list) and all(isinstance(value, kind) for value in values)
        for kind, values in zip(kinds, axes, strict=True)
    )
    if not fit or prod(map(len, axes)) != len(ids):
        return None, []
    return Axes(*axes), ids
