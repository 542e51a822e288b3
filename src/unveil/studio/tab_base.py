"""What the tabs of the page have alike: how they hear, how they say what went wrong, and how they watch a job."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.core.samplers import SAMPLERS
from unveil.server.jobs.job import Job
from unveil.server.jobs.request import any_seed
from unveil.server.jobs.uploads import Kept
from unveil.studio import job_html
from unveil.studio.client import Client
from unveil.studio.error_messages import told
from unveil.studio.form_autosave import Draft
from unveil.studio.form_parsing import Typed
from unveil.studio.i18n import Say
from unveil.studio.mask import enlarged
from unveil.studio.upload_components import Brush, Still
from unveil.types import Error, RecipeError

_log = logging.getLogger(__name__)
POLL_S = 0.5  # between two looks at a job
Call = Callable[..., Any]
# Buttons of our own HTML tell what they say to do; what is in the page is read again each time.
HEARD = """
element.addEventListener('click', (event) => {
  const found = event.target.closest('[data-do]');
  if (found) trigger('click', {...found.dataset});
});
"""


@dataclass(frozen=True)
class Desk:
    """What every tab is given: the service and the language."""

    client: Client
    say: Say


class Tab:
    """A tab: its parts and what they do.

    Args:
        desk: the service and the language.
        name: of the tab, in addresses and in what the browser keeps.
        in_order: whether its events are answered one after the other, so that none takes back what a later one showed.
    """

    def __init__(self, desk: Desk, name: str, in_order: bool = False) -> None:
        self.client, self.say, self.name = desk.client, desk.say, name
        self._how = _QUIET | ({"concurrency_limit": 1, "concurrency_id": name} if in_order else {})
        self.typed = Typed(desk.say)

    def begin(self) -> None:
        """Places what says what went wrong; the first part of every tab."""
        self.told = gr.HTML(elem_id=f"{self.name}-told")

    def on(self, event: Any, call: Call, inputs: Sequence[Any], outputs: Sequence[Any], *, asked: bool = True) -> Any:
        """Lets an event call `call(owner, *values)`, whose fault is told in the tab.

        Args:
            event: of a part, such as `button.click`.
            call: gives a list of values for the outputs, or the value of the only one.
            inputs: parts whose values are given.
            outputs: parts that it changes.
            asked: whether a person did something, for whom an earlier fault is over.
        """

        def heard(request: gr.Request, *values: Any) -> Any:
            return self._tried(lambda: call(_owner(request), *values), len(outputs), asked)

        return event(heard, list(inputs), [self.told, *outputs], **self._how)

    def on_button(self, part: Any, call: Call, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        """The same for the buttons in a part's HTML: `call(owner, said, *values)` with their data."""

        def heard(request: gr.Request, event: gr.EventData, *values: Any) -> Any:
            said = event._data if isinstance(event._data, dict) else {}
            if "do" not in said:
                return [gr.skip() for _ in range(len(outputs) + 1)]
            given = {str(key): str(value)[:400] for key, value in said.items()}
            return self._tried(lambda: call(_owner(request), given, *values), len(outputs))

        return part.click(heard, list(inputs), [self.told, *outputs], **self._how)

    def _tried(self, call: Callable[[], Any], count: int, asked: bool = True) -> list[Any]:
        try:
            found = call()
        except Error as problem:
            return [job_html.alert(told(problem, self.say)), *(gr.skip() for _ in range(count))]
        except OSError as problem:
            text = self.say("The server could not do it: {error}", error=problem.strerror or type(problem).__name__)
            return [job_html.alert(text), *(gr.skip() for _ in range(count))]
        except Exception as problem:  # of ours, or of what we use: nothing of it is for others to read but its kind
            _log.exception("the page's tab %s: a fault", self.name)
            text = self.say("The server could not do it: {error}", error=type(problem).__name__)
            return [job_html.alert(text), *(gr.skip() for _ in range(count))]
        return ["" if asked else gr.skip(), *(found if isinstance(found, list) else [found])]


_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def _owner(request: gr.Request) -> str:
    """Whose key the page was asked with; the guard before it has put that down."""
    assert request.request is not None
    return str(request.request.scope.get("state", {}).get("owner", ""))


