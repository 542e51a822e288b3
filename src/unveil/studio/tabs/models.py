"""Models: what there is, what is in it, how it comes in, and how it is written in other layouts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from markupsafe import Markup

from unveil.checkpoints import formats
from unveil.cli import inspect
from unveil.cli.console import Console
from unveil.io.files import staged, sync_file
from unveil.io.safetensors_io import read_header
from unveil.model import model_dir
from unveil.server.jobs.catalog import Known, about
from unveil.server.jobs.command_job import CONVERT, Dtype, Layout
from unveil.server.jobs.job import Job
from unveil.studio import job_html
from unveil.studio.tab_base import HEARD, Desk, Tab
from unveil.studio.tabs.train import Logged
from unveil.types import DataError, OutputError, RecipeError, WeightsError

DRAWERS = {"LoRA": "loras", "ControlNet": "controlnets"}  # of what is no model
PICKLES = (b"PK\x03\x04", b"\x80")  # begin what `torch.save` writes


@dataclass(frozen=True)
class Heard(Console):
    """A console that keeps the result's words."""

    lines: list[str] = field(default_factory=list)

    def result(self, facts: Mapping[str, Any], text: str) -> None:
        """Keeps them."""
        self.lines.append(text)


class Models(Tab):
    """The tab of models."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "models")

    def lay(self) -> None:
        """Places its parts."""
        say = self.say
        self.begin()
        where = say(
            "Models are put into {root}, in checkpoints, loras and controlnets.", root=model_dir.models_dir().absolute()
        )
        gr.HTML(job_html.hint(where))
        self.table = gr.HTML(elem_id="models-table", js_on_load=HEARD)
        self.detail = gr.HTML(elem_id="models-detail")
        with gr.Accordion(say("Bring a file in"), open=False, elem_id="models-import"):
            self.file = gr.File(
                label=say("File of weights"), file_types=[*model_dir.FILES], elem_id="models-file", height=120
            )
            drawers = [(words, name) for name, words in self._drawers.items()]
            self.drawer = gr.Radio(drawers, value="checkpoints", label=say("What it is"), elem_id="models-drawer")
            self.bring = gr.Button(say("Bring it in"), elem_id="models-bring")
            self.brought = gr.HTML(elem_id="models-brought")
        with gr.Accordion(say("Write it in another layout"), open=False, elem_id="models-convert"):
            self.source = gr.Dropdown(self.client.models(), label=say("Model"), elem_id="models-source")
            self.layout = gr.Radio([*get_args(Layout)], value="diffusers", label=say("Layout"), elem_id="models-layout")
            self.dtype = gr.Radio([*get_args(Dtype)], value="float32", label=say("Numbers"), elem_id="models-dtype")
            self.name = gr.Textbox(label=say("Name of what is written"), elem_id="models-name")
            self.convert = gr.Button(say("Write it"), elem_id="models-go")
            self.watch = Logged(self, "convert", say("Choose a model, a layout and a name."))
            self.watch.lay()
        self._wire()

    def _wire(self) -> None:
        self.on_button(self.table, self._heard, [], [self.detail])
        seen = [self.table, self.file, self.source, self.brought]
        self.on(self.bring.click, self._brought, [self.file, self.drawer], seen)
        asked = [self.source, self.layout, self.dtype, self.name]
        self.watch.begins(self.convert.click, self._converted, asked)

    @property
    def _drawers(self) -> dict[str, str]:
        """What lies in each part of the models folder, in words."""
        say = self.say
        return {"checkpoints": say("model"), "loras": say("LoRA"), "controlnets": say("ControlNet")}

    def look(self, owner: str) -> Markup:
        """The table of all that there is."""
        say, catalog = self.say, self.client.service.catalog
        kinds = {"checkpoints": catalog.models(), "loras": catalog.loras(), "controlnets": catalog.controls()}
        rows = [self._row(kind, one) for kind, found in kinds.items() for one in found]
        heads = [say("Name"), say("What it is"), say("From"), say("Makes"), say("Size"), say("Steps"), say("Do")]
        return job_html.table(heads, rows)

    def _row(self, kind: str, one: Known) -> list[object]:
        say, told = self.say, about(one)
        origins = {"shipped": say("unveil"), "models": say("models folder"), "runs": say("trained here")}
        makes = {"pictures": say("pictures"), "clips": say("clips"), None: ""}
        size = " x ".join(map(str, told.shape[1:])) if told.shape else ""
        act = job_html.button("inspect", say("Inspect"), say("Inspect {what}", what=one.name), name=one.name, kind=kind)
        return [one.name, self._drawers[kind], origins[one.origin], makes[told.makes], size, told.steps or "", act]

    def _heard(self, owner: str, said: Mapping[str, str]) -> Markup:
        catalog, kind = self.client.service.catalog, said.get("kind", "")
        every = {"loras": catalog.loras, "controlnets": catalog.controls}.get(kind, catalog.models)
        known = next((one for one in every() if one.name == said.get("name")), None)
        if known is None:
            raise RecipeError(self.say("This model is not there any more."))
        heard = Heard()
        inspect.model(inspect.InspectRequest(known.path), heard)
        told = Markup('<h3>{}</h3><pre class="log" tabindex="0">{}</pre>')
        return told.format(job_html.plain(known.name), job_html.plain("\n".join(heard.lines)))

    def _brought(self, owner: str, path: str | None, drawer: str) -> list[Any]:
        if not path:
            raise RecipeError(self.say("Give the file first."))
        if drawer not in model_dir.DRAWERS or not path.endswith(model_dir.FILES):
            endings = ", ".join(model_dir.FILES)
            raise DataError(self.say("{name}: must end in {endings}.", name=Path(path).name, endings=endings))
        place = model_dir.models_dir() / drawer / Path(path).name
        if place.exists():
            raise OutputError(self.say("{name} is there already; rename the file.", name=place.name))
        what = self._judged(Path(path), drawer)
        with staged(place) as part:
            shutil.copyfile(path, part)
            sync_file(part)
        told = Markup('<p role="status">{}</p>').format(
            job_html.plain(self.say("{name} was brought in: {what}.", name=place.name, what=what))
        )
        return [self.look(owner), None, gr.Dropdown(choices=self.client.models()), told]

    def _judged(self, path: Path, drawer: str) -> str:
        """What a file of weights is, in words, by its content: any file can have any name.

        Raises:
            MediaError: it is none, or is damaged.
            RecipeError: it belongs into another drawer.
        """
        say, name = self.say, path.name
        try:
            found = formats.detect_format(read_header(path).tensors)
        except WeightsError as problem:
            with path.open("rb") as file:
                if file.read(4).startswith(PICKLES):
                    return say("a pickle, of which plain tensors alone are read")
            why = str(problem).removeprefix(f"{path}: ")
            raise DataError(say("{name} was not brought in: {why}", name=name, why=why)) from problem
        if found is None:
            return say("tensors of a layout that is not known here")
        fits = DRAWERS.get(found.kind, "checkpoints")
        if fits != drawer:
            kind = self._drawers[fits]
            raise RecipeError(say("{name} was not brought in: by its content it is {kind}.", name=name, kind=kind))
        return found.what

    def _converted(self, owner: str, source: str, layout: str, dtype: str, name: str) -> tuple[Job, list[Any]]:
        request = {"model": source or "", "layout": layout, "dtype": dtype, "name": name}
        return self.client.submit(CONVERT, request, owner), []
