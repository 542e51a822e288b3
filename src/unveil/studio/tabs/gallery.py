"""Gallery tab: search outputs, restore their settings, repeat or delete them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.data.image_decoding import open_image
from unveil.errors import RecipeError
from unveil.generation.image_output import read_generation_metadata
from unveil.server.jobs.gallery import controlnets_used, request_from_metadata, search
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.outputs import COVER, MAX_PIXELS, image_files, video_file
from unveil.studio import job_html
from unveil.studio.tab_base import HEARD, Tab, TabContext
from unveil.studio.tabs import image, video

PAGE = 24  # cards per page
RESTORED = {**image.TASKS, **video.TASKS}  # tasks whose settings a tab has components for


class GalleryTab(Tab):
    """Tab of completed outputs."""

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "gallery", in_order=True)

    def build(self) -> None:
        """Create the components."""
        tr = self.tr
        self.begin()
        with gr.Row():
            self.words = gr.Textbox(
                label=tr("Search"), placeholder=tr("words of the prompt, a model or a seed"), elem_id="gallery-words"
            )
            self.page = gr.Number(1, minimum=1, precision=0, label=tr("Page"), elem_id="gallery-page", min_width=90)
        with gr.Accordion(tr("Restore settings from an image file"), open=False, elem_id="gallery-restore"):
            self.file = gr.File(
                label=tr("Image generated here"), file_types=[".png"], elem_id="gallery-file", height=120
            )
        self.cards = gr.HTML(elem_id="gallery-cards", js_on_load=HEARD)
        # not on every key press: each search reads all completed jobs
        events = (self.words.submit, self.words.blur, self.page.change)
        self.on_latest(events, self.look, [self.words, self.page], [self.cards], by_user=True)

    def look(self, owner: str, words: str, page: Any, confirming: str = "") -> Markup:
        """Return the cards of a page.

        Args:
            owner: Owner of the jobs.
            words: Words that must all occur.
            page: Page number from 1.
            confirming: Job whose deletion has to be confirmed.
        """
        tr = self.tr
        place = max(self.typed.integer(page, tr("Page")) or 1, 1)
        look = partial(search, self.client.service.queue, words or "", owner, limit=PAGE)
        jobs, count = look(begin=(place - 1) * PAGE)
        if not count:
            empty = tr("No results; try fewer words.") if words else tr("Nothing here yet: generate an image.")
            return job_html.hint(empty)
        pages = -(-count // PAGE)
        if place > pages:
            place = pages
            jobs, count = look(begin=(place - 1) * PAGE)
        cards = Markup("").join(self._card(job, job.id == confirming) for job in jobs)
        summary = tr("{count} found, page {page} of {pages}.", count=count, page=place, pages=pages)
        return Markup('<p role="status">{}</p><div class="cards">{}</div>').format(job_html.safe_text(summary), cards)

    def _card(self, job: Job, confirming: bool) -> Markup:
        tr, words = self.tr, job_html.job_title(job)
        if (name := video_file(job)) is not None:
            cover = job_html.file_url(job, COVER) if COVER in job.outputs else ""
            seen = job_html.video_html(job_html.file_url(job, name), words, cover)
        else:
            names = image_files(job)
            link = Markup('<a href="{0}" target="_blank" rel="noopener"><img loading="lazy" src="{0}" alt="{1}"></a>')
            each = Markup("").join(
                link.format(
                    job_html.file_url(job, name), job_html.safe_text(f"{words} ({number})" if len(names) > 1 else words)
                )
                for number, name in enumerate(names, 1)
            )
            seen = Markup('<div class="{}">{}</div>').format("all" if len(names) > 1 else "one", each)
        facts = f"{job.request.get('model', '')}, {tr('Seed')} {job.request.get('seed', '')}"
        acts = Markup("")
        if job.kind in RESTORED:
            about = tr("Use the settings of {what}", what=words)
            acts += job_html.button("restore", tr("Use settings"), about, job=job.id)
        acts += job_html.button("again", tr("Generate again"), tr("Generate {what} again", what=words), job=job.id)
        if confirming:
            acts = Markup("<strong>{}</strong> ").format(job_html.safe_text(tr("Delete it for good?")))
            acts += job_html.button("delete", tr("Delete"), tr("Delete {what} for good", what=words), job=job.id)
            acts += job_html.button("keep", tr("Keep"), tr("Keep {what}", what=words), job=job.id)
        else:
            acts += job_html.button("ask", tr("Delete"), tr("Delete {what}", what=words), job=job.id)
        return Markup(
            '<article data-job="{}">{}<p>{}</p><p><small>{}</small></p><p class="acts">{}</p></article>'
        ).format(job.id, seen, job_html.safe_text(words), job_html.safe_text(facts), acts)

    def heard(self, owner: str, data: Mapping[str, str], words: str, page: Any) -> tuple[Markup, Job | None]:
        """Handle a card's button; return the cards, and the job whose settings are restored or that was repeated.

        A job is repeated from its request, since the fields do not cover all settings.
        """
        job = self.client.job(data.get("job"), owner)
        if data["do"] == "restore" and job is not None and job.kind in RESTORED:
            return self.look(owner, words, page), job
        if data["do"] == "again" and job is not None:
            return self.look(owner, words, page), self.client.submit(job.kind, job.request, owner)
        if data["do"] == "delete":
            self.client.delete(data.get("job"), owner)
        return self.look(owner, words, page, data.get("job", "") if data["do"] == "ask" else ""), None

    def request_in(self, path: str | None) -> tuple[dict[str, Any], list[str]]:
        """Return the values of `sample` that generate an image file again, and the settings that it lacks, as text.

        Raises:
            RecipeError: No file was chosen.
            DataError: The image was not generated here, or needs something that is missing.
        """
        if not path:
            raise RecipeError(self.tr("Choose an image first."))
        with Path(path).open("rb") as file:
            open_image(file, MAX_PIXELS)  # checks the header first
        facts = read_generation_metadata(Path(path))
        names = ", ".join(controlnets_used(facts))
        without: list[str] = [self.tr("the ControlNet {name} with its control image", name=names)] if names else []
        return request_from_metadata(facts, self.client.catalog), without
