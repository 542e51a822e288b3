"""A grid of pictures: the same seed with every sampler, number of steps and scale of guidance that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import gradio as gr
from markupsafe import Markup

from unveil.core.samplers import SAMPLERS
from unveil.server.jobs.image_job import PICTURES, pictures_of
from unveil.server.jobs.job import Job
from unveil.studio import job_html
from unveil.studio.error_messages import why
from unveil.studio.tab_base import POLL_S, Tab
from unveil.types import RecipeError

MOST = 24  # pictures of a grid


class Axes(NamedTuple):
    """What differs: samplers, steps and scales; None stands for the model's own."""

    samplers: list[str | None]
    steps: list[int | None]
    scales: list[float | None]


class Grid:
    """The part of a tab that draws grids.

    Args:
        tab: that it is in.
        request: what is asked in all of them, of the values of the tab's fields.
    """

    def __init__(self, tab: Tab, request: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        self._tab, self._request = tab, request

    def lay(self) -> None:
        """Places its parts."""
        say = self._tab.say
        self.kept = gr.BrowserState({}, storage_key="unveil-grid", secret="unveil")
        with gr.Accordion(say("Grid of samplers, steps and guidance"), open=False, elem_id="picture-grid"):
            self.samplers = gr.CheckboxGroup([*SAMPLERS], label=say("Samplers"), elem_id="grid-samplers")
            with gr.Row():
                self.steps = gr.Textbox(label=say("Numbers of steps"), placeholder="4 8 16", elem_id="grid-steps")
                self.scales = gr.Textbox(label=say("Scales of guidance"), placeholder="1 4", elem_id="grid-scales")
            with gr.Row():
                self.go = gr.Button(say("Draw the grid"), elem_id="grid-go")
                self.stop = gr.Button(say("Cancel the grid"), variant="stop", elem_id="grid-cancel")
            self.result = gr.HTML(elem_id="grid-result")
        self.timer = gr.Timer(POLL_S, active=False)

    def wire(self, fields: Mapping[str, Any]) -> None:
        """Lets its parts do what they do, with the values of the tab's fields."""
        tab, names = self._tab, list(fields)

        def go(owner: str, samplers: list[str], steps: str, scales: str, *values: Any) -> list[Any]:
            return self._begin(owner, (samplers, steps, scales), dict(zip(names, values, strict=True)))

        inputs = [self.samplers, self.steps, self.scales, *fields.values()]
        seen = [self.result, self.timer]
        begun = tab.on(self.go.click, go, inputs, [self.kept, *seen])
        tab.on(begun.then, self.look, [self.kept], seen, asked=False)  # as `TrainingCallback.begins`
        tab.on(self.timer.tick, self.look, [self.kept], [self.result, self.timer], asked=False)
        tab.on(self.stop.click, self._cancel, [self.kept], [self.result, self.timer])

    def _begin(self, owner: str, typed: tuple[list[str], str, str], said: Mapping[str, Any]) -> list[Any]:
        say, client, read = self._tab.say, self._tab.client, self._tab.typed
        axes = Axes(
            [*typed[0]] or [None],
            [read.whole(one, say("Numbers of steps")) for one in read.numbers(typed[1], say("Numbers of steps"))]
            or [None],
            [*read.numbers(typed[2], say("Scales of guidance"))] or [None],
        )
        cells = list(product(*axes))
        limits = client.service.queue.limits
        most = min(MOST, limits.each, limits.waiting)  # all of them wait at a time
        if not 2 <= len(cells) <= most:
            raise RecipeError(
                say("A grid has 2 to {most} pictures; this one has {count}.", most=most, count=len(cells))
            )
        request: dict[str, Any] = {**self._request(said), "count": 1, "strip": False}
        jobs: list[Job] = []
        try:
            for sampler, steps, scale in cells:
                own = {"sampler": sampler, "steps": steps, "guidance_scale": scale}
                sampling = request["sampling"] | {key: value for key, value in own.items() if value is not None}
                jobs.append(client.submit(PICTURES, {**request, "sampling": sampling}, owner))
        except Exception:  # of any kind: half a grid is shown nowhere, and nobody could end it
            for job in jobs:
                client.cancel(job.id, owner)
            raise
        kept = {"axes": [*axes], "jobs": [job.id for job in jobs]}
        return [kept, *self.look(owner, kept)]

    def look(self, owner: str, kept: Mapping[str, Any]) -> list[Any]:
        """The grid as it stands, and whether it is looked at again."""
        if not kept or "jobs" not in kept:
            return [gr.skip(), gr.skip()]
        jobs = [self._tab.client.job(id, owner) for id in kept["jobs"]]
        return [self._drawn(Axes(*kept["axes"]), jobs), gr.Timer(active=not all(map(job_html.is_over, jobs)))]

    def _cancel(self, owner: str, kept: Mapping[str, Any]) -> list[Any]:
        for id in (kept or {}).get("jobs", ()):
            self._tab.client.cancel(id, owner)
        return self.look(owner, kept)

    def _drawn(self, axes: Axes, jobs: list[Job | None]) -> Markup:
        """A table for each scale: samplers down, steps across."""
        say = self._tab.say
        cells = dict(zip(product(*axes), jobs, strict=True))
        tables = Markup("")
        for scale in axes.scales:
            heads = [say("Sampler"), *(self._steps(steps) for steps in axes.steps)]
            rows = [
                [sampler or say("the model's own"), *(self._cell(cells[sampler, steps, scale]) for steps in axes.steps)]
                for sampler in axes.samplers
            ]
            caption = say("Guidance {scale}", scale=f"{scale:g}") if scale is not None else ""
            tables += job_html.table(heads, rows, caption)
        return tables

    def _steps(self, steps: int | None) -> str:
        say = self._tab.say
        return say("{count} steps", count=steps) if steps is not None else say("the model's own")

    def _cell(self, job: Job | None) -> Markup:
        say = self._tab.say
        if job is None:
            return job_html.plain(say("deleted"))
        if job.state == "completed":
            source = job_html.address(job, pictures_of(job)[0])
            return Markup('<img src="{}" alt="{}" data-state="completed">').format(
                source, job_html.plain(job_html.described(job))
            )
        return (
            job_html.alert(why(job, say)) if job.state == "failed" else job_html.plain(job_html.stands(job, None, say))
        )
