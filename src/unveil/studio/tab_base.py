"""Base classes of the tabs: event handling, error display, and watching of jobs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.core.samplers import sampler_specs
from unveil.errors import Error, RecipeError
from unveil.server.jobs.job_table import Job
from unveil.server.jobs.outputs import UploadedFile
from unveil.server.jobs.task_job import EXPANSIONS, random_seed
from unveil.studio import job_html
from unveil.studio.client import StudioClient
from unveil.studio.error_messages import error_text
from unveil.studio.form_autosave import FormAutosave
from unveil.studio.form_parsing import FormParser, non_empty, settings_text
from unveil.studio.i18n import Translator
from unveil.studio.mask import enlarge
from unveil.studio.task_form import FormField, TaskForm, label_of
from unveil.studio.upload_components import ImageUpload, MaskEditor
from unveil.tasks.fields import PLAYGROUND
from unveil.tasks.task import Task

_log = logging.getLogger(__name__)
POLL_S = 0.5  # polling interval of a job
Call = Callable[..., Any]
# Options of every connection to the server. With `show_progress="hidden"` alone, Gradio still keeps a status of each
# output, and at each status of any event it reads the value of each of them. For an image editor, that is an export of
# all its layers. An empty list of components for the progress leaves no such output.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
# passes clicks on buttons in HTML components to the server, with their data attributes
HEARD = """
element.addEventListener('click', (event) => {
  const found = event.target.closest('[data-do]');
  if (found) trigger('click', {...found.dataset});
});
"""


@dataclass(frozen=True)
class TabContext:
    """Service and translator that every tab receives."""

    client: StudioClient
    tr: Translator


class Tab:
    """A tab of the page.

    Args:
        context: Service and translator.
        name: Name of the tab, used in element ids and browser storage.
        in_order: Handle events one at a time, so that an older result does not replace a newer one.
    """

    def __init__(self, context: TabContext, name: str, in_order: bool = False) -> None:
        self.client, self.tr, self.name = context.client, context.tr, name
        self._how = QUIET | ({"concurrency_limit": 1, "concurrency_id": name} if in_order else {})
        self.typed = FormParser(context.tr)

    def begin(self) -> None:
        """Create the element for error messages; the first element of every tab."""
        self.message = gr.HTML(elem_id=f"{self.name}-message")

    def on(
        self,
        event: Any,
        call: Call,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        by_user: bool = True,
        in_order: str = "",
    ) -> Any:
        """Connect an event to `call(owner, *values)`; its errors are shown in the tab.

        Args:
            event: Event of a component, such as `button.click`.
            call: Returns a list of values for the outputs, or the value of the only output.
            inputs: Components whose values are passed.
            outputs: Components that are updated.
            by_user: The user caused the event, which clears an earlier error.
            in_order: Name of a group of connections. The calls of a group run one after the other in the order of
                their events, so that the result of an earlier event does not replace that of a later one.
        """

        def heard(request: gr.Request, *values: Any) -> Any:
            owner = owner_of(request)
            return self._tried(owner, lambda: call(owner, *values), len(outputs), by_user)

        how = self._how | ({"concurrency_limit": 1, "concurrency_id": in_order} if in_order else {})
        return event(heard, list(inputs), [self.message, *outputs], **how)

    def on_latest(
        self,
        events: Sequence[Any],
        call: Call,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        *,
        by_user: bool = False,
        in_order: str = "",
    ) -> Any:
        """Connect several events to one call, whose outputs show the values after the last event.

        One call runs at a time. Events during a call cause one more call after it. Separate connections of the events
        would run at the same time, and the result of an earlier event could replace that of a later one.
        """
        latest = partial(gr.on, [*events], trigger_mode="always_last")
        return self.on(latest, call, inputs, outputs, by_user=by_user, in_order=in_order)

    def on_button(self, part: Any, call: Call, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """Connect the buttons of an HTML component to `call(owner, data, *values)`."""

        def heard(request: gr.Request, event: gr.EventData, *values: Any) -> Any:
            event_data = event._data if isinstance(event._data, dict) else {}
            if "do" not in event_data:
                return [gr.skip() for _ in range(len(outputs) + 1)]
            data = {str(key): str(value)[:400] for key, value in event_data.items()}
            owner = owner_of(request)
            return self._tried(owner, lambda: call(owner, data, *values), len(outputs))

        return part.click(heard, list(inputs), [self.message, *outputs], **self._how)

    def _tried(self, owner: str, call: Callable[[], Any], count: int, by_user: bool = True) -> list[Any]:
        try:
            with self.client.on_behalf_of(owner):
                result = call()
        except Error as problem:
            return [job_html.alert(error_text(problem, self.tr)), *(gr.skip() for _ in range(count))]
        except OSError as problem:
            text = self.tr("The server could not do it: {error}", error=problem.strerror or type(problem).__name__)
            return [job_html.alert(text), *(gr.skip() for _ in range(count))]
        except Exception as problem:  # a bug: users see only its type
            _log.exception("tab %s of the page: unexpected error", self.name)
            text = self.tr("The server could not do it: {error}", error=type(problem).__name__)
            return [job_html.alert(text), *(gr.skip() for _ in range(count))]
        return ["" if by_user else gr.skip(), *(result if isinstance(result, list) else [result])]


def owner_of(request: gr.Request) -> str:
    """Return the owner of the page's API key, as set by the security middleware."""
    assert request.request is not None
    return str(request.request.scope.get("state", {}).get("owner", ""))


