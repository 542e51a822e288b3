"""Models tab: list, inspect, download, import and convert models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from markupsafe import Markup

from unveil.checkpoints import registry
from unveil.checkpoints.format import SUBFOLDER_OF_KIND
from unveil.checkpoints.hub.table import published_models
from unveil.errors import DataError, OutputError, RecipeError, WeightsError
from unveil.io.files import read_header, staged
from unveil.model import model_folder
from unveil.server.jobs.catalog import CatalogEntry, model_info
from unveil.server.jobs.job_table import Job
from unveil.studio import job_html
from unveil.studio.tab_base import HEARD, Tab, TabContext
from unveil.studio.tabs.train import LogWatcher
from unveil.studio.task_form import plain_type
from unveil.tasks.convert import Convert
from unveil.tasks.get import Get
from unveil.tasks.inspect import InspectModel
from unveil.tasks.task import TaskContext, TaskOutput

PICKLES = (b"PK\x03\x04", b"\x80")  # first bytes of files written by `torch.save`


class ModelsTab(Tab):
    """Tab of models."""

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "models")

    def build(self) -> None:
        """Create the components."""
        tr = self.tr
        self.begin()
        where = tr(
            "Put models into {root}, in the folders checkpoints, loras and controlnets.",
            root=model_folder.models_dir().absolute(),
        )
        gr.HTML(job_html.hint(where))
        self.table = gr.HTML(elem_id="models-table", js_on_load=HEARD)
        self.detail = gr.HTML(elem_id="models-detail")
        with gr.Accordion(tr("Download a model"), open=False, elem_id="models-download"):
            gr.HTML(self._published_models())
            self.published = gr.Dropdown(
                list(published_models()),
                value=None,
                allow_custom_value=True,
                label=tr("Name, or OWNER/REPO of the hub"),
                elem_id="models-published",
            )
            self.accepted = gr.Checkbox(False, label=tr("Accept the license"), elem_id="models-accepted")
            self.show = gr.Button(tr("Show what it takes"), elem_id="models-show")
            self.download = gr.Button(tr("Download"), elem_id="models-get")
            self.downloads = LogWatcher(self, "get", tr("Choose a model; its license and size are shown first."))
            self.downloads.build()
        with gr.Accordion(tr("Import a file"), open=False, elem_id="models-import"):
            self.file = gr.File(
                label=tr("Weights file"), file_types=[*model_folder.WEIGHT_SUFFIXES], elem_id="models-file", height=120
            )
            choices = [(words, name) for name, words in self._subfolder_names.items()]
            self.subfolder = gr.Radio(choices, value="checkpoints", label=tr("Type"), elem_id="models-subfolder")
            self.bring = gr.Button(tr("Import"), elem_id="models-bring")
            self.brought = gr.HTML(elem_id="models-brought")
        with gr.Accordion(tr("Convert to another format"), open=False, elem_id="models-convert"):
            formats = [name for name in registry.format_names() if registry.get_format(name).save is not None]
            self.source = gr.Dropdown(self.client.models(), label=tr("Model"), elem_id="models-source")
            self.layout = gr.Radio(formats, value="diffusers", label=tr("Format"), elem_id="models-layout")
            self.dtype = gr.Radio(
                [*get_args(plain_type(Convert.model_fields["dtype"]))],
                value="float32",
                label=tr("Data type"),
                elem_id="models-dtype",
            )
            self.output = gr.Textbox(label=tr("Output name"), elem_id="models-name")
            self.convert = gr.Button(tr("Convert"), elem_id="models-go")
            self.watch = LogWatcher(self, "convert", tr("Choose a model, a format and a name."))
            self.watch.build()
        self._connect()

    def _connect(self) -> None:
        self.on_button(self.table, self._heard, [], [self.detail])
        seen = [self.table, self.file, self.source, self.brought]
        self.on(self.bring.click, self._brought, [self.file, self.subfolder], seen)
        inputs = [self.source, self.layout, self.dtype, self.output]
        self.watch.begins(self.convert.click, self._converted, inputs)
        self.downloads.begins(self.show.click, self._shown, [self.published])
        self.downloads.begins(self.download.click, self._downloaded, [self.published, self.accepted])

    @property
    def _subfolder_names(self) -> dict[str, str]:
        """Types of the subfolders of the models folder, as text."""
        tr = self.tr
        return {"checkpoints": tr("model"), "loras": tr("LoRA"), "controlnets": tr("ControlNet")}

    def look(self, owner: str) -> Markup:
        """Return the table of all models."""
        tr, catalog = self.tr, self.client.catalog
        kinds = {"checkpoints": catalog.models(), "loras": catalog.loras(), "controlnets": catalog.controlnets()}
        rows = [self._row(kind, entry) for kind, entries in kinds.items() for entry in entries]
        heads = [tr("Name"), tr("Type"), tr("Source"), tr("Output"), tr("Size"), tr("Steps"), tr("Actions")]
        return job_html.table(heads, rows)

    def _published_models(self) -> Markup:
        """Return the table of published models with a short name."""
        tr, chinese = self.tr, self.tr.language == "zh"
        rows = [
            [model.name, model.purpose_zh if chinese else model.purpose, model.license]
            for model in published_models().values()
        ]
        return job_html.table([tr("Name"), tr("Good for"), tr("License")], rows)

    def _row(self, kind: str, entry: CatalogEntry) -> list[object]:
        tr, info = self.tr, model_info(entry)
        origins = {"bundled": tr("unveil"), "models": tr("models folder"), "runs": tr("trained here")}
        makes = {"images": tr("images"), "videos": tr("videos"), None: ""}
        size = " x ".join(map(str, info.shape[1:])) if info.shape else ""
        act = job_html.button(
            "inspect", tr("Inspect"), tr("Inspect {what}", what=entry.name), name=entry.name, kind=kind
        )
        return [
            entry.name,
            self._subfolder_names[kind],
            origins[entry.origin],
            makes[info.makes],
            size,
            info.steps or "",
            act,
        ]

    def _heard(self, owner: str, data: Mapping[str, str]) -> Markup:
        catalog, kind = self.client.catalog, data.get("kind", "")
        every = {"loras": catalog.loras, "controlnets": catalog.controlnets}.get(kind, catalog.models)
        entry = next((candidate for candidate in every() if candidate.name == data.get("name")), None)
        if entry is None:
            raise RecipeError(self.tr("This model no longer exists."))
        result = InspectModel(model=str(entry.path)).run(TaskContext(TaskOutput(Path())))
        template = Markup('<h3>{}</h3><pre class="log" tabindex="0">{}</pre>')
        return template.format(job_html.safe_text(entry.name), job_html.safe_text(result.text))

    def refreshed(self) -> list[Any]:
        """Return the current lists of names for `named`."""
        return [gr.Dropdown(choices=self.client.models())]

    @property
    def named(self) -> list[Any]:
        """Components that list names."""
        return [self.source]

    def _brought(self, owner: str, path: str | None, subfolder: str) -> list[Any]:
        self.client.require_admin(owner)
        if not path:
            raise RecipeError(self.tr("Choose a file first."))
        if subfolder not in model_folder.SUBFOLDERS or not path.endswith(model_folder.WEIGHT_SUFFIXES):
            endings = ", ".join(model_folder.WEIGHT_SUFFIXES)
            raise DataError(self.tr("{name}: must end in {endings}.", name=Path(path).name, endings=endings))
        place = model_folder.models_dir() / subfolder / Path(path).name
        if place.exists():
            raise OutputError(self.tr("{name} already exists; rename the file.", name=place.name))
        what = self._file_type(Path(path), subfolder)
        with staged(place) as part:
            shutil.copyfile(path, part)
        message = Markup('<p role="status">{}</p>').format(
            job_html.safe_text(self.tr("{name} was imported: {what}.", name=place.name, what=what))
        )
        return [self.look(owner), None, *self.refreshed(), message]

    def _file_type(self, path: Path, subfolder: str) -> str:
        """Return the type of a weights file, as text, from its content.

        Raises:
            DataError: It is not a weights file, or is damaged.
            RecipeError: It belongs into another subfolder.
        """
        tr, name = self.tr, path.name
        try:
            detected = registry.detect(read_header(path).tensors)
        except WeightsError as problem:
            with path.open("rb") as file:
                if file.read(4).startswith(PICKLES):
                    return tr("a pickle; only its plain tensors are loaded")
            why = str(problem).removeprefix(f"{path}: ")
            raise DataError(tr("{name} was not imported: {why}", name=name, why=why)) from problem
        if detected is None:
            return tr("tensors in an unknown format")
        fits = SUBFOLDER_OF_KIND.get(detected.format.kind, "checkpoints")
        if fits != subfolder:
            kind = self._subfolder_names[fits]
            raise RecipeError(tr("{name} was not imported: its content is of type {kind}.", name=name, kind=kind))
        return detected.signature.title

    def _shown(self, owner: str, name: str | None) -> tuple[Job, list[Any]]:
        return self.client.submit(Get.name, {"repository": name or "", "dry_run": True}, owner), []

    def _downloaded(self, owner: str, name: str | None, accepted: bool) -> tuple[Job, list[Any]]:
        request = {"repository": name or "", "accept_license": accepted}
        return self.client.submit(Get.name, request, owner), []

    def _converted(self, owner: str, source: str, layout: str, dtype: str, name: str) -> tuple[Job, list[Any]]:
        request = {"source": source or "", "format": layout, "dtype": dtype, "output": name}
        return self.client.submit(Convert.name, request, owner), []
