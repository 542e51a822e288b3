"""Training: look at a folder, tell what is in it, train on it, watch it learn, stop, go on, use what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.model.config import load_recipe, recipe_names
from unveil.server.jobs.catalog import data_root
from unveil.server.jobs.command_job import CAPTION, CHECK, TRAIN
from unveil.server.jobs.job import Job
from unveil.server.jobs.sqlite_store import Part
from unveil.studio import job_html
from unveil.studio.form_autosave import Draft
from unveil.studio.form_parsing import settings_text
from unveil.studio.tab_base import Desk, Tab, Watch
from unveil.studio.tabs.queue import log_of
from unveil.train.sample_images import plot_run
from unveil.types import RecipeError

LOOK_S = 3.0  # between two drawings of curves
LAST = 40  # lines of what a command said, in sight
FIRST = "own-pictures"
KEPT = ("loss", "validation", "steps_per_second")  # of the last line, what is told in words


class Logged(Watch):
    """Watches a command, whose words are its result."""

    def made(self, job: Job) -> Markup:
        """What the command said."""
        return Markup('<pre class="log" tabindex="0">{}</pre>').format(job_html.plain(log_of(self._tab, job)))


class Train(Tab):
    """The tab of training."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "train")
        self.draft = Draft(self.name)

    def lay(self) -> None:
        """Places its parts."""
        say = self.say
        self.begin()
        self.draft.lay()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self.folder = gr.Dropdown(
                    self._folders(), value="", label=say("Folder of pictures or clips"), elem_id="train-folder"
                )
                self.where = gr.HTML(job_html.hint(say("Put folders into {root}.", root=data_root().absolute())))
                self.check = gr.Button(say("Look at the data"), elem_id="train-check")
                self.captioner = gr.Dropdown(self._captioners(), label=say("Captioner"), elem_id="train-captioner")
                self.caption = gr.Button(say("Write captions"), elem_id="train-caption")
                self.prepared = Logged(self, "prepare")
                self.prepared.lay()
            with gr.Column(scale=3, min_width=300):
                self._asked()
                self.watch = Logged(self, "train", say("Choose a recipe and a name, and start."))
                self.watch.lay()
                self._seen()
        self._wire()

    def _asked(self) -> None:
        say = self.say
        self.recipe = gr.Dropdown(recipe_names(), value=FIRST, label=say("Recipe"), elem_id="train-recipe")
        self.run = gr.Textbox(label=say("Name of the run"), value="my-first-run", elem_id="train-run")
        self.small = gr.Checkbox(False, label=say("The recipe's small form, to try it"), elem_id="train-small")
        self.changes = gr.Textbox(
            label=say("Changes of the recipe, a line each"),
            lines=2,
            placeholder="train.steps: 2000",
            elem_id="train-changes",
        )
        self.go = gr.Button(say("Start, or go on"), variant="primary", elem_id="train-go")

    def _seen(self) -> None:
        say = self.say
        self.curves = gr.HTML(elem_id="train-curves")
        self.at = gr.Slider(
            0, 1, value=1, step=1, label=say("Samples, from the first to the last"), visible=False, elem_id="train-at"
        )
        self.seen = gr.State([])  # the job whose samples are shown, and the last of them that was there
        self.samples = gr.HTML(elem_id="train-samples")
        with gr.Accordion(say("What the training says"), open=False, elem_id="train-says"):
            self.said = gr.HTML(elem_id="train-said")
        self.use = gr.Button(say("Use this model"), elem_id="train-use")
        self.timer = gr.Timer(LOOK_S, active=False)

    @property
    def drawn(self) -> list[Any]:
        """What `look` gives values for."""
        return [self.curves, self.at, self.seen, self.samples, self.said, self.timer]

    @property
    def looked(self) -> list[Any]:
        """What `look` is given."""
        return [self.watch.kept, self.at, self.seen]

    @property
    def fields(self) -> dict[str, Any]:
        """The parts that are asked, by name."""
        return {name: getattr(self, name) for name in ("folder", "recipe", "run", "small", "changes")}

    def _wire(self) -> None:
        one, other = self.watch, self.prepared
        self.draft.wire(self.fields)
        begun = one.begins(self.go.click, self._submit, [*self.fields.values()], [self.draft.kept])
        self.on(begun.then, self.look, self.looked, self.drawn, asked=False)
        self.on(self.folder.change, self._recipes, [self.folder, self.recipe], [self.recipe])
        other.begins(self.check.click, self._look_at, [self.folder])
        other.begins(self.caption.click, self._tell, [self.folder, self.captioner])
        self.on(self.timer.tick, self.look, self.looked, self.drawn, asked=False)
        for moved in (self.at.release, self.at.input):  # by a pointer, and by the keyboard
            self.on(moved, self._picture, [one.kept, self.at], [self.samples], asked=False)

    def _submit(self, owner: str, *values: Any) -> tuple[Job, list[Any]]:
        said = dict(zip(self.fields, values, strict=True))
        request: dict[str, Any] = {"recipe": said["recipe"], "run": said["run"], "small": said["small"]}
        request["settings"] = self.typed.settings(said["changes"], self.say("Changes of the recipe, a line each"))
        if said["folder"]:
            request["folder"] = said["folder"]
        self._not_twice(said["run"] or "", owner)
        return self.client.submit(TRAIN, request, owner), [{}]

    def _not_twice(self, run: str, owner: str) -> None:
        """Refuses a run that is being trained, and a new one whose model another of its name would hide."""
        queue, free = self.client.service.queue, self.client.service.catalog.free(run)
        if free != run:
            raise RecipeError(self.say("{run} is a model that is here already; {free} is free.", run=run, free=free))
        for job in (*queue.jobs("running", owner), *queue.jobs("queued", owner)):
            if job.kind == TRAIN and job.request.get("run") == run:
                raise RecipeError(self.say("The run {run} is being trained; stop it first.", run=run))

    def restored(self, owner: str, kept: Mapping[str, Any], typed: Any) -> list[Any]:
        """The run that the browser watched, or else the last one, with the fields that it was asked with.

        Gives what the browser keeps from then on, and values for the fields: what was typed since comes before them.
        """
        job = self.client.job((kept or {}).get("job"), owner)
        if job is None or job.kind != TRAIN:
            job = next(iter(self.client.service.queue.page(Part(owner, 1, kind=TRAIN))[0]), None)
        asked: dict[str, Any] = {}
        if job is not None:
            asked = {"small": False, **job.request, "changes": settings_text(job.request.get("settings", {}))}
        folder, recipe, *rest = self.draft.over([asked.get(name) for name in self.fields], typed)
        folder = folder if folder in self.client.service.catalog.folders() else ""
        if job is None and not typed:
            return [gr.skip() for _ in (self.watch.kept, *self.fields)]
        lists = [gr.Dropdown(choices=self._folders(), value=folder), self._recipes(owner, folder, recipe or FIRST)]
        return [{} if job is None else {"job": job.id}, *lists, *(gr.skip() if one is None else one for one in rest)]

    def _look_at(self, owner: str, folder: str) -> tuple[Job, list[Any]]:
        return self.client.submit(CHECK, {"folder": self._chosen(folder)}, owner), []

    def _tell(self, owner: str, folder: str, captioner: str | None) -> tuple[Job, list[Any]]:
        return self.client.submit(CAPTION, {"folder": self._chosen(folder), "model": captioner or ""}, owner), []

    def _chosen(self, folder: str) -> str:
        if not folder:
            raise RecipeError(self.say("Choose a folder first."))
        return folder

    # -- what is seen of a run ----------------------------------------------------------------------------------

    def look(self, owner: str, kept: Mapping[str, Any], at: Any = None, seen: Sequence[Any] = ()) -> list[Any]:
        """The curves of a run, its words and its samples as they are now: the newest, for who chose no earlier ones.

        Args:
            owner: whose.
            kept: what the browser keeps, with the job.
            at: where the slider is.
            seen: the job that was seen last, and the last of its samples then.
        """
        job = self.client.job((kept or {}).get("job"), owner)
        if job is None:
            return [gr.skip() for _ in self.drawn]
        run = self._run(job)
        sheets = _sheets(run)
        last = max(len(sheets) - 1, 0)
        now = [job.id, last]
        if at is None or list(seen or ())[:1] != [job.id] or at >= seen[1]:
            at = last
        told: dict[str, Any] = {"value": last} if at == last and now != list(seen or ()) else {}
        slider = gr.Slider(maximum=max(last, 1), visible=last > 0, **told)
        again = gr.Timer(active=not job_html.is_over(job))
        return [self._curves(run), slider, now, self._sheet(sheets, int(at)), self._last_words(job), again]

    def _picture(self, owner: str, kept: Mapping[str, Any], at: Any) -> Markup:
        job = self.client.job((kept or {}).get("job"), owner)
        return Markup("") if job is None else self._sheet(_sheets(self._run(job)), int(at or 0))

    def _last_words(self, job: Job) -> Markup:
        """The end of what the training says, while it runs and however it ended."""
        lines = log_of(self, job).splitlines()[-LAST:]
        if not lines:
            return job_html.hint(self.say("It has said nothing yet."))
        return Markup('<pre class="log" tabindex="0">{}</pre>').format(job_html.plain("\n".join(lines)))

    def _run(self, job: Job) -> Path:
        return self.client.service.catalog.runs / str(job.request["run"])

    def _curves(self, run: Path) -> Markup:
        """The loss and its parts by noise level, and the newest numbers in words."""
        lines = _lines(run / "metrics.jsonl")
        if not any("loss" in line and "event" not in line for line in lines):
            return job_html.hint(self.say("The curves begin with the first lines that the run writes."))
        plain = [line for line in lines if "event" not in line]
        last = {key: value for line in plain for key, value in line.items() if key in KEPT and value is not None}
        told = ", ".join(f"{key} {value:.4g}" for key, value in last.items())
        words = self.say("Step {step}: {numbers}", step=lines[-1].get("step", 0), numbers=told)
        drawn = Markup("").join(
            job_html.picture(data, self.say("Curves of {what}; {numbers}", what=name, numbers=told))
            for name, data in _plots(run / "metrics.jsonl", len(lines))
        )
        return Markup('<p data-steps="{}">{}</p>{}').format(lines[-1].get("step", 0), job_html.plain(words), drawn)

    def _sheet(self, sheets: list[Path], at: int) -> Markup:
        if not sheets:
            return Markup("")
        sheet = sheets[min(max(at, 0), len(sheets) - 1)]
        return job_html.picture(sheet.read_bytes(), self.say("Samples of {name}", name=sheet.stem))

    # -- lists --------------------------------------------------------------------------------------------------

    def _recipes(self, owner: str, folder: str, chosen: str) -> Any:
        """The recipes that read a folder, where one is chosen; else all."""
        names = of_folders() if folder else recipe_names()
        return gr.Dropdown(choices=names, value=chosen if chosen in names else FIRST)

    def _folders(self) -> list[tuple[str, str]]:
        names = self.client.service.catalog.folders()
        return [(self.say("the recipe's own data"), ""), *((name, name) for name in names)]

    def _captioners(self) -> list[str]:
        return [one.name for one in self.client.service.catalog.captioners()]

    def refreshed(self) -> list[Any]:
        """The lists of names as they are now."""
        return [gr.Dropdown(choices=self._folders()), gr.Dropdown(choices=self._captioners())]

    @property
    def named(self) -> list[Any]:
        """The parts that list names."""
        return [self.folder, self.captioner]

    def model_of(self, owner: str, kept: Mapping[str, Any]) -> str:
        """The name of the run that the browser keeps.

        Raises:
            RecipeError: there is none that can be used.
        """
        job = self.client.job((kept or {}).get("job"), owner)
        run = str(job.request["run"]) if job is not None else ""
        known = next((one for one in self.client.service.catalog.models() if one.name == run), None)
        if known is None:
            raise RecipeError(self.say("There is no model yet: start a run, and let it save."))
        if known.origin != "runs":
            raise RecipeError(self.say("{run} is another model's name, which is the one that is used.", run=run))
        return run


@lru_cache(maxsize=1)
def of_folders() -> list[str]:
    """The shipped recipes whose data is a folder of pictures or clips."""
    found = ((name, getattr(load_recipe(name, []), "data", None)) for name in recipe_names())
    return [name for name, data in found if getattr(data, "kind", "") in ("folder", "clips")]


def _sheets(run: Path) -> list[Path]:
    """The sheets of samples of a run, the first ones first."""
    return sorted((run / "samples").glob("*.png")) if (run / "samples").is_dir() else []


@lru_cache(maxsize=8)
def _plots(metrics: Path, lines: int) -> list[tuple[str, bytes]]:
    """The curves of a run with their names, drawn once for so many lines."""
    with TemporaryDirectory() as folder:
        return [(path.stem, path.read_bytes()) for path in plot_run(_lines(metrics)[:lines], Path(folder))]


def _lines(metrics: Path) -> list[dict[str, Any]]:
    """What a run wrote down; the last line may be half written."""
    found: list[dict[str, Any]] = []
    try:
        for line in metrics.read_text("utf-8").splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError):
        return found
    return found
