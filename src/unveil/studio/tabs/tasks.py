"""Tab of all tasks: the form of the chosen one is made of its class."""

from __future__ import annotations

from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.server.jobs.job_table import Job
from unveil.server.jobs.task_job import task_kinds
from unveil.studio import job_html
from unveil.studio.tab_base import JobWatcher, Tab, TabContext, owner_of
from unveil.studio.tabs.queue import log_html
from unveil.studio.task_form import TaskForm
from unveil.tasks import registry

FIRST = "sample"


class ResultWatcher(JobWatcher):
    """Watches a job, whose result is its files and its log."""

    def result_html(self, job: Job) -> Markup:
        """Return the files and the log of a completed job."""
        return super().result_html(job) + log_html(self._tab, job)


class TasksTab(Tab):
    """Tab of all tasks."""

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "tasks")

    def build(self) -> None:
        """Create the components."""
        self.begin()
        tr = self.tr
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self.choice = gr.Dropdown(self._choices(), value=FIRST, label=tr("Task"), elem_id="tasks-choice")
                form_place = gr.Column()
            with gr.Column(scale=3, min_width=300):
                self.watch = ResultWatcher(self, "tasks", tr("Choose a task, fill in its form and run it."))
                self.watch.build()
        with form_place:
            gr.render(inputs=[self.choice])(self._form)

    def _choices(self) -> list[tuple[str, str]]:
        return [(f"{name}: {self.tr.optional(registry.entry_of(name).summary)}", name) for name in task_kinds()]

    def _form(self, name: str | None, request: gr.Request) -> None:
        """Create the form of a task each time that it is chosen."""
        if name is None:
            return
        kind = registry.task_class(name)
        form = TaskForm(kind, self.client, self.tr)
        with self.client.on_behalf_of(owner_of(request)):
            form.build()
            delay = self.client.delay(kind.name, {}, owner_of(request))
        gr.HTML(job_html.delay_html(delay, self.tr), elem_id="tasks-delay")
        go = gr.Button(self.tr("Run"), variant="primary", elem_id="tasks-go")

        def submitted(owner: str, *values: Any) -> tuple[Job, list[Any]]:
            return self.client.submit(kind.name, form.request(values), owner), []

        self.watch.begins(go.click, submitted, [field.part for field in form.fields])
