"""The page: its tabs, its style, and its routes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: disables telemetry
# Gradio summarises the times of all calls after this number of calls; at the default of 1, that takes longer than most.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")

import gradio as gr
from fastapi import Depends, FastAPI
from gradio.themes import Default

from unveil.server.jobs.catalog import model_info
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.outputs import FOLDER
from unveil.server.jobs.owners import OWNERS
from unveil.server.jobs.worker_main import MADE
from unveil.studio.client import StudioClient
from unveil.studio.event_check import CheckedBlocks, check_event
from unveil.studio.i18n import LANGUAGES, Language, Translator
from unveil.studio.tab_base import GenerationTab, JobWatcher, TabContext
from unveil.studio.tabs.evaluate import EvaluateTab
from unveil.studio.tabs.gallery import GalleryTab
from unveil.studio.tabs.image import ImageTab
from unveil.studio.tabs.models import ModelsTab
from unveil.studio.tabs.queue import QueueTab
from unveil.studio.tabs.tasks import TasksTab
from unveil.studio.tabs.train import TrainTab
from unveil.studio.tabs.video import VideoTab
from unveil.tasks.text_to_image import TextToImage
from unveil.tasks.video_generate import VideoGenerate

STYLE = Path(__file__).parent / "page.css"
DAY_S = 24 * 3600
TOP = '<header class="top"><h1>unveil</h1><a href="/{other}/" lang="{other}" hreflang="{other}">{name}</a></header>'
OTHER: dict[str, tuple[str, str]] = {"en": ("zh", "&#20013;&#25991;"), "zh": ("en", "English")}


class Page:
    """The page in one language.

    Args:
        client: Access to the service.
        language: Language of all texts.
    """

    def __init__(self, client: StudioClient, language: Language) -> None:
        self.language: Language = language
        self.tr = Translator(language)
        context = TabContext(client.with_language(self.tr), self.tr)
        self.image, self.video, self.train = ImageTab(context), VideoTab(context), TrainTab(context)
        self.models, self.evaluate = ModelsTab(context), EvaluateTab(context)
        self.tasks = TasksTab(context)
        self.gallery, self.queue = GalleryTab(context), QueueTab(context)

    @property
    def titled(self) -> list[tuple[Any, str]]:
        """Tabs and their titles."""
        tr = self.tr
        return [
            (self.image, tr("Image")), (self.video, tr("Video")), (self.tasks, tr("All tasks")),
            (self.train, tr("Train")), (self.models, tr("Models")), (self.evaluate, tr("Evaluate")),
            (self.gallery, tr("Gallery")), (self.queue, tr("Queue")),
        ]  # fmt: skip

    def blocks(self) -> gr.Blocks:
        """Build the Gradio page."""
        other, name = OTHER[self.language]
        shown: dict[str, Any] = {"title": "unveil", "analytics_enabled": False, "fill_width": True}
        with CheckedBlocks(self.tr, delete_cache=(3600, DAY_S), **shown) as blocks:
            gr.HTML(TOP.format(other=other, name=name))
            tabs: dict[str, Any] = {}
            with gr.Tabs(elem_id="tabs") as self.tabs:
                for tab, title in self.titled:
                    with gr.Tab(title, id=tab.name, elem_id=f"tab-{tab.name}") as tabs[tab.name]:
                        tab.build()
            self._find_again(blocks)
            self._refresh(tabs)
            self._pass_on()
        return blocks

    def _find_again(self, blocks: gr.Blocks) -> None:
        """Restore the state that the browser keeps when the page is loaded."""
        for maker in (self.image, self.video):
            maker.on(
                blocks.load,
                maker.restored,
                [maker.watch.browser_state, maker.draft.browser_state],
                maker.filled,
                by_user=False,
            )
        for watch in self.watched:
            watch.looks(blocks.load)
        if self.image.client.has_keys:  # the page was built without the names of the owner
            for tab in self.with_names:
                tab.on(blocks.load, lambda owner, tab=tab: tab.refreshed(), [], tab.named, by_user=False)
        grid, train = self.image.grid, self.train
        filled = [train.watch.browser_state, *train.fields.values()]
        again = train.on(
            blocks.load, train.restored, [train.watch.browser_state, train.draft.browser_state], filled, by_user=False
        )
        grid.looks(blocks.load)
        train.watch.looks(again.then)
        train.looks(again.then)

    @property
    def with_names(self) -> list[Any]:
        """All tabs with lists of names."""
        return [self.image, self.video, self.train, self.models, self.evaluate]

    @property
    def watched(self) -> list[JobWatcher]:
        """All job watchers, except that of the training, whose job is restored first."""
        watchers = [tab.watch for tab in (self.image, self.video, self.tasks, self.models, self.evaluate)]
        watchers.append(self.models.downloads)
        return [*watchers, self.train.prepared]

    def _refresh(self, tabs: dict[str, Any]) -> None:
        """Refresh the lists of a tab each time that it is selected."""
        for tab in self.with_names:
            tab.on(tabs[tab.name].select, lambda owner, tab=tab: tab.refreshed(), [], tab.named)
        train = self.train
        train.on(tabs["train"].select, train.delayed, [*train.fields.values()], [train.delay], by_user=False)
        self.evaluate.on(tabs["evaluate"].select, self.evaluate.reports, [], self.evaluate.listed)
        self.models.on(tabs["models"].select, self.models.look, [], [self.models.table])
        gallery, queue = self.gallery, self.queue
        gallery.on(tabs["gallery"].select, gallery.look, [gallery.words, gallery.page], [gallery.cards])
        seen = [queue.table, queue.timer]
        queue.on(tabs["queue"].select, lambda owner: [queue.look(owner), gr.Timer(active=True)], [], seen)
        for name, tab in tabs.items():  # the queue is polled only while its tab is selected
            if name != "queue":
                queue.on(tab.select, lambda owner: gr.Timer(active=False), [], [queue.timer])

    def _pass_on(self) -> None:
        """Connect actions that move results from one tab to another."""
        image, video, train, gallery = self.image, self.video, self.train, self.gallery

        def to_clip(owner: str, state: Any, which: Any) -> list[Any]:
            return [image.file_of(owner, state, which), VideoGenerate.name, gr.Tabs(selected="video")]

        image.on(
            image.to_clip.click,
            to_clip,
            [image.watch.browser_state, image.which],
            [video.still, video.task, self.tabs],
        )

        def card(owner: str, data: dict[str, str], words: str, page: Any) -> list[Any]:
            cards, job = gallery.heard(owner, data, words, page)
            chosen = None if job is None else video if job.kind in video.tasks else image
            return [
                cards,
                gr.skip() if chosen is None else gr.Tabs(selected=chosen.name),
                *(value for maker in (image, video) for value in self._taken(maker, chosen, data["do"], job)),
            ]

        taken = [part for maker in (image, video) for part in (maker.watch.browser_state, *maker.filled)]
        outputs = [gallery.cards, self.tabs, *taken]
        heard = gallery.on_button(gallery.cards, card, [gallery.words, gallery.page], outputs)
        for maker in (image, video):
            maker.watch.looks(partial(heard.then, trigger_mode="always_last"))

        def dropped(owner: str, path: str | None) -> list[Any]:
            request, without = gallery.request_in(path)
            return [
                gr.Tabs(selected="image"),
                *image.refilled(TextToImage.name, request, in_gallery=False, without=without),
            ]

        gallery.on(gallery.file.upload, dropped, [gallery.file], [self.tabs, *image.filled])

        def use(owner: str, state: Any) -> list[Any]:
            name = train.model_of(owner, state)
            if model_info(train.client.catalog.model(name)).makes == "videos":
                return [
                    gr.skip(),
                    gr.Dropdown(choices=train.client.models(None, "videos"), value=name),
                    gr.Tabs(selected="video"),
                ]
            return [gr.Dropdown(choices=train.client.models(), value=name), gr.skip(), gr.Tabs(selected="image")]

        train.on(train.use.click, use, [train.watch.browser_state], [image.model, video.model, self.tabs])

    @staticmethod
    def _taken(maker: GenerationTab, chosen: GenerationTab | None, do: str, job: Job | None) -> list[Any]:
        """Return what a card's button changes in a tab: the watched job, or the fields."""
        if job is None or maker is not chosen:
            return [gr.skip() for _ in (maker.watch.browser_state, *maker.filled)]
        if do == "again":
            return [{"job": job.id}, *(gr.skip() for _ in maker.filled)]
        return [gr.skip(), *maker.refilled(job.kind, job.request)]


def mount_pages(app: FastAPI, client: StudioClient, temporary: Path) -> FastAPI:
    """Mount the page in each language, at /en and /zh.

    Args:
        app: Application of the server.
        client: Access to the service.
        temporary: Folder for files from browsers; Gradio tells its path to the browser.
    """
    folder = client.service.queue.folder
    os.environ["GRADIO_TEMP_DIR"] = str(temporary)
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
            allowed_paths=[str((folder / name).absolute()) for name in (FOLDER, OWNERS, MADE)],
            max_file_size=None,  # the security middleware limits it, and the upload store checks it again
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            app_kwargs={"dependencies": [Depends(check_event)]},
        )
    return app
