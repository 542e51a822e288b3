"""Queue tab: queued, running and ended jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.errors import DataError
from unveil.server.jobs.job_table import ENDED, Job, PageQuery
from unveil.server.jobs.task_job import task_kinds
from unveil.studio import job_html
from unveil.studio.tab_base import HEARD, Tab, TabContext

LOOK_S = 1.5
ENDED_SHOWN = 30  # maximum number of ended jobs


class QueueTab(Tab):
    """Tab of the queue."""

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "queue", in_order=True)

    def build(self) -> None:
        """Create the components."""
        self.begin()
        self.table = gr.HTML(elem_id="queue-table", js_on_load=HEARD)
        self.detail = gr.HTML(elem_id="queue-detail")
        self.timer = gr.Timer(LOOK_S, active=False)
        self.on(self.timer.tick, self.look, [], [self.table], by_user=False)
        self.on_button(self.table, self._heard, [], [self.table, self.detail])

    def look(self, owner: str) -> Markup:
        """Return the table of jobs."""
        tr, service = self.tr, self.client.service
        queue, counts = service.queue, service.queue.counts(owner)
        if not any(counts.values()):
            return job_html.hint(tr("No jobs yet: generate an image or a video."))
        places = service.positions()
        running = queue.jobs("running", owner)
        waiting = [job for job in queue.jobs("queued", owner) if job.id in places]  # else it was claimed in between
        waiting.sort(key=lambda job: places[job.id].ahead)
        ended = [job for state in ENDED for job in queue.page(PageQuery(owner, ENDED_SHOWN, state=state))[0]]
        ended.sort(key=lambda job: job.ended or 0, reverse=True)
        rows = [self._row(job, places.get(job.id)) for job in (*running, *waiting, *ended[:ENDED_SHOWN])]
        heads = [tr("Job"), tr("Description"), tr("State"), tr("Submitted"), tr("Actions")]
        summary = tr(
            "{running} running, {waiting} queued, {ended} ended.",
            running=counts["running"],
            waiting=counts["queued"],
            ended=sum(counts[state] for state in ENDED),
        )
        return Markup("<p>{}</p>{}").format(job_html.safe_text(summary), job_html.table(heads, rows))

    def _row(self, job: Job, place: Any) -> list[object]:
        tr, about = self.tr, job_html.job_title(job)
        if job.state in ENDED:
            act = job_html.button("show", tr("Show"), tr("Show {what}", what=about), job=job.id)
        else:
            act = job_html.button("cancel", tr("Cancel"), tr("Cancel {what}", what=about), job=job.id)
        state = job_html.status_text(job, place, tr)
        if job.state == "running":
            state = job_html.progress_html(job, tr) + job_html.safe_text(state)
        since = datetime.fromtimestamp(job.submitted).strftime("%Y-%m-%d %H:%M:%S")
        kinds = {
            **dict.fromkeys(task_kinds("images"), tr("images")), **dict.fromkeys(task_kinds("videos"), tr("video")),
            "train": tr("training"), "caption": tr("captioning"),
            "evaluate": tr("evaluation"), "data-check": tr("data check"), "convert": tr("conversion"),
        }  # fmt: skip
        return [kinds.get(job.kind, job.kind), about, state, since, act]

    def _heard(self, owner: str, data: dict[str, str]) -> list[Any]:
        if data["do"] == "cancel":
            self.client.cancel(data.get("job"), owner)
            return [self.look(owner), ""]
        job = self.client.job(data.get("job"), owner)
        if job is None:
            return [self.look(owner), job_html.hint(self.tr("This job was deleted."))]
        return [self.look(owner), self.detailed(job)]

    def detailed(self, job: Job) -> Markup:
        """Return the result and the log of a job that has ended."""
        details = job_html.status_html(job, None, False, self.tr) + job_html.outputs_html(job, self.tr)
        return details + log_html(self, job)


def log_html(tab: Tab, job: Job) -> Markup:
    """Return the end of the log of a job; empty if there is none."""
    log = job_log(tab, job)
    return Markup('<pre class="log" tabindex="0">{}</pre>').format(job_html.safe_text(log)) if log else Markup("")


def job_log(tab: Tab, job: Job) -> str:
    """Return the end of the log of a job as text; empty if there is none."""
    try:
        return tab.client.service.log(job.id).decode("utf-8", "replace")
    except (DataError, OSError):
        return ""