class Watch:
    """Shows a job until it has ended, and finds it again after a reload: the browser keeps its name.

    Args:
        tab: that it is in.
        key: by which the browser keeps it.
        empty: what to do, as long as there is no job.
    """

    def __init__(self, tab: Tab, key: str, empty: str = "") -> None:
        self._tab, self._key, self._empty = tab, key, empty

    def lay(self) -> None:
        """Places its parts."""
        say = self._tab.say
        self.kept = gr.BrowserState({}, storage_key=f"unveil-{self._key}", secret="unveil")
        with gr.Row():
            self.cancel = gr.Button(say("Cancel"), interactive=False, elem_id=f"{self._key}-cancel", variant="stop")
        self.status = gr.HTML(job_html.hint(self._empty) if self._empty else "", elem_id=f"{self._key}-status")
        self.result = gr.HTML(elem_id=f"{self._key}-result")
        self.timer = gr.Timer(POLL_S, active=False)
        self._tab.on(self.timer.tick, self.look, [self.kept], self.parts, asked=False)
        self._tab.on(self.cancel.click, self._cancelled, [self.kept], self.parts)

    @property
    def parts(self) -> list[Any]:
        """What `shows` gives values for."""
        return [self.status, self.result, self.timer, self.cancel]

    def begins(self, event: Any, call: Call, inputs: Sequence[Any], outputs: Sequence[Any] = ()) -> Any:
        """Lets an event begin the job of `call(owner, *values)`, which gives it, and a list of values for the outputs.

        The job is looked at once more afterwards: an answer about the one before may have come in between.
        """

        def begun(owner: str, *values: Any) -> list[Any]:
            job, more = call(owner, *values)
            return [{"job": job.id}, *more, *self.shows(job)]

        done = self._tab.on(event, begun, inputs, [self.kept, *outputs, *self.parts])
        return self._tab.on(done.then, self.look, [self.kept], self.parts, asked=False)

    def look(self, owner: str, kept: Mapping[str, Any]) -> list[Any]:
        """The values of its parts for the job that the browser keeps."""
        job = self.client.job((kept or {}).get("job"), owner)
        return [gr.skip() for _ in self.parts] if job is None else self.shows(job)

    @property
    def client(self) -> Client:
        """The service."""
        return self._tab.client

    def shows(self, job: Job) -> list[Any]:
        """The values of its parts for a job."""
        say, over = self._tab.say, job_html.is_over(job)
        status = job_html.status(job, self.client.place(job), self.client.preview(job), say)
        result = self.made(job) if job.state == "completed" else Markup("")
        return [status, result, gr.Timer(active=not over), gr.Button(interactive=not over)]

    def made(self, job: Job) -> Markup:
        """What a completed job made."""
        return job_html.made(job, self._tab.say)

    def _cancelled(self, owner: str, kept: Mapping[str, Any]) -> list[Any]:
        self.client.cancel((kept or {}).get("job"), owner)
        return self.look(owner, kept)


