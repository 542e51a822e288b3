"""The gallery: what was made, found by words, drawn again from its settings, and deleted when that is meant."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.data.image_decoding import open_image
from unveil.server.jobs.gallery import found, request_of, steered_by
from unveil.server.jobs.image_job import pictures_of
from unveil.server.jobs.job import Job
from unveil.server.jobs.uploads import PIXELS
from unveil.server.jobs.video_job import CLIPS, COVER
from unveil.studio import job_html
from unveil.studio.tab_base import HEARD, Desk, Tab
from unveil.tasks.metadata import read_facts
from unveil.types import RecipeError

PAGE = 24  # of them at a time


class Gallery(Tab):
    """The tab of what was made."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "gallery", in_order=True)

    def lay(self) -> None:
        """Places its parts."""
        say = self.say
        self.begin()
        with gr.Row():
            self.words = gr.Textbox(
                label=say("Search"), placeholder=say("words of the text, a model, a seed"), elem_id="gallery-words"
            )
            self.page = gr.Number(1, minimum=1, precision=0, label=say("Page"), elem_id="gallery-page", min_width=90)
        with gr.Accordion(say("Draw a picture again from its file"), open=False, elem_id="gallery-restore"):
            self.file = gr.File(
                label=say("A picture that was made here"), file_types=[".png"], elem_id="gallery-file", height=120
            )
        self.cards = gr.HTML(elem_id="gallery-cards", js_on_load=HEARD)
        # not with each letter: all that was ever made is looked through
        for event in (self.words.submit, self.words.blur, self.page.change):
            self.on(event, self.look, [self.words, self.page], [self.cards])

    def look(self, owner: str, words: str, page: Any, asked: str = "") -> Markup:
        """The cards of a page.

        Args:
            owner: whose.
            words: that all of them say.
            page: counted from 1.
            asked: the job that may be deleted, of which it is asked whether that is meant.
        """
        say = self.say
        place = max(self.typed.whole(page, say("Page")) or 1, 1)
        look = partial(found, self.client.service.queue, words or "", owner, most=PAGE)
        jobs, count = look(begin=(place - 1) * PAGE)
        if not count:
            empty = (
                say("Nothing was found; try fewer words.") if words else say("Nothing was made yet: make a picture.")
            )
            return job_html.hint(empty)
        pages = -(-count // PAGE)
        if place > pages:
            place = pages
            jobs, count = look(begin=(place - 1) * PAGE)
        cards = Markup("").join(self._card(job, job.id == asked) for job in jobs)
        told = say("{count} found, page {page} of {pages}.", count=count, page=place, pages=pages)
        return Markup('<p role="status">{}</p><div class="cards">{}</div>').format(job_html.plain(told), cards)

    def _card(self, job: Job, asked: bool) -> Markup:
        say, words = self.say, job_html.described(job)
        if job.kind == CLIPS:
            name = next(one for one in job.outputs if one.startswith("clip."))
            seen = job_html.film(job_html.address(job, name), words, job_html.address(job, COVER))
        else:
            names = pictures_of(job)
            link = Markup('<a href="{0}" target="_blank" rel="noopener"><img loading="lazy" src="{0}" alt="{1}"></a>')
            each = Markup("").join(
                link.format(
                    job_html.address(job, name), job_html.plain(f"{words} ({number})" if len(names) > 1 else words)
                )
                for number, name in enumerate(names, 1)
            )
            seen = Markup('<div class="{}">{}</div>').format("all" if len(names) > 1 else "one", each)
        facts = f"{job.request.get('model', '')}, {say('Seed')} {job.request.get('seed', '')}"
        acts = job_html.button("restore", say("Settings"), say("Take the settings of {what}", what=words), job=job.id)
        acts += job_html.button(
            "again", say("Make it again"), say("Make {what} again as it was", what=words), job=job.id
        )
        if asked:
            acts = Markup("<strong>{}</strong> ").format(job_html.plain(say("Delete it for good?")))
            acts += job_html.button("delete", say("Delete"), say("Delete {what} for good", what=words), job=job.id)
            acts += job_html.button("keep", say("Keep"), say("Keep {what}", what=words), job=job.id)
        else:
            acts += job_html.button("ask", say("Delete"), say("Delete {what}", what=words), job=job.id)
        return Markup(
            '<article data-job="{}">{}<p>{}</p><p><small>{}</small></p><p class="acts">{}</p></article>'
        ).format(job.id, seen, job_html.plain(words), job_html.plain(facts), acts)

    def heard(self, owner: str, said: Mapping[str, str], words: str, page: Any) -> tuple[Markup, Job | None]:
        """What a card's button does: the cards as they are then, and the job whose settings are wanted, or a new one.

        One that is made again is asked for as it was: the fields cannot say all that a request can.
        """
        job = self.client.job(said.get("job"), owner)
        if said["do"] == "restore" and job is not None:
            return self.look(owner, words, page), job
        if said["do"] == "again" and job is not None:
            return self.look(owner, words, page), self.client.submit(job.kind, job.request, owner)
        if said["do"] == "delete":
            self.client.delete(said.get("job"), owner)
        return self.look(owner, words, page, said.get("job", "") if said["do"] == "ask" else ""), None

    def request_in(self, path: str | None) -> tuple[dict[str, Any], list[str]]:
        """The request that draws a picture's file again, and what it lacks, in words.

        Raises:
            RecipeError: no file. MediaError: it was not made here, or of something that is not here.
        """
        if not path:
            raise RecipeError(self.say("Give the picture first."))
        with Path(path).open("rb") as file:
            open_image(file, PIXELS)  # weighed before it is read
        facts = read_facts(Path(path))
        names = ", ".join(steered_by(facts))
        without: list[str] = [self.say("the ControlNet {name} with its picture", name=names)] if names else []
        return request_of(facts, self.client.service.catalog), without
