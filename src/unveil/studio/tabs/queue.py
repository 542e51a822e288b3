"""The queue: all that waits, runs and has ended."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.server.jobs.job import ENDED, Job
from unveil.server.jobs.sqlite_store import Part
from unveil.studio import job_html
from unveil.studio.tab_base import HEARD, Desk, Tab
from unveil.types import DataError

LOOK_S = 1.5
ENDED_SHOWN = 30  # jobs that have ended, at most


class Waiting(Tab):
    """The tab of the queue."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "queue")

    def lay(self) -> None:
        """Places its parts."""
        self.begin()
        self.table = gr.HTML(elem_id="queue-table", js_on_load=HEARD)
        self.detail = gr.HTML(elem_id="queue-detail")
        self.timer = gr.Timer(LOOK_S, active=False)
        self.on(self.timer.tick, self.look, [], [self.table], asked=False)
        self.on_button(self.table, self._heard, [], [self.table, self.detail])

    def look(self, owner: str) -> Markup:
        """The table of jobs."""
        say, service = self.say, self.client.service
        queue, counts = service.queue, service.queue.counts(owner)
        if not any(counts.values()):
            return job_html.hint(say("Nothing waits and nothing ran yet: make a picture or a clip."))
        places = queue.places(len(service.crew.devices))
        running = queue.jobs("running", owner)
        waiting = [job for job in queue.jobs("queued", owner) if job.id in places]  # or it was taken in between
        waiting.sort(key=lambda job: places[job.id].ahead)
        ended = [job for state in ENDED for job in queue.page(Part(owner, ENDED_SHOWN, state=state))[0]]
        ended.sort(key=lambda job: job.ended or 0, reverse=True)
        rows = [self._row(job, places.get(job.id)) for job in (*running, *waiting, *ended[:ENDED_SHOWN])]
        heads = [say("Job"), say("What"), say("State"), say("Since"), say("Do")]
        told = say(
            "{running} run, {waiting} wait, {ended} have ended.",
            running=counts["running"],
            waiting=counts["queued"],
            ended=sum(counts[state] for state in ENDED),
        )
        return Markup("<p>{}</p>{}").format(job_html.plain(told), job_html.table(heads, rows))

    def _row(self, job: Job, place: Any) -> list[object]:
        say, about = self.say, job_html.described(job)
        if job.state in ENDED:
            act = job_html.button("show", say("Show"), say("Show {what}", what=about), job=job.id)
        else:
            act = job_html.button("cancel", say("Cancel"), say("Cancel {what}", what=about), job=job.id)
        state = job_html.stands(job, place, say)
        if job.state == "running":
            state = job_html.bar(job, say) + job_html.plain(state)
        since = datetime.fromtimestamp(job.submitted).strftime("%Y-%m-%d %H:%M:%S")
        kinds = {
            "pictures": say("pictures"), "clips": say("clip"), "train": say("training"), "caption": say("captions"),
            "evaluate": say("evaluation"), "check": say("data check"), "convert": say("conversion"),
        }  # fmt: skip
        return [kinds.get(job.kind, job.kind), about, state, since, act]

    def _heard(self, owner: str, said: dict[str, str]) -> list[Any]:
        if said["do"] == "cancel":
            self.client.cancel(said.get("job"), owner)
            return [self.look(owner), ""]
        job = self.client.job(said.get("job"), owner)
        if job is None:
            return [self.look(owner), job_html.hint(self.say("This job was deleted."))]
        return [self.look(owner), self.detailed(job)]

    def detailed(self, job: Job) -> Markup:
        """What is known of a job that has ended, with its log where it has one."""
        told = job_html.status(job, None, False, self.say) + job_html.made(job, self.say)
        log = log_of(self, job)
        return told + (
            Markup('<pre class="log" tabindex="0">{}</pre>').format(job_html.plain(log)) if log else Markup("")
        )


def log_of(tab: Tab, job: Job) -> str:
    """The end of what a job's command said; empty where it said nothing that is kept."""
    try:
        return tab.client.service.log(job.id).decode("utf-8", "replace")
    except (DataError, OSError):
        return ""
