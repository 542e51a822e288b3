"""The page: its tabs, its look, and how a server shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported: it reports nothing to anyone

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Default

from unveil.server.jobs.catalog import about
from unveil.server.jobs.job import Job
from unveil.server.jobs.uploads import FOLDER
from unveil.server.jobs.video_job import CLIPS
from unveil.server.jobs.worker_main import MADE
from unveil.studio.client import Client
from unveil.studio.i18n import LANGUAGES, Language, Say
from unveil.studio.tab_base import Desk, Maker, Tab, Watch
from unveil.studio.tabs.evaluate import Evaluate
from unveil.studio.tabs.gallery import Gallery
from unveil.studio.tabs.image import Picture
from unveil.studio.tabs.models import Models
from unveil.studio.tabs.queue import Waiting
from unveil.studio.tabs.train import Train
from unveil.studio.tabs.video import Video

STYLE = Path(__file__).parent / "page.css"
CACHE = "browser"  # in the service's folder: what browsers sent
DAY_S = 24 * 3600
TOP = '<header class="top"><h1>unveil</h1><a href="/{other}/" lang="{other}" hreflang="{other}">{name}</a></header>'
OTHER: dict[str, tuple[str, str]] = {"en": ("zh", "&#20013;&#25991;"), "zh": ("en", "English")}


class Page:
    """The page in one language.

    Args:
        client: the service.
        language: of all that it says.
    """

    def __init__(self, client: Client, language: Language) -> None:
        self.language: Language = language
        self.say = Say(language)
        desk = Desk(client.speaking(self.say), self.say)
        self.picture, self.video, self.train = Picture(desk), Video(desk), Train(desk)
        self.models, self.evaluate = Models(desk), Evaluate(desk)
        self.gallery, self.queue = Gallery(desk), Waiting(desk)

    @property
    def titled(self) -> list[tuple[Any, str]]:
        """The tabs, with what is written on them."""
        say = self.say
        return [
            (self.picture, say("Picture")), (self.video, say("Video")), (self.train, say("Train")),
            (self.models, say("Models")), (self.evaluate, say("Evaluate")), (self.gallery, say("Gallery")),
            (self.queue, say("Queue")),
        ]  # fmt: skip

    def blocks(self) -> gr.Blocks:
        """The page for Gradio."""
        other, name = OTHER[self.language]
        with gr.Blocks(title="unveil", analytics_enabled=False, fill_width=True, delete_cache=(3600, DAY_S)) as blocks:
            gr.HTML(TOP.format(other=other, name=name))
            tabs: dict[str, Any] = {}
            with gr.Tabs(elem_id="tabs") as self.tabs:
                for tab, title in self.titled:
                    with gr.Tab(title, id=tab.name, elem_id=f"tab-{tab.name}") as tabs[tab.name]:
                        tab.lay()
            self._find_again(blocks)
            self._refresh(tabs)
            self._pass_on()
        return blocks

    def _find_again(self, blocks: gr.Blocks) -> None:
        """What the browser keeps is shown again when the page is loaded."""
        for maker in (self.picture, self.video):
            maker.on(blocks.load, maker.restored, [maker.watch.kept, maker.draft.kept], maker.filled, asked=False)
        for tab, watch in self.watched:
            tab.on(blocks.load, watch.look, [watch.kept], watch.parts, asked=False)
        grid, train = self.picture.grid, self.train
        filled = [train.watch.kept, *train.fields.values()]
        again = train.on(blocks.load, train.restored, [train.watch.kept, train.draft.kept], filled, asked=False)
        self.picture.on(blocks.load, grid.look, [grid.kept], [grid.result, grid.timer], asked=False)
        train.on(again.then, train.watch.look, [train.watch.kept], train.watch.parts, asked=False)
        train.on(again.then, train.look, train.looked, train.drawn, asked=False)

    @property
    def watched(self) -> list[tuple[Tab, Watch]]:
        """All that shows a job, with its tab."""
        found = [(tab, tab.watch) for tab in (self.picture, self.video, self.models, self.evaluate)]
        return [*found, (self.train, self.train.prepared)]

    def _refresh(self, tabs: dict[str, Any]) -> None:
        """What a tab lists is looked up again each time that it is chosen."""
        for tab in (self.picture, self.train, self.evaluate):
            tab.on(tabs[tab.name].select, lambda owner, tab=tab: tab.refreshed(), [], tab.named)
        self.evaluate.on(tabs["evaluate"].select, self.evaluate.reports, [], self.evaluate.listed)
        self.models.on(tabs["models"].select, self.models.look, [], [self.models.table])
        gallery, queue = self.gallery, self.queue
        gallery.on(tabs["gallery"].select, gallery.look, [gallery.words, gallery.page], [gallery.cards])
        seen = [queue.table, queue.timer]
        queue.on(tabs["queue"].select, lambda owner: [queue.look(owner), gr.Timer(active=True)], [], seen)
        for name, tab in tabs.items():  # nobody looks at the queue there
            if name != "queue":
                queue.on(tab.select, lambda owner: gr.Timer(active=False), [], [queue.timer])

    def _pass_on(self) -> None:
        """What was made in a tab goes into another."""
        picture, video, train, gallery = self.picture, self.video, self.train, self.gallery

        def to_clip(owner: str, kept: Any, which: Any) -> list[Any]:
            return [picture.file_of(owner, kept, which), "make", gr.Tabs(selected="video")]

        picture.on(
            picture.to_clip.click, to_clip, [picture.watch.kept, picture.which], [video.still, video.verb, self.tabs]
        )

        def card(owner: str, said: dict[str, str], words: str, page: Any) -> list[Any]:
            cards, job = gallery.heard(owner, said, words, page)
            chosen = None if job is None else video if job.kind == CLIPS else picture
            return [
                cards,
                gr.skip() if chosen is None else gr.Tabs(selected=chosen.name),
                *(one for maker in (picture, video) for one in self._taken(maker, chosen, said["do"], job)),
            ]

        taken = [part for maker in (picture, video) for part in (maker.watch.kept, *maker.filled)]
        outputs = [gallery.cards, self.tabs, *taken]
        heard = gallery.on_button(gallery.cards, card, [gallery.words, gallery.page], outputs)
        for maker in (picture, video):
            maker.on(heard.then, maker.watch.look, [maker.watch.kept], maker.watch.parts, asked=False)

        def dropped(owner: str, path: str | None) -> list[Any]:
            request, without = gallery.request_in(path)
            return [gr.Tabs(selected="picture"), *picture.refilled(request, kept=False, without=without)]

        gallery.on(gallery.file.upload, dropped, [gallery.file], [self.tabs, *picture.filled])

        def use(owner: str, kept: Any) -> list[Any]:
            name = train.model_of(owner, kept)
            if about(train.client.service.catalog.model(name)).makes == "clips":
                return [
                    gr.skip(),
                    gr.Dropdown(choices=train.client.models(None, CLIPS), value=name),
                    gr.Tabs(selected="video"),
                ]
            return [gr.Dropdown(choices=train.client.models(), value=name), gr.skip(), gr.Tabs(selected="picture")]

        train.on(train.use.click, use, [train.watch.kept], [picture.model, video.model, self.tabs])

    @staticmethod
    def _taken(maker: Maker, chosen: Maker | None, do: str, job: Job | None) -> list[Any]:
        """What a card's button changes of a tab: the job that it watches, or its fields."""
        if job is None or maker is not chosen:
            return [gr.skip() for _ in (maker.watch.kept, *maker.filled)]
        if do == "again":
            return [{"job": job.id}, *(gr.skip() for _ in maker.filled)]
        return [gr.skip(), *maker.refilled(job.request)]


def mounted(app: FastAPI, client: Client) -> FastAPI:
    """The application with the page in each language, at /en and /zh."""
    folder = client.service.queue.folder
    os.environ["GRADIO_TEMP_DIR"] = str((folder / CACHE).absolute())
    theme = Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    for language in LANGUAGES:
        blocks = Page(client, language).blocks()
        blocks.queue(api_open=False, default_concurrency_limit=None)
        app = gr.mount_gradio_app(
            app,
            blocks,
            path=f"/{language}",
            theme=theme,
            css_paths=STYLE,
            footer_links=[],
            allowed_paths=[str((folder / FOLDER).absolute()), str((folder / MADE).absolute())],
            max_file_size=None,  # the guard has weighed it, and what is kept is weighed again
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
        )
    return app
