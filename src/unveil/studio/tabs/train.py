"""Training tab: check and caption data, train, watch a run, stop and resume it, and use the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.errors import RecipeError
from unveil.model.config import load_recipe, recipe_names
from unveil.server.jobs.catalog import data_root
from unveil.server.jobs.job_table import Job, PageQuery
from unveil.studio import job_html
from unveil.studio.form_autosave import FormAutosave
from unveil.studio.form_parsing import settings_text
from unveil.studio.tab_base import JobWatcher, Tab, TabContext
from unveil.studio.tabs.queue import job_log
from unveil.tasks.caption import CaptionMedia
from unveil.tasks.data_check import DataCheck
from unveil.tasks.train import Train
from unveil.train.sample_images import plot_run

LOOK_S = 3.0  # interval between two updates of the curves
LAST = 40  # lines of the log that are shown
FIRST = "own-images"
_ORDER = "train-run"  # group of the calls that draw a run
KEPT = ("loss", "validation", "steps_per_second")  # metrics of the last line that are shown as text


class LogWatcher(JobWatcher):
    """Watches a command, whose log is its result."""

    def result_html(self, job: Job) -> Markup:
        """Return the log of the command."""
        return Markup('<pre class="log" tabindex="0">{}</pre>').format(job_html.safe_text(job_log(self._tab, job)))


class TrainTab(Tab):
    """Tab of training."""

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "train")
        self.draft = FormAutosave(self.name)

    def build(self) -> None:
        """Create the components."""
        tr = self.tr
        self.begin()
        self.draft.build()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self.folder = gr.Dropdown(
                    self._folders(), value="", label=tr("Folder of images or videos"), elem_id="train-folder"
                )
                self.where = gr.HTML(job_html.hint(tr("Put folders into {root}.", root=data_root().absolute())))
                self.check = gr.Button(tr("Check the data"), elem_id="train-check")
                self.captioner = gr.Dropdown(
                    self._captioners(), label=tr("Captioning model"), elem_id="train-captioner"
                )
                self.caption = gr.Button(tr("Write captions"), elem_id="train-caption")
                self.prepared = LogWatcher(self, "prepare")
                self.prepared.build()
            with gr.Column(scale=3, min_width=300):
                self._inputs()
                self.watch = LogWatcher(self, "train", tr("Choose a recipe and a name, then start training."))
                self.watch.build()
                self._seen()
        self._connect()

    def _inputs(self) -> None:
        tr = self.tr
        self.recipe = gr.Dropdown(recipe_names(), value=FIRST, label=tr("Recipe"), elem_id="train-recipe")
        self.run = gr.Textbox(label=tr("Run name"), value="my-first-run", elem_id="train-run")
        self.small = gr.Checkbox(False, label=tr("Smoke test (the recipe's small form)"), elem_id="train-small")
        self.changes = gr.Textbox(
            label=tr("Recipe overrides, one per line"),
            lines=2,
            placeholder="train.steps: 2000",
            elem_id="train-changes",
        )
        self.delay = gr.HTML(elem_id="train-delay")
        self.go = gr.Button(tr("Start or resume training"), variant="primary", elem_id="train-go")

    def _seen(self) -> None:
        tr = self.tr
        self.curves = gr.HTML(elem_id="train-curves")
        self.at = gr.Slider(0, 1, value=1, step=1, label=tr("Samples over training"), visible=False, elem_id="train-at")
        self.seen = gr.State([])  # job whose samples are shown, and the index of its newest sample at that time
        self.moved = gr.State([])  # value of `seen` when the user last moved the slider
        self.samples = gr.HTML(elem_id="train-samples")
        with gr.Accordion(tr("Training log"), open=False, elem_id="train-says"):
            self.log = gr.HTML(elem_id="train-log")
        self.use = gr.Button(tr("Use this model"), elem_id="train-use")
        self.timer = gr.Timer(LOOK_S, active=False)

    @property
    def drawn(self) -> list[Any]:
        """Components that `look` updates."""
        return [self.curves, self.at, self.seen, self.samples, self.log, self.timer]

    @property
    def looked(self) -> list[Any]:
        """Inputs of `look`."""
        return [self.watch.browser_state, self.at, self.seen]

    @property
    def fields(self) -> dict[str, Any]:
        """Input components by name."""
        return {name: getattr(self, name) for name in ("folder", "recipe", "run", "small", "changes")}

    def _connect(self) -> None:
        watch, prepared = self.watch, self.prepared
        self.draft.connect(self.fields)
        submitted = watch.begins(self.go.click, self._submit, [*self.fields.values()], [self.draft.browser_state])
        self.looks(partial(submitted.then, trigger_mode="always_last"))
        self.on(self.folder.change, self._recipes, [self.folder, self.recipe], [self.recipe])
        changed = (self.recipe.change, self.folder.change, self.small.change, self.changes.blur)
        self.on_latest(changed, self.delayed, [*self.fields.values()], [self.delay])
        prepared.begins(self.check.click, self._look_at, [self.folder])
        prepared.begins(self.caption.click, self._tell, [self.folder, self.captioner])
        self.looks(self.timer.tick)
        moved = (self.at.release, self.at.input)  # by pointer and by keyboard
        inputs, outputs = [watch.browser_state, self.at, self.seen, self.moved], [self.at, self.moved, self.samples]
        self.on_latest(moved, self._sample_sheet, inputs, outputs, in_order=_ORDER)

    def looks(self, event: Any) -> None:
        """Connect an event to `look`; the calls run in the order of their events."""
        self.on(event, self.look, self.looked, self.drawn, by_user=False, in_order=_ORDER)

    def _request(self, values: Sequence[Any]) -> dict[str, Any]:
        """The values of the task.

        Raises:
            RecipeError: The overrides cannot be read.
        """
        form = dict(zip(self.fields, values, strict=True))
        request: dict[str, Any] = {"recipe": form["recipe"], "run_name": form["run"], "quick": form["small"]}
        request["settings"] = self.typed.settings(form["changes"], self.tr("Recipe overrides, one per line"))
        if form["folder"]:
            request["folder"] = form["folder"]
        return request

    def _submit(self, owner: str, *values: Any) -> tuple[Job, list[Any]]:
        request = self._request(values)
        self._not_twice(request["run_name"] or "", owner)
        return self.client.submit(Train.name, request, owner), [{}]

    def delayed(self, owner: str, *values: Any) -> Markup:
        """Return the warning that others would wait for this training."""
        try:
            request = self._request(values)
        except RecipeError:  # incomplete; reported when the training is started
            return Markup("")
        return job_html.delay_html(self.client.delay(Train.name, request, owner), self.tr)

    def _not_twice(self, run: str, owner: str) -> None:
        """Refuse a run that is being trained, and a new run whose model would be hidden by another of its name."""
        queue, free = self.client.service.queue, self.client.catalog.free_run_name(run)
        if free != run:
            raise RecipeError(self.tr("A model named {run} already exists; {free} is free.", run=run, free=free))
        for job in (*queue.jobs("running", owner), *queue.jobs("queued", owner)):
            if job.kind == Train.name and job.request.get("run_name") == run:
                raise RecipeError(self.tr("The run {run} is being trained; stop it first.", run=run))

    def restored(self, owner: str, state: Mapping[str, Any], typed: Any) -> list[Any]:
        """Restore the run that the browser watched, or else the last one, with its fields.

        Returns the browser state and the field values, in which autosaved input takes precedence.
        """
        job = self._training(owner, state)
        if job is None:
            job = next(iter(self.client.service.queue.page(PageQuery(owner, 1, kinds=(Train.name,)))[0]), None)
        values: dict[str, Any] = {}
        if job is not None:
            request = job.request
            values = {"folder": request.get("folder"), "recipe": request["recipe"], "run": request["run_name"]}
            values |= {"small": request.get("quick", False), "changes": settings_text(request.get("settings", {}))}
        folder, recipe, *rest = self.draft.merge([values.get(name) for name in self.fields], typed)
        folder = folder if folder in self.client.catalog.folders() else ""
        if job is None and not typed:
            return [gr.skip() for _ in (self.watch.browser_state, *self.fields)]
        lists = [gr.Dropdown(choices=self._folders(), value=folder), self._recipes(owner, folder, recipe or FIRST)]
        return [
            {} if job is None else {"job": job.id},
            *lists,
            *(gr.skip() if value is None else value for value in rest),
        ]

    def _look_at(self, owner: str, folder: str) -> tuple[Job, list[Any]]:
        return self.client.submit(DataCheck.name, {"folder": self._chosen(folder)}, owner), []

    def _tell(self, owner: str, folder: str, captioner: str | None) -> tuple[Job, list[Any]]:
        return self.client.submit(
            CaptionMedia.name, {"folder": self._chosen(folder), "model": captioner or ""}, owner
        ), []

    def _chosen(self, folder: str) -> str:
        if not folder:
            raise RecipeError(self.tr("Choose a folder first."))
        return folder

    # -- view of a run ------------------------------------------------------------------------------------------

    def look(self, owner: str, state: Mapping[str, Any], at: Any = None, seen: Sequence[Any] = ()) -> list[Any]:
        """Return the curves, the log and the samples of a run; the newest samples unless older ones were chosen.

        Args:
            owner: Owner of the job.
            kept: Browser state with the job.
            at: Position of the slider.
            seen: Job seen last, and the index of its newest sample then.
        """
        job = self._training(owner, state)
        if job is None:
            return [gr.skip() for _ in self.drawn]
        run = self._run(job)
        sheets = _sheets(run)
        last = max(len(sheets) - 1, 0)
        now = [job.id, last]
        if at is None or list(seen or ())[:1] != [job.id] or at >= seen[1]:
            at = last
        update: dict[str, Any] = {"value": last} if at == last and now != list(seen or ()) else {}
        slider = gr.Slider(maximum=max(last, 1), visible=last > 0, **update)
        again = gr.Timer(active=not job_html.has_ended(job))
        return [self._curves(run), slider, now, self._sheet(sheets, int(at)), self._last_words(job), again]

    def _sample_sheet(
        self, owner: str, state: Mapping[str, Any], at: Any, seen: Sequence[Any], moved: Sequence[Any]
    ) -> list[Any]:
        """Return the slider, the value of `seen`, and the sample grid that the user chose.

        If `look` has run since the last choice, it may have moved the slider after this choice: it is moved back.
        """
        job = self._training(owner, state)
        if job is None:
            return [gr.skip(), gr.skip(), Markup("")]
        place, seen = int(at or 0), list(seen or ())
        slider = gr.skip() if seen == list(moved or ()) else gr.Slider(value=place)
        return [slider, seen, self._sheet(_sheets(self._run(job)), place)]

    def _last_words(self, job: Job) -> Markup:
        """Return the end of the training log."""
        lines = job_log(self, job).splitlines()[-LAST:]
        if not lines:
            return job_html.hint(self.tr("No output yet."))
        return Markup('<pre class="log" tabindex="0">{}</pre>').format(job_html.safe_text("\n".join(lines)))

    def _training(self, owner: str, state: Mapping[str, Any]) -> Job | None:
        """Return the training job that the browser knows; None if its job does not exist or is another one."""
        job = self.client.job((state or {}).get("job"), owner)
        return None if job is None or job.kind != Train.name else job

    def _run(self, job: Job) -> Path:
        return self.client.catalog.runs / str(job.request["run_name"])

    def _curves(self, run: Path) -> Markup:
        """Return the loss, the loss by noise level, and the latest metrics as text."""
        lines = _lines(run / "metrics.jsonl")
        if not any("loss" in line and "event" not in line for line in lines):
            return job_html.hint(self.tr("Curves appear once the run has written its first metrics."))
        plain = [line for line in lines if "event" not in line]
        last = {key: value for line in plain for key, value in line.items() if key in KEPT and value is not None}
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in last.items())
        words = self.tr("Step {step}: {numbers}", step=lines[-1].get("step", 0), numbers=numbers)
        drawn = Markup("").join(
            job_html.embedded_image(data, self.tr("Curves of {what}; {numbers}", what=name, numbers=numbers))
            for name, data in _plots(run / "metrics.jsonl", len(lines))
        )
        return Markup('<p data-steps="{}">{}</p>{}').format(lines[-1].get("step", 0), job_html.safe_text(words), drawn)

    def _sheet(self, sheets: list[Path], at: int) -> Markup:
        if not sheets:
            return Markup("")
        sheet = sheets[min(max(at, 0), len(sheets) - 1)]
        return job_html.embedded_image(sheet.read_bytes(), self.tr("Samples of {name}", name=sheet.stem))

    # -- lists --------------------------------------------------------------------------------------------------

    def _recipes(self, owner: str, folder: str, chosen: str) -> Any:
        """Return the recipes that read a folder if one is chosen, else all."""
        names = of_folders() if folder else recipe_names()
        return gr.Dropdown(choices=names, value=chosen if chosen in names else FIRST)

    def _folders(self) -> list[tuple[str, str]]:
        names = self.client.catalog.folders()
        return [(self.tr("the recipe's own data"), ""), *((name, name) for name in names)]

    def _captioners(self) -> list[str]:
        return [entry.name for entry in self.client.catalog.captioners()]

    def refreshed(self) -> list[Any]:
        """Return the current lists of names."""
        return [gr.Dropdown(choices=self._folders()), gr.Dropdown(choices=self._captioners())]

    @property
    def named(self) -> list[Any]:
        """Components that list names."""
        return [self.folder, self.captioner]

    def model_of(self, owner: str, state: Mapping[str, Any]) -> str:
        """Return the name of the run that the browser knows.

        Raises:
            RecipeError: It has no usable model.
        """
        job = self._training(owner, state)
        run = str(job.request["run_name"]) if job is not None else ""
        model = next((entry for entry in self.client.catalog.models() if entry.name == run), None)
        if model is None:
            raise RecipeError(self.tr("No model exists yet: start a run and wait for its first checkpoint."))
        if model.origin != "runs":
            raise RecipeError(self.tr("{run} is also the name of another model, which takes precedence.", run=run))
        return run


@lru_cache(maxsize=1)
def of_folders() -> list[str]:
    """Return the bundled recipes whose data is a folder of images or videos."""
    datasets = ((name, getattr(load_recipe(name, []), "data", None)) for name in recipe_names())
    return [name for name, data in datasets if getattr(data, "kind", "") in ("folder", "video-folder")]


def _sheets(run: Path) -> list[Path]:
    """Return the sample sheets of a run, oldest first."""
    return sorted((run / "samples").glob("*.png")) if (run / "samples").is_dir() else []


@lru_cache(maxsize=8)
def _plots(metrics: Path, lines: int) -> list[tuple[str, bytes]]:
    """Return the named curves of a run; cached by the number of metric lines."""
    with TemporaryDirectory() as folder:
        return [(path.stem, path.read_bytes()) for path in plot_run(_lines(metrics)[:lines], Path(folder))]


def _lines(metrics: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run; the last line may be incomplete."""
    records: list[dict[str, Any]] = []
    try:
        for line in metrics.read_text("utf-8").splitlines():
            records.append(json.loads(line))
    except (OSError, ValueError):
        return records
    return records