class JobWatcher:
    """Shows a job until it has ended; after a reload the browser still knows its id.

    Args:
        tab: Tab of the watcher.
        key: Storage key in the browser.
        empty: Hint to show without a job.
    """

    def __init__(self, tab: Tab, key: str, empty: str = "") -> None:
        self._tab, self._key, self._empty = tab, key, empty

    def build(self) -> None:
        """Create the components."""
        tr = self._tab.tr
        self.browser_state = gr.BrowserState({}, storage_key=f"unveil-{self._key}", secret="unveil")
        with gr.Row():
            self.cancel = gr.Button(tr("Cancel"), interactive=False, elem_id=f"{self._key}-cancel", variant="stop")
        self.status = gr.HTML(job_html.hint(self._empty) if self._empty else "", elem_id=f"{self._key}-status")
        self.result = gr.HTML(elem_id=f"{self._key}-result")
        self.timer = gr.Timer(POLL_S, active=False)
        self.looks(self.timer.tick)
        self._tab.on(self.cancel.click, self._cancelled, [self.browser_state], self.parts)

    @property
    def parts(self) -> list[Any]:
        """Components that `shows` updates."""
        return [self.status, self.result, self.timer, self.cancel]

    def begins(self, event: Any, call: Call, inputs: Sequence[Any], outputs: Sequence[Any] = ()) -> Any:
        """Connect an event to `call(owner, *values)`, which returns a new job and a list of values for the outputs.

        The job is read once more afterwards: an update about the previous job may have arrived in between, or may be
        under way.
        """

        def begun(owner: str, *values: Any) -> list[Any]:
            job, more = call(owner, *values)
            return [{"job": job.id}, *more, *self.shows(job)]

        done = self._tab.on(event, begun, inputs, [self.browser_state, *outputs, *self.parts])
        return self.looks(partial(done.then, trigger_mode="always_last"))

    def looks(self, event: Any) -> Any:
        """Connect an event to `look`; the calls run in the order of their events."""
        group = f"{self._key}-look"
        return self._tab.on(event, self.look, [self.browser_state], self.parts, by_user=False, in_order=group)

    def look(self, owner: str, state: Mapping[str, Any]) -> list[Any]:
        """Return the component values for the job that the browser knows."""
        job = self.client.job((state or {}).get("job"), owner)
        return [gr.skip() for _ in self.parts] if job is None else self.shows(job)

    @property
    def client(self) -> StudioClient:
        """The service."""
        return self._tab.client

    def shows(self, job: Job) -> list[Any]:
        """Return the component values for a job."""
        tr, over = self._tab.tr, job_html.has_ended(job)
        status = job_html.status_html(job, self.client.queue_position(job), self.client.has_preview(job), tr)
        result = self.result_html(job) if job.state == "completed" else Markup("")
        return [status, result, gr.Timer(active=not over), gr.Button(interactive=not over)]

    def result_html(self, job: Job) -> Markup:
        """Return the outputs of a completed job."""
        return job_html.outputs_html(job, self._tab.tr)

    def _cancelled(self, owner: str, state: Mapping[str, Any]) -> list[Any]:
        self.client.cancel((state or {}).get("job"), owner)
        return self.look(owner, state)


