"""Image tab: text-to-image, class-conditional sampling, image editing, and X/Y/Z plots."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from unveil.errors import RecipeError
from unveil.server.jobs.outputs import image_files
from unveil.studio.tab_base import (
    QUIET,
    GenerationTab,
    JobWatcher,
    TabContext,
    connect_default,
    default_for,
    default_strength,
)
from unveil.studio.tabs.xyz_plot import XyzPlot
from unveil.studio.upload_components import ImageUpload
from unveil.tasks.fields import PLAYGROUND, ControlNet, Lora
from unveil.tasks.img2img import Img2Img
from unveil.tasks.inpaint import Inpaint
from unveil.tasks.outpaint import Outpaint
from unveil.tasks.text_to_image import TextToImage
from unveil.tasks.upscale import Upscale

LORAS = 2  # maximum number of LoRAs
TASKS = {task.name: task for task in (TextToImage, Img2Img, Inpaint, Outpaint, Upscale)}
# default strength of each task that has one
STRENGTHS = {name: default_strength(task) for name, task in TASKS.items() if "strength" in task.model_fields}
MARGINS = ("left", "right", "top", "bottom")
CONTROL_FIELDS = ("weight", "start", "stop")


class ImageTab(GenerationTab):
    """Tab of images."""

    tasks = TASKS

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "image")

    def build(self) -> None:
        """Create the components."""
        self.begin()
        self.draft.build()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self._inputs()
            with gr.Column(scale=3, min_width=300):
                self.go = gr.Button(self.tr("Generate images"), variant="primary", elem_id="image-go")
                self.build_unsupported()
                self.watch = JobWatcher(self, "image", self.tr("Enter a prompt and generate images."))
                self.watch.build()
                self._then()
                self.grid = XyzPlot(self, self.request)
                self.grid.build()
        self._connect()
        self.grid.connect(self.fields)

    # -- components ---------------------------------------------------------------------------------------------

    def _inputs(self) -> None:
        tr = self.tr
        names = {
            tr("Text to image"): TextToImage.name,
            tr("Image to image"): Img2Img.name,
            tr("Inpaint"): Inpaint.name,
            tr("Outpaint"): Outpaint.name,
            tr("Upscale"): Upscale.name,
        }
        self.task = gr.Radio([*names.items()], value=TextToImage.name, label=tr("Task"), elem_id="image-task")
        self.model = gr.Dropdown(self.client.models(), value=PLAYGROUND, label=tr("Model"), elem_id="image-model")
        self.prompt = gr.Textbox(
            label=tr("Prompt"), lines=2, elem_id="image-prompt",
            placeholder=tr("a large blue square on green"),
        )  # fmt: skip
        with gr.Group(visible=False) as self.input_fields:
            self.source = ImageUpload(
                label=tr("Input image"), type="filepath", sources=["upload", "clipboard"], height=240,
                elem_id="image-source",
            )  # fmt: skip
            self.strength = self.build_strength(Img2Img)
        with gr.Group(visible=False) as self.painted:
            gr.Markdown(tr("Paint over the part to regenerate."))
            self.editor, self.mask = self.brush(), self.ready_mask()
        with gr.Group(visible=False) as self.margins, gr.Row():
            for side in MARGINS:
                self.add(Outpaint, side)
        with gr.Group(visible=False) as self.blended:
            self.add(Inpaint, "feather")
            self.add(Inpaint, "method")
        with gr.Group(visible=False) as self.larger:
            self.add(Upscale, "factor")
        with gr.Row():
            for name in ("steps", "guidance_scale", "count"):
                self.add(TextToImage, name)
        self.build_seed()
        self._more()

    def _more(self) -> None:
        tr = self.tr
        with gr.Accordion(tr("More settings"), open=False, elem_id="image-more"):
            self.add(TextToImage, "negative_prompt")
            self.add(TextToImage, "label")
            self.expand_prompt = self.build_expansion(TextToImage)
            self.sampler = self.by_name()
            with gr.Row():
                self.add(TextToImage, "width")
                self.add(TextToImage, "height")
            self.add(TextToImage, "start_index")
            self.add(TextToImage, "sampling", placeholder="interval: [0.5, 1.0]")
        with gr.Accordion(tr("LoRA and ControlNet"), open=False, elem_id="image-adapters"):
            catalog = self.client.catalog
            self.loras: list[Any] = []
            for place in range(LORAS):
                with gr.Row():
                    chosen = gr.Dropdown(
                        self._names(catalog.loras()), value="", label=tr("LoRA {place}", place=place + 1),
                        elem_id=f"image-lora-{place + 1}",
                    )  # fmt: skip
                    weight = gr.Slider(
                        -2, 2, value=_default(Lora, "weight"), step=0.05,
                        label=tr("Weight of LoRA {place}", place=place + 1),
                    )  # fmt: skip
                self.loras += [chosen, weight]
            self.control = gr.Dropdown(
                self._names(catalog.controlnets()), value="", label=tr("ControlNet"), elem_id="image-control"
            )
            self.hint = ImageUpload(
                label=tr("Control image"), type="filepath", sources=["upload", "clipboard"],
                height=200, elem_id="image-hint",
            )  # fmt: skip
            labels = (tr("Weight of the ControlNet"), tr("Control start"), tr("Control end"))
            self.control_range = [
                gr.Slider(0, 2 if name == "weight" else 1, value=_default(ControlNet, name), step=0.05, label=label)
                for name, label in zip(CONTROL_FIELDS, labels, strict=True)
            ]

    def _then(self) -> None:
        tr = self.tr
        with gr.Row(visible=False) as self.after:
            self.which = gr.Number(1, minimum=1, precision=0, label=tr("Image number"), min_width=90)
            self.again = gr.Button(tr("Edit this image"), elem_id="image-edit", min_width=110)
            self.to_clip = gr.Button(tr("Image to video"), elem_id="image-clip", min_width=110)

    @property
    def fields(self) -> dict[str, Any]:
        """Input components by name."""
        named = ("task", "model", "prompt", "source", "strength", "editor", "mask", "seed", "fresh", "expand_prompt")
        named += ("sampler", "control", "hint")
        components = {name: getattr(self, name) for name in named} | self.parts
        components |= {f"lora{place}": part for place, part in enumerate(self.loras)}
        return components | dict(zip(CONTROL_FIELDS, self.control_range, strict=True))

    # -- events -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        fields, watch = self.fields, self.watch
        self.draft.connect(fields)
        # an editor that is not visible yet cannot show an image, so it is updated after it is shown
        seen = self.task.change(
            _groups, [self.task],
            [self.input_fields, self.painted, self.margins, self.blended, self.larger, self.strength],
            **QUIET,
        )  # fmt: skip
        connect_default(self.task, self.strength, STRENGTHS)
        for event in (partial(seen.then, trigger_mode="always_last"), self.source.change):
            inputs = [self.task, self.source]
            self.on(event, self._to_paint, inputs, [self.editor], by_user=False, in_order="image-paint")
        for event in (self.go.click, self.prompt.submit):
            watch.begins(event, self.submitted, [*fields.values()], self.settled)
        watch.result.change(self._ready, [watch.browser_state], [self.after], **QUIET)
        taken = [self.source, self.task, self.strength]
        self.on(self.again.click, self._reuse, [watch.browser_state, self.which, self.strength], taken)

    def _to_paint(self, owner: str, task: str, source: str | None) -> Any:
        return self.to_paint(source) if task == Inpaint.name else gr.skip()

    def request(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """Build the values of the task from those of the components.

        Raises:
            RecipeError: A value is missing or invalid.
            DataError: An image cannot be read.
        """
        task = TASKS[form["task"]]
        request = self.read(task, form)
        loras = [(form[f"lora{place}"], form[f"lora{place + 1}"]) for place in range(0, 2 * LORAS, 2)]
        if any(name for name, _ in loras):
            request["lora"] = [{"file": name, "weight": weight} for name, weight in loras if name]
        if form["control"]:
            control_image = self.client.store_upload(form["hint"])
            if control_image is None:
                raise RecipeError(self.tr("Choose a control image for the ControlNet."))
            values = {name: form[name] for name in CONTROL_FIELDS}
            request["controlnet"] = [{"network": form["control"], "image": control_image.name, **values}]
        if task is TextToImage:
            return {**request, "save_trajectory": True}
        image = self.client.store_upload(form["source"])
        if image is None:
            raise RecipeError(self.tr("Choose an image first."))
        request["image"] = image.name
        if task is Inpaint:
            mask = self.masked(form, image)
            if mask is None:
                raise RecipeError(self.tr("Paint over the part to regenerate."))
            request["mask"] = mask
        return request

    def filled_by(self, task: str, request: Mapping[str, Any]) -> list[Any]:
        """Return the values of the components that produce this request."""
        values = self.common_values(task, request)
        values |= {"source": self.client.upload_path(request.get("image")), "editor": None, "hint": None, "control": ""}
        values["mask"] = self.client.upload_path(request.get("mask"))
        values |= {f"lora{place}": ("", _default(Lora, "weight"))[place % 2] for place in range(2 * LORAS)}
        for place, lora in enumerate(request.get("lora", ())[:LORAS]):
            weight = lora.get("weight", _default(Lora, "weight"))
            values |= {f"lora{2 * place}": lora["file"], f"lora{2 * place + 1}": weight}
        for control in request.get("controlnet", ())[:1]:
            values |= {"control": control.get("network") or "", "hint": self.client.upload_path(control["image"])}
            values |= {name: control.get(name, _default(ControlNet, name)) for name in CONTROL_FIELDS}
        values["strength"] = request.get("strength", STRENGTHS.get(task, gr.skip()))
        return [values.get(name, gr.skip()) for name in self.fields]

    def left_out(self, task: str, request: Mapping[str, Any]) -> list[str]:
        """Return the settings of a request that have no component, as text."""
        represented = ("image", "mask", "strength", "lora", "controlnet", "save_trajectory")
        words = self.unsupported(task, request, represented)
        if len(request.get("lora", ())) > LORAS:
            words.append(self.tr("all LoRAs except the first {count}", count=LORAS))
        if len(request.get("controlnet", ())) > 1:
            words.append(self.tr("all ControlNets except the first"))
        return words

    def file_of(self, owner: str, state: Mapping[str, Any], which: Any) -> str:
        """Return the path of one of the images of the job that the browser knows.

        Raises:
            RecipeError: No image has this number.
        """
        job = self.client.job((state or {}).get("job"), owner)
        names = image_files(job) if job is not None else []
        place = self.typed.integer(which, self.tr("Image number")) or 1
        if job is None or not 1 <= place <= len(names):
            raise RecipeError(self.tr("No image has this number."))
        return str(self.client.service.results.file(job.id, names[place - 1]))

    def _reuse(self, owner: str, state: Mapping[str, Any], which: Any, strength: Any) -> list[Any]:
        return [self.file_of(owner, state, which), Img2Img.name, default_for(STRENGTHS, Img2Img.name, strength)]

    @staticmethod
    def _ready(state: Mapping[str, Any], request: gr.Request) -> Any:
        del request
        return gr.Row(visible=bool((state or {}).get("job")))

    def _names(self, entries: Any) -> list[tuple[str, str]]:
        return [(self.tr("none"), ""), *((entry.name, entry.name) for entry in entries)]

    def refreshed(self) -> list[Any]:
        """Return the current lists of names for `named`."""
        catalog = self.client.catalog
        loras = [gr.Dropdown(choices=self._names(catalog.loras())) for _ in range(LORAS)]
        return [
            gr.Dropdown(choices=self.client.models()),
            *loras,
            gr.Dropdown(choices=self._names(catalog.controlnets())),
        ]

    @property
    def named(self) -> list[Any]:
        """Components that list names."""
        return [self.model, *self.loras[::2], self.control]


def _default(kind: type[Lora] | type[ControlNet], name: str) -> float:
    """The default of a field of an adapter."""
    return float(kind.model_fields[name].default)


def _groups(task: str) -> list[Any]:
    """Return which groups a task shows: input image, mask, margins, blend and factor; and the strength."""
    fields = TASKS[task].model_fields
    seen = ["image" in fields, "mask" in fields, "left" in fields, "feather" in fields, "factor" in fields]
    return [*(gr.Group(visible=visible) for visible in seen), gr.Slider(visible="strength" in fields)]
