"""Image tab: text-to-image, class-conditional sampling, image editing, and X/Y/Z plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from unveil.errors import RecipeError
from unveil.server.jobs.image_job import MAX_IMAGES, PICTURES, ControlNetSpec, EditSpec, image_files
from unveil.studio.form_parsing import non_empty, settings_text
from unveil.studio.tab_base import GenerationTab, JobWatcher, TabContext, connect_default, default_for
from unveil.studio.tabs.xyz_plot import XyzPlot
from unveil.studio.upload_components import ImageUpload
from unveil.tasks.fields import PLAYGROUND

LORAS = 2  # maximum number of LoRAs
USUAL = {"img2img": 0.6, "inpaint": 1.0, "upscale": 0.3}  # default denoising strengths, as in `EditSpec`
SIDES = ("left", "right", "top", "bottom")


class ImageTab(GenerationTab):
    """Tab of images."""

    kind = PICTURES

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
            tr("Text to image"): "new",
            tr("Image to image"): "img2img",
            tr("Inpaint"): "inpaint",
            tr("Outpaint"): "outpaint",
            tr("Upscale"): "upscale",
        }
        self.mode = gr.Radio([*names.items()], value="new", label=tr("Task"), elem_id="image-mode")
        self.model = gr.Dropdown(self.client.models(), value=PLAYGROUND, label=tr("Model"), elem_id="image-model")
        self.prompt = gr.Textbox(
            label=tr("Prompt"), lines=2, elem_id="image-prompt",
            placeholder=tr("a large blue square on green"),
        )  # fmt: skip
        with gr.Group(visible=False) as self.given:
            self.source = ImageUpload(
                label=tr("Input image"), type="filepath", sources=["upload", "clipboard"], height=240,
                elem_id="image-source",
            )  # fmt: skip
            self.strength = self.anew(USUAL["img2img"])
        with gr.Group(visible=False) as self.painted:
            gr.Markdown(tr("Paint over the part to regenerate."))
            self.editor, self.mask = self.brush(), self.ready_mask()
            self.feather = gr.Slider(0, 64, value=0, step=1, label=tr("Mask feather (pixels)"))
        with gr.Group(visible=False) as self.margins, gr.Row():
            sides = (tr("left"), tr("right"), tr("top"), tr("bottom"))
            self.sides = [
                gr.Number(0, minimum=0, precision=0, label=tr("Pixels {side}", side=side), min_width=80)
                for side in sides
            ]
        with gr.Group(visible=False) as self.larger:
            self.factor = gr.Slider(1, 8, value=2, step=1, label=tr("Upscale factor"))
        with gr.Row():
            self.steps = self.field(tr("Steps"), "steps")
            self.guidance = self.field(tr("Guidance scale"), "guidance")
            self.count = gr.Number(
                1, minimum=1, maximum=MAX_IMAGES, precision=0, label=tr("Number of images"), min_width=90
            )
        self.build_seed()
        self._more()

    def _more(self) -> None:
        tr = self.tr
        with gr.Accordion(tr("More settings"), open=False, elem_id="image-more"):
            self.negative = gr.Textbox(label=tr("Negative prompt"))
            self.label = gr.Textbox(label=tr("Class (for class-conditional models)"), elem_id="image-label")
            self.expand = gr.Checkbox(True, label=tr("Prompt expansion (for models trained on detailed prompts)"))
            self.sampler = self.by_name()
            with gr.Row():
                self.width, self.height = self.field(tr("Width"), "width"), self.field(tr("Height"), "height")
            self.first = gr.Number(0, minimum=0, precision=0, label=tr("Start index"))
            self.others = gr.Textbox(
                label=tr("Other sampling settings, one per line"), lines=2, elem_id="image-others",
                placeholder="interval: [0.5, 1.0]",
            )  # fmt: skip
        with gr.Accordion(tr("LoRA and ControlNet"), open=False, elem_id="image-adapters"):
            catalog = self.client.service.catalog
            self.loras: list[Any] = []
            for place in range(LORAS):
                with gr.Row():
                    chosen = gr.Dropdown(
                        self._names(catalog.loras()), value="", label=tr("LoRA {place}", place=place + 1),
                        elem_id=f"image-lora-{place + 1}",
                    )  # fmt: skip
                    weight = gr.Slider(-2, 2, value=1, step=0.05, label=tr("Weight of LoRA {place}", place=place + 1))
                self.loras += [chosen, weight]
            self.control = gr.Dropdown(
                self._names(catalog.controlnets()), value="", label=tr("ControlNet"), elem_id="image-control"
            )
            self.hint = ImageUpload(
                label=tr("Control image"), type="filepath", sources=["upload", "clipboard"],
                height=200, elem_id="image-hint",
            )  # fmt: skip
            self.control_range = [
                gr.Slider(0, 2, value=1, step=0.05, label=tr("Weight of the ControlNet")),
                gr.Slider(0, 1, value=0, step=0.05, label=tr("Control start")),
                gr.Slider(0, 1, value=1, step=0.05, label=tr("Control end")),
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
        named = ("mode", "model", "prompt", "source", "strength", "editor", "mask", "feather", "factor", "steps")
        named += ("guidance", "count", "seed", "fresh", "negative", "label", "expand", "sampler", "width", "height")
        named += ("control", "hint", "first", "others")
        components = {name: getattr(self, name) for name in named}
        components |= dict(zip(SIDES, self.sides, strict=True))
        components |= {f"lora{place}": part for place, part in enumerate(self.loras)}
        return components | dict(zip(("weight", "start", "stop"), self.control_range, strict=True))

    # -- events -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        fields, watch = self.fields, self.watch
        self.draft.connect(fields)
        # an editor that is not visible yet cannot show an image, so it is updated after it is shown
        seen = self.mode.change(
            _groups, [self.mode], [self.given, self.painted, self.margins, self.larger, self.strength],
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        connect_default(self.mode, self.strength, USUAL)
        for event in (seen.then, self.source.change):
            self.on(event, self._to_paint, [self.mode, self.source], [self.editor], by_user=False)
        for event in (self.go.click, self.prompt.submit):
            watch.begins(event, self.submitted, [*fields.values()], self.settled)
        watch.result.change(
            self._ready, [watch.browser_state], [self.after], show_progress="hidden", api_visibility="private"
        )
        taken = [self.source, self.mode, self.strength]
        self.on(self.again.click, self._reuse, [watch.browser_state, self.which, self.strength], taken)

    def _to_paint(self, owner: str, mode: str, source: str | None) -> Any:
        return self.to_paint(source) if mode == "inpaint" else gr.skip()

    def request(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """Build the request from the field values.

        Raises:
            RecipeError: A field is missing or invalid.
            DataError: An image cannot be read.
        """
        tr, whole, number = self.tr, self.typed.integer, self.typed.number
        sampling = self.typed.settings(form["others"], tr("Other sampling settings, one per line"))
        sampling |= non_empty(
            sampler=form["sampler"],
            steps=whole(form["steps"], tr("Steps")),
            guidance_scale=number(form["guidance"], tr("Guidance scale")),
        )
        request = non_empty(
            model=form["model"], prompt=form["prompt"], negative=form["negative"], label=form["label"],
            width=whole(form["width"], tr("Width")), height=whole(form["height"], tr("Height")),
        )  # fmt: skip
        request |= {"seed": whole(form["seed"], tr("Seed")) or 0, "sampling": sampling, "expand": form["expand"]}
        request["first"] = whole(form["first"], tr("Start index")) or 0
        request["count"] = whole(form["count"], tr("Number of images")) or 1
        names = [(form[f"lora{place}"], form[f"lora{place + 1}"]) for place in range(0, 2 * LORAS, 2)]
        request["loras"] = [f"{name}:{weight:g}" for name, weight in names if name]
        if form["control"]:
            if not form["hint"]:
                raise RecipeError(tr("Choose a control image for the ControlNet."))
            control_image = self.client.store_upload(form["hint"])
            assert control_image is not None
            part = {key: form[key] for key in ("weight", "start", "stop")}
            request["controls"] = [{"name": form["control"], "picture": control_image.name, **part}]
        if form["mode"] == "new":
            return {**request, "strip": True}
        return {**request, "change": self._change(form)}

    def _change(self, form: Mapping[str, Any]) -> dict[str, Any]:
        image = self.client.store_upload(form["source"])
        if image is None:
            raise RecipeError(self.tr("Choose an image first."))
        change: dict[str, Any] = {"verb": form["mode"], "picture": image.name}
        if form["mode"] in USUAL:
            change["strength"] = form["strength"]
        if form["mode"] == "inpaint":
            mask = self.masked(form, image)
            if mask is None:
                raise RecipeError(self.tr("Paint over the part to regenerate."))
            change |= {"mask": mask, "feather": int(form["feather"])}
        if form["mode"] == "outpaint":
            change |= {side: int(form[side] or 0) for side in SIDES}
        if form["mode"] == "upscale":
            change["factor"] = int(form["factor"])
        return change

    def filled_by(self, request: Mapping[str, Any]) -> list[Any]:
        """Return the field values that produce this request."""
        sampling, change = dict(request.get("sampling", {})), request.get("change") or {}
        values = {"sampler": sampling.pop("sampler", ""), "steps": sampling.pop("steps", ""), "fresh": False}
        values |= {"guidance": sampling.pop("guidance_scale", ""), "others": settings_text(sampling), "mode": "new"}
        values |= {key: request.get(key, "") for key in ("prompt", "negative", "label", "width", "height")}
        values |= {"model": request.get("model", PLAYGROUND), "seed": request.get("seed", 0)}
        values |= {"count": request.get("count", 1), "first": request.get("first", 0)}
        values |= {"expand": request.get("expand", True), "source": None, "editor": None, "mask": None, "hint": None}
        values["control"] = ""
        values |= {f"lora{place}": ("", 1.0)[place % 2] for place in range(2 * LORAS)}
        for place, spec in enumerate(request.get("loras", ())[:LORAS]):
            name, _, weight = spec.rpartition(":")
            values |= {f"lora{2 * place}": name or spec, f"lora{2 * place + 1}": float(weight) if name else 1.0}
        for spec in request.get("controls", ())[:1]:
            control = ControlNetSpec.model_validate(
                spec
            )  # missing fields get their defaults rather than keep the current values
            values |= {"control": spec["name"], "hint": self.client.upload_path(spec["picture"])}
            values |= {key: getattr(control, key) for key in ("weight", "start", "stop")}
        if change:
            edit = EditSpec.model_validate(change)
            values |= {"mode": change["verb"], "source": self.client.upload_path(change["picture"])}
            values["mask"] = self.client.upload_path(change.get("mask"))
            values |= {key: getattr(edit, key) for key in ("feather", "factor", *SIDES)}
            values["strength"] = USUAL.get(edit.verb, gr.skip()) if edit.strength is None else edit.strength
        return [values.get(name, gr.skip()) for name in self.fields]

    def left_out(self, request: Mapping[str, Any]) -> list[str]:
        """Return the settings of a request that have no field, as text."""
        tr, change = self.tr, request.get("change") or {}
        unsupported = {
            tr("the mask feather"): change.get("verb") == "outpaint" and bool(change.get("feather")),
            tr("the inpainting method"): change.get("method", "auto") != "auto",
            tr("all LoRAs except the first {count}", count=LORAS): len(request.get("loras", ())) > LORAS,
            tr("all ControlNets except the first"): len(request.get("controls", ())) > 1,
        }
        return [words for words, lacking in unsupported.items() if lacking]

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
        return [self.file_of(owner, state, which), "img2img", default_for(USUAL, "img2img", strength)]

    @staticmethod
    def _ready(state: Mapping[str, Any], request: gr.Request) -> Any:
        del request
        return gr.Row(visible=bool((state or {}).get("job")))

    def _names(self, entries: Any) -> list[tuple[str, str]]:
        return [(self.tr("none"), ""), *((entry.name, entry.name) for entry in entries)]

    def refreshed(self) -> list[Any]:
        """Return the current lists of names for `named`."""
        catalog = self.client.service.catalog
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


def _groups(mode: str) -> list[Any]:
    """Return which groups a mode shows: input image, mask, margins and factor; and the strength."""
    seen = (mode != "new", mode == "inpaint", mode == "outpaint", mode == "upscale")
    return [*(gr.Group(visible=visible) for visible in seen), gr.Slider(visible=mode in USUAL)]