class Maker(Tab):
    """A tab that makes something of its fields, and fills them again from what was asked."""

    kind: str  # of its jobs
    watch: Watch

    def __init__(self, desk: Desk, name: str) -> None:
        super().__init__(desk, name)
        self.draft = Draft(name)

    def lay_seed(self) -> None:
        """Places the seed, and whether each time takes another."""
        say, name = self.say, self.name
        with gr.Row():
            self.seed = gr.Number(0, minimum=0, precision=0, label=say("Seed"), elem_id=f"{name}-seed", min_width=120)
            self.fresh = gr.Checkbox(True, label=say("Another seed each time"), elem_id=f"{name}-fresh", min_width=120)

    def lay_lacking(self) -> None:
        """Places what says which of the settings that were taken have no field."""
        self.lacking = gr.HTML(elem_id=f"{self.name}-lacking")

    def field(self, label: str, part: str) -> Any:
        """A field of a number that may be left empty."""
        return gr.Textbox(
            label=label, placeholder=self.say("auto"), elem_id=f"{self.name}-{part}", min_width=90
        )  # fmt: skip

    def by_name(self) -> Any:
        """A list of samplers."""
        return gr.Dropdown(
            [(self.say("the model's own"), ""), *((one, one) for one in SAMPLERS)], value="",
            label=self.say("Sampler"), elem_id=f"{self.name}-sampler",
        )  # fmt: skip

    def anew(self, value: float) -> Any:
        """A slider of how much is made anew."""
        label = self.say("How much is made anew, 0 to 1")
        return gr.Slider(0, 1, value=value, step=0.05, label=label, elem_id=f"{self.name}-strength")

    def brush(self) -> Any:
        """A picture that is painted over."""
        return Brush(
            label=self.say("The part"), type="filepath", sources=(), transforms=(), layers=False, image_mode="RGBA",
            canvas_size=(512, 512), height=460,
            brush=gr.Brush(default_size=40, colors=["#ff3b30"], color_mode="fixed"), format="png",
            elem_id=f"{self.name}-editor",
        )  # fmt: skip

    def ready_mask(self) -> Any:
        """A mask from a file, for who has one, or cannot paint."""
        return Still(
            label=self.say("Or a mask from a file, as large, white where one would paint"), type="filepath",
            sources=["upload", "clipboard"], height=160, elem_id=f"{self.name}-mask",
        )  # fmt: skip

    def masked(self, said: Mapping[str, Any], kept: Kept) -> str | None:
        """The mask of a picture or a clip that was sent, painted or given, as requests name it; None: neither.

        Raises:
            RecipeError: both.
            MediaError: a file that cannot be read.
        """
        painted, given = self.client.mask(said["editor"], kept), self.client.keep(said["mask"])
        if painted is not None and given is not None:
            raise RecipeError(self.say("Paint over the part, or give a mask from a file: not both."))
        return painted if given is None else given.name

    def to_paint(self, path: str | None) -> Any:
        """The value of the brush's part for a picture or a clip of the page; it must be seen by then."""
        found = self.client.cover(path)
        return None if found is None else enlarged(found)

    @property
    def fields(self) -> dict[str, Any]:
        """The parts that are asked, by name."""
        raise NotImplementedError

    def request(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of the service, of the values of the fields."""
        raise NotImplementedError

    def submitted(self, owner: str, *values: Any) -> tuple[Job, list[Any]]:
        """The job of the fields' values, the seed that it has, that nothing of it lacks a field, nor is a draft."""
        said = dict(zip(self.fields, values, strict=True))
        if said["fresh"]:
            said["seed"] = any_seed()
        return self.client.submit(self.kind, self.request(said), owner), [said["seed"], "", {}]

    @property
    def settled(self) -> list[Any]:
        """What `submitted` gives values for, after the job."""
        return [self.seed, self.lacking, self.draft.kept]

    def left_out(self, request: Mapping[str, Any]) -> list[str]:
        """What of a request has no field, in words."""
        raise NotImplementedError

    @property
    def filled(self) -> list[Any]:
        """What `refilled` gives values for."""
        return [*self.fields.values(), self.draft.kept, self.lacking]

    def refilled(self, request: Mapping[str, Any], *, kept: bool = True, without: Sequence[str] = ()) -> list[Any]:
        """The fields of a request, what the browser is to keep of them, and a line on what has none.

        Args:
            request: as it was asked.
            kept: whether the gallery has it, which asks for it as it is.
            without: what the request lacks, in words.
        """
        lacking = ", ".join([*self.left_out(request), *without])
        line: str = self.say("Not in the fields: {what}.", what=lacking) if lacking else ""
        if line and kept:
            line += " " + self.say("Make it again, in the gallery, asks for all of it as it was.")
        values = self.filled_by(request)
        return [*values, self.draft.of(values), job_html.hint(line) if line else ""]

    def filled_by(self, request: Mapping[str, Any]) -> list[Any]:
        """The values of its fields that ask for this again."""
        raise NotImplementedError

    def restored(self, owner: str, kept: Mapping[str, Any], typed: Any) -> list[Any]:
        """The fields as they were when the job that the browser keeps was asked for, and what was typed since."""
        job = self.client.job((kept or {}).get("job"), owner)
        *values, _, line = [gr.skip() for _ in self.filled] if job is None else self.refilled(job.request)
        return [*self.draft.over(values, typed), gr.skip(), line]


def usual_of(every: Mapping[str, float], chosen: str, value: Any) -> Any:
    """What gives a slider the usual value of what is chosen, unless a hand has moved it.

    Args:
        every: the usual values, by what can be chosen; a slider that stands at one of them counts as not moved.
        chosen: of them.
        value: of the slider.
    """
    return every[chosen] if chosen in every and value in every.values() else gr.skip()


def shows_usual(part: Any, slider: Any, every: Mapping[str, float]) -> None:
    """Lets a choice by hand set a slider as `usual_of` does; in the browser, since a button may be pressed at once."""
    call = f"""(chosen, value) => {{
      const every = {json.dumps(dict(every))};
      return chosen in every && Object.values(every).includes(value) ? every[chosen] : value;
    }}"""
    part.input(None, [part, slider], [slider], js=call, queue=False, show_progress="hidden", api_visibility="private")