class GenerationTab(Tab):
    """A tab that submits jobs of its tasks, and restores its components from the request of one.

    A component of a task's field has the label, the range and the default of the field.
    """

    tasks: Mapping[str, type[Task]]  # by name
    watch: JobWatcher

    def __init__(self, context: TabContext, name: str) -> None:
        super().__init__(context, name)
        self.draft = FormAutosave(name)
        self._fields: dict[str, FormField] = {}

    @property
    def parts(self) -> dict[str, Any]:
        """The components that `add` created, by the names of their fields."""
        return {name: field.part for name, field in self._fields.items()}

    def add(self, task: type[Task], name: str, **shown: Any) -> Any:
        """Create the component of a task's field; `shown` are further arguments of the component."""
        elem_id = f"{self.name}-{name.replace('_', '-')}"
        field = TaskForm(task, self.client, self.tr).component(name, elem_id=elem_id, min_width=90, **shown)
        self._fields[name] = field
        return field.part

    def read(self, task: type[Task], form: Mapping[str, Any]) -> dict[str, Any]:
        """The values of those of a task's fields that all generation tabs have.

        Raises:
            RecipeError: A value cannot be read.
        """
        texts = non_empty(**{name: form[name] for name in ("model", "prompt", "sampler", "expand_prompt")})
        request = {name: text for name, text in texts.items() if name in task.model_fields}
        request["seed"] = self.typed.integer(form["seed"], self.tr("Seed")) or 0
        if "strength" in task.model_fields:
            request["strength"] = form["strength"]
        for name, field in self._fields.items():
            if name in task.model_fields and (value := field.read(form[name])) is not None:
                request[name] = value
        return request

    def common_values(self, task: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the components that `read` reads."""
        fields = self.tasks[task].model_fields
        values = {name: _as_text(request.get(name, "")) for name in ("prompt", "sampler", "expand_prompt")}
        seed = request.get("seed", 0)
        values |= {"task": task, "model": request.get("model", PLAYGROUND), "fresh": False}
        values["seed"] = seed[0] if isinstance(seed, list) else seed
        for name, field in self._fields.items():
            default = field.part.value if name not in fields else fields[name].get_default(call_default_factory=True)
            value = request.get(name, default)
            values[name] = _as_text(value) if isinstance(field.part, gr.Textbox) else value
        return values

    def unsupported(self, task: str, request: Mapping[str, Any], represented: Sequence[str]) -> list[str]:
        """The labels of those fields of a request that have no component, or more values than theirs holds."""
        fields = self.tasks[task].model_fields
        shown = {*self._fields, *represented, "model", "prompt", "sampler", "expand_prompt", "seed"}
        for name in ("prompt", "seed", "strength"):  # whose components hold one value
            if isinstance(value := request.get(name), list) and len(value) > 1 and name not in represented:
                shown.discard(name)
        return [
            self.tr.optional(label_of(name, fields[name]))
            for name, value in request.items()
            if name in fields and name not in shown and value != fields[name].get_default(call_default_factory=True)
        ]

    def build_seed(self) -> None:
        """Create the seed and the random-seed check box."""
        tr, name = self.tr, self.name
        with gr.Row():
            self.seed = gr.Number(0, minimum=0, precision=0, label=tr("Seed"), elem_id=f"{name}-seed", min_width=120)
            self.fresh = gr.Checkbox(True, label=tr("Random seed each time"), elem_id=f"{name}-fresh", min_width=120)

    def build_unsupported(self) -> None:
        """Create the line that lists restored settings without a field."""
        self.lacking = gr.HTML(elem_id=f"{self.name}-lacking")

    def by_name(self) -> Any:
        """Create the list of samplers."""
        return gr.Dropdown(
            [(self.tr("model default"), ""), *((name, name) for name in sampler_specs())], value="",
            label=self.tr("Sampler"), elem_id=f"{self.name}-sampler",
        )  # fmt: skip

    def build_strength(self, task: type[Task]) -> Any:
        """Create the slider of the strength, at the default of a task."""
        field = task.model_fields["strength"]
        label, value = self.tr.optional(label_of("strength", field)), default_strength(task)
        return gr.Slider(0, 1, value=value, step=0.05, label=label, elem_id=f"{self.name}-strength")

    def build_expansion(self, task: type[Task]) -> Any:
        """Create the choice of the prompt expansion; a server has the rules and none."""
        field = task.model_fields["expand_prompt"]
        choices = [(self.tr("model default"), ""), *((name, name) for name in EXPANSIONS if name)]
        label = self.tr.optional(label_of("expand_prompt", field))
        return gr.Dropdown(choices, value="", label=label, elem_id=f"{self.name}-expand-prompt")

    def brush(self) -> Any:
        """Create the mask editor."""
        return MaskEditor(
            label=self.tr("Mask"), type="filepath", sources=(), transforms=(), layers=False, image_mode="RGBA",
            canvas_size=(512, 512), height=460,
            brush=gr.Brush(default_size=40, colors=["#ff3b30"], color_mode="fixed"), format="png",
            elem_id=f"{self.name}-editor",
        )  # fmt: skip

    def ready_mask(self) -> Any:
        """Create the upload of a mask file, for users who have one or cannot paint."""
        return ImageUpload(
            label=self.tr("Or a mask file (same size, white where one would paint)"), type="filepath",
            sources=["upload", "clipboard"], height=160, elem_id=f"{self.name}-mask",
        )  # fmt: skip

    def masked(self, form: Mapping[str, Any], upload: UploadedFile) -> str | None:
        """Return the upload name of the painted mask or the mask file; None without either.

        Raises:
            RecipeError: Both were given.
            DataError: A file cannot be read.
        """
        painted, mask_file = self.client.store_mask(form["editor"], upload), self.client.store_upload(form["mask"])
        if painted is not None and mask_file is not None:
            raise RecipeError(self.tr("Paint a mask or choose a mask file, not both."))
        return painted if mask_file is None else mask_file.name

    def to_paint(self, path: str | None) -> Any:
        """Return the mask editor's value for an image or video; the editor must be visible by then."""
        image = self.client.cover_image(path)
        return None if image is None else enlarge(image)

    @property
    def fields(self) -> dict[str, Any]:
        """Input components by name."""
        raise NotImplementedError

    def request(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """Build the values of the task from those of the components."""
        raise NotImplementedError

    def task_of(self, form: Mapping[str, Any]) -> str:
        """Return the name of the chosen task."""
        return form["task"]

    def submitted(self, owner: str, *values: Any) -> tuple[Job, list[Any]]:
        """Submit a job; also return its seed, and empty values for the unsupported settings and the autosave."""
        form = dict(zip(self.fields, values, strict=True))
        if form["fresh"]:
            form["seed"] = random_seed()
        return self.client.submit(self.task_of(form), self.request(form), owner), [form["seed"], "", {}]

    @property
    def settled(self) -> list[Any]:
        """Components that `submitted` updates besides the job."""
        return [self.seed, self.lacking, self.draft.browser_state]

    def left_out(self, task: str, request: Mapping[str, Any]) -> list[str]:
        """Return the settings of a request that have no component, as text."""
        raise NotImplementedError

    @property
    def filled(self) -> list[Any]:
        """Components that `refilled` updates."""
        return [*self.fields.values(), self.draft.browser_state, self.lacking]

    def refilled(
        self, task: str, request: Mapping[str, Any], *, in_gallery: bool = True, without: Sequence[str] = ()
    ) -> list[Any]:
        """Return field values for a request, the autosaved values, and a line on settings without a field.

        Args:
            task: Name of the task.
            request: The request.
            in_gallery: The gallery has its job, and can repeat it exactly.
            without: Further settings that cannot be restored, as text.
        """
        lacking = ", ".join([*self.left_out(task, request), *without])
        line: str = self.tr("Not restored in the form: {what}.", what=lacking) if lacking else ""
        if line and in_gallery:
            line += " " + self.tr("Generate again, in the gallery, repeats the request with all its settings.")
        values = self.filled_by(task, request)
        return [*values, self.draft.storable(values), job_html.hint(line) if line else ""]

    def filled_by(self, task: str, request: Mapping[str, Any]) -> list[Any]:
        """Return the values of the components that produce this request."""
        raise NotImplementedError

    def restored(self, owner: str, state: Mapping[str, Any], typed: Any) -> list[Any]:
        """Restore the fields from the last job and from the autosave."""
        job = self.client.job((state or {}).get("job"), owner)
        *values, _, line = (
            self.refilled(job.kind, job.request)
            if job is not None and job.kind in self.tasks
            else [gr.skip() for _ in self.filled]
        )
        return [*self.draft.merge(values, typed), gr.skip(), line]


def default_strength(task: type[Task]) -> float:
    """The default strength of a task; of several, one for each frame, the first."""
    default = task.model_fields["strength"].default
    return float(default[0] if isinstance(default, tuple) else default)


def _as_text(value: Any) -> str:
    """The text that stands for a value in a component."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return settings_text(value)
    if isinstance(value, list | tuple):
        return "\n".join(map(_as_text, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def default_for(every: Mapping[str, float], chosen: str, value: Any) -> Any:
    """Return a slider's default for a choice, unless the user has moved the slider.

    Args:
        every: Defaults by choice; a slider at one of these values counts as not moved.
        chosen: The choice.
        value: Value of the slider.
    """
    return every[chosen] if chosen in every and value in every.values() else gr.skip()


def connect_default(part: Any, slider: Any, every: Mapping[str, float]) -> None:
    """Connect a choice to a slider as in `default_for`, in the browser because the user may submit at once."""
    call = f"""(chosen, value) => {{
      const every = {json.dumps(dict(every))};
      return chosen in every && Object.values(every).includes(value) ? every[chosen] : value;
    }}"""
    part.input(None, [part, slider], [slider], js=call, queue=False, **QUIET)
