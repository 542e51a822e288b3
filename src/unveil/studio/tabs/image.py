"""Pictures: from words, from classes, from other pictures; and grids of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from unveil.cli.options import PLAYGROUND
from unveil.server.jobs.image_job import MOST, PICTURES, Change, Steered, pictures_of
from unveil.studio.form_parsing import filled, settings_text
from unveil.studio.tab_base import Desk, Maker, Watch, shows_usual, usual_of
from unveil.studio.tabs.xyz_plot import Grid
from unveil.studio.upload_components import Still
from unveil.types import RecipeError

LORAS = 2  # that can be chosen at a time
USUAL = {"img2img": 0.6, "inpaint": 1.0, "upscale": 0.3}  # how much is made anew, as `RunTransform` has it
SIDES = ("left", "right", "top", "bottom")


class Picture(Maker):
    """The tab of pictures."""

    kind = PICTURES

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "picture")

    def lay(self) -> None:
        """Places its parts."""
        self.begin()
        self.draft.lay()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self._asked()
            with gr.Column(scale=3, min_width=300):
                self.go = gr.Button(self.say("Make the picture"), variant="primary", elem_id="picture-go")
                self.lay_lacking()
                self.watch = Watch(self, "picture", self.say("Write what is to be seen, and make the picture."))
                self.watch.lay()
                self._then()
                self.grid = Grid(self, self.request)
                self.grid.lay()
        self._wire()
        self.grid.wire(self.fields)

    # -- parts --------------------------------------------------------------------------------------------------

    def _asked(self) -> None:
        say = self.say
        names = {
            say("New"): "new",
            say("From a picture"): "img2img",
            say("A part of a picture"): "inpaint",
            say("Beyond the edges"): "outpaint",
            say("Larger"): "upscale",
        }
        self.mode = gr.Radio([*names.items()], value="new", label=say("What to do"), elem_id="picture-mode")
        self.model = gr.Dropdown(self.client.models(), value=PLAYGROUND, label=say("Model"), elem_id="picture-model")
        self.prompt = gr.Textbox(
            label=say("What is to be seen"), lines=2, elem_id="picture-prompt",
            placeholder=say("a large blue square on green"),
        )  # fmt: skip
        with gr.Group(visible=False) as self.given:
            self.source = Still(
                label=say("The picture"), type="filepath", sources=["upload", "clipboard"], height=240,
                elem_id="picture-source",
            )  # fmt: skip
            self.strength = self.anew(USUAL["img2img"])
        with gr.Group(visible=False) as self.painted:
            gr.Markdown(say("Paint over what is to be made anew."))
            self.editor, self.mask = self.brush(), self.ready_mask()
            self.feather = gr.Slider(0, 64, value=0, step=1, label=say("Soft edge of the part, in pixels"))
        with gr.Group(visible=False) as self.margins, gr.Row():
            sides = (say("left"), say("right"), say("top"), say("bottom"))
            self.sides = [
                gr.Number(0, minimum=0, precision=0, label=say("Pixels {side}", side=side), min_width=80)
                for side in sides
            ]
        with gr.Group(visible=False) as self.larger:
            self.factor = gr.Slider(1, 8, value=2, step=1, label=say("Times as large"))
        with gr.Row():
            self.steps = self.field(say("Steps"), "steps")
            self.guidance = self.field(say("Guidance"), "guidance")
            self.count = gr.Number(1, minimum=1, maximum=MOST, precision=0, label=say("How many"), min_width=90)
        self.lay_seed()
        self._more()

    def _more(self) -> None:
        say = self.say
        with gr.Accordion(say("More settings"), open=False, elem_id="picture-more"):
            self.negative = gr.Textbox(label=say("What is not to be seen"))
            self.label = gr.Textbox(label=say("Class, for models that take one"), elem_id="picture-label")
            self.expand = gr.Checkbox(True, label=say("Make a short text dense, for models that read such"))
            self.sampler = self.by_name()
            with gr.Row():
                self.width, self.height = self.field(say("Width"), "width"), self.field(say("Height"), "height")
            self.first = gr.Number(0, minimum=0, precision=0, label=say("Number of the seed's first picture"))
            self.others = gr.Textbox(
                label=say("Other settings of sampling, a line each"), lines=2, elem_id="picture-others",
                placeholder="interval: [0.5, 1.0]",
            )  # fmt: skip
        with gr.Accordion(say("LoRA and ControlNet"), open=False, elem_id="picture-adapters"):
            catalog = self.client.service.catalog
            self.loras: list[Any] = []
            for place in range(LORAS):
                with gr.Row():
                    chosen = gr.Dropdown(
                        self._names(catalog.loras()), value="", label=say("LoRA {place}", place=place + 1),
                        elem_id=f"picture-lora-{place + 1}",
                    )  # fmt: skip
                    weight = gr.Slider(-2, 2, value=1, step=0.05, label=say("Weight of LoRA {place}", place=place + 1))
                self.loras += [chosen, weight]
            self.control = gr.Dropdown(
                self._names(catalog.controls()), value="", label=say("ControlNet"), elem_id="picture-control"
            )
            self.hint = Still(
                label=say("The picture that the ControlNet reads"), type="filepath", sources=["upload", "clipboard"],
                height=200, elem_id="picture-hint",
            )  # fmt: skip
            self.steered = [
                gr.Slider(0, 2, value=1, step=0.05, label=say("Weight of the ControlNet")),
                gr.Slider(0, 1, value=0, step=0.05, label=say("From this part of the run")),
                gr.Slider(0, 1, value=1, step=0.05, label=say("To this part of the run")),
            ]

    def _then(self) -> None:
        say = self.say
        with gr.Row(visible=False) as self.after:
            self.which = gr.Number(1, minimum=1, precision=0, label=say("Picture number"), min_width=90)
            self.again = gr.Button(say("Edit it"), elem_id="picture-edit", min_width=110)
            self.to_clip = gr.Button(say("Make a clip of it"), elem_id="picture-clip", min_width=110)

    @property
    def fields(self) -> dict[str, Any]:
        """The parts that are asked, by name."""
        named = ("mode", "model", "prompt", "source", "strength", "editor", "mask", "feather", "factor", "steps")
        named += ("guidance", "count", "seed", "fresh", "negative", "label", "expand", "sampler", "width", "height")
        named += ("control", "hint", "first", "others")
        found = {name: getattr(self, name) for name in named}
        found |= dict(zip(SIDES, self.sides, strict=True))
        found |= {f"lora{place}": part for place, part in enumerate(self.loras)}
        return found | dict(zip(("weight", "start", "stop"), self.steered, strict=True))

    # -- what they do -------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        fields, watch = self.fields, self.watch
        self.draft.wire(fields)
        # what is not on the page yet cannot show a picture, so that the brush's comes after its place
        seen = self.mode.change(
            _groups, [self.mode], [self.given, self.painted, self.margins, self.larger, self.strength],
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        shows_usual(self.mode, self.strength, USUAL)
        for event in (seen.then, self.source.change):
            self.on(event, self._to_paint, [self.mode, self.source], [self.editor], asked=False)
        for event in (self.go.click, self.prompt.submit):
            watch.begins(event, self.submitted, [*fields.values()], self.settled)
        watch.result.change(self._ready, [watch.kept], [self.after], show_progress="hidden", api_visibility="private")
        taken = [self.source, self.mode, self.strength]
        self.on(self.again.click, self._reuse, [watch.kept, self.which, self.strength], taken)

    def _to_paint(self, owner: str, mode: str, source: str | None) -> Any:
        return self.to_paint(source) if mode == "inpaint" else gr.skip()

    def request(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of the service.

        Raises:
            RecipeError: something is missing.
            MediaError: a picture that cannot be read.
        """
        say, whole, number = self.say, self.typed.whole, self.typed.number
        sampling = self.typed.settings(said["others"], say("Other settings of sampling, a line each"))
        sampling |= filled(
            sampler=said["sampler"],
            steps=whole(said["steps"], say("Steps")),
            guidance_scale=number(said["guidance"], say("Guidance")),
        )
        request = filled(
            model=said["model"], prompt=said["prompt"], negative=said["negative"], label=said["label"],
            width=whole(said["width"], say("Width")), height=whole(said["height"], say("Height")),
        )  # fmt: skip
        request |= {"seed": whole(said["seed"], say("Seed")) or 0, "sampling": sampling, "expand": said["expand"]}
        request["first"] = whole(said["first"], say("Number of the seed's first picture")) or 0
        request["count"] = whole(said["count"], say("How many")) or 1
        names = [(said[f"lora{place}"], said[f"lora{place + 1}"]) for place in range(0, 2 * LORAS, 2)]
        request["loras"] = [f"{name}:{weight:g}" for name, weight in names if name]
        if said["control"]:
            if not said["hint"]:
                raise RecipeError(say("Give the picture that the ControlNet reads."))
            kept = self.client.keep(said["hint"])
            assert kept is not None
            part = {key: said[key] for key in ("weight", "start", "stop")}
            request["controls"] = [{"name": said["control"], "picture": kept.name, **part}]
        if said["mode"] == "new":
            return {**request, "strip": True}
        return {**request, "change": self._change(said)}

    def _change(self, said: Mapping[str, Any]) -> dict[str, Any]:
        kept = self.client.keep(said["source"])
        if kept is None:
            raise RecipeError(self.say("Give the picture first."))
        change: dict[str, Any] = {"verb": said["mode"], "picture": kept.name}
        if said["mode"] in USUAL:
            change["strength"] = said["strength"]
        if said["mode"] == "inpaint":
            mask = self.masked(said, kept)
            if mask is None:
                raise RecipeError(self.say("Paint over what is to be made anew."))
            change |= {"mask": mask, "feather": int(said["feather"])}
        if said["mode"] == "outpaint":
            change |= {side: int(said[side] or 0) for side in SIDES}
        if said["mode"] == "upscale":
            change["factor"] = int(said["factor"])
        return change

    def filled_by(self, request: Mapping[str, Any]) -> list[Any]:
        """The values of its fields that ask for this again."""
        sampling, change = dict(request.get("sampling", {})), request.get("change") or {}
        known = {"sampler": sampling.pop("sampler", ""), "steps": sampling.pop("steps", ""), "fresh": False}
        known |= {"guidance": sampling.pop("guidance_scale", ""), "others": settings_text(sampling), "mode": "new"}
        known |= {key: request.get(key, "") for key in ("prompt", "negative", "label", "width", "height")}
        known |= {"model": request.get("model", PLAYGROUND), "seed": request.get("seed", 0)}
        known |= {"count": request.get("count", 1), "first": request.get("first", 0)}
        known |= {"expand": request.get("expand", True), "source": None, "editor": None, "mask": None, "hint": None}
        known["control"] = ""
        known |= {f"lora{place}": ("", 1.0)[place % 2] for place in range(2 * LORAS)}
        for place, one in enumerate(request.get("loras", ())[:LORAS]):
            name, _, weight = one.rpartition(":")
            known |= {f"lora{2 * place}": name or one, f"lora{2 * place + 1}": float(weight) if name else 1.0}
        for one in request.get("controls", ())[:1]:
            steered = Steered.model_validate(one)  # what it leaves out has its usual value, and not the last one's
            known |= {"control": one["name"], "hint": self.client.sent(one["picture"])}
            known |= {key: getattr(steered, key) for key in ("weight", "start", "stop")}
        if change:
            asked = Change.model_validate(change)
            known |= {"mode": change["verb"], "source": self.client.sent(change["picture"])}
            known["mask"] = self.client.sent(change.get("mask"))
            known |= {key: getattr(asked, key) for key in ("feather", "factor", *SIDES)}
            known |= {key: value for key, value in asked.settings().items() if key == "strength"}
        return [known.get(name, gr.skip()) for name in self.fields]

    def left_out(self, request: Mapping[str, Any]) -> list[str]:
        """What of a request has no field, in words."""
        say, change = self.say, request.get("change") or {}
        found = {
            say("the soft edge"): change.get("verb") == "outpaint" and bool(change.get("feather")),
            say("the method of filling"): change.get("method", "auto") != "auto",
            say("all LoRAs but {count}", count=LORAS): len(request.get("loras", ())) > LORAS,
            say("all ControlNets but one"): len(request.get("controls", ())) > 1,
        }
        return [words for words, lacking in found.items() if lacking]

    def file_of(self, owner: str, kept: Mapping[str, Any], which: Any) -> str:
        """Where a picture of the job lies that the browser keeps.

        Raises:
            RecipeError: there is none of this number.
        """
        job = self.client.job((kept or {}).get("job"), owner)
        names = pictures_of(job) if job is not None else []
        place = self.typed.whole(which, self.say("Picture number")) or 1
        if job is None or not 1 <= place <= len(names):
            raise RecipeError(self.say("There is no picture of this number."))
        return str(self.client.service.results.file(job.id, names[place - 1]))

    def _reuse(self, owner: str, kept: Mapping[str, Any], which: Any, strength: Any) -> list[Any]:
        return [self.file_of(owner, kept, which), "img2img", usual_of(USUAL, "img2img", strength)]

    @staticmethod
    def _ready(kept: Mapping[str, Any], request: gr.Request) -> Any:
        del request
        return gr.Row(visible=bool((kept or {}).get("job")))

    def _names(self, found: Any) -> list[tuple[str, str]]:
        return [(self.say("none"), ""), *((one.name, one.name) for one in found)]

    def refreshed(self) -> list[Any]:
        """The lists of names as they are now, for `named`."""
        catalog = self.client.service.catalog
        loras = [gr.Dropdown(choices=self._names(catalog.loras())) for _ in range(LORAS)]
        return [gr.Dropdown(choices=self.client.models()), *loras, gr.Dropdown(choices=self._names(catalog.controls()))]

    @property
    def named(self) -> list[Any]:
        """The parts that list names."""
        return [self.model, *self.loras[::2], self.control]


def _groups(mode: str) -> list[Any]:
    """What is seen in a mode: the picture, the brush, the margins, the factor; and how much is made anew."""
    seen = (mode != "new", mode == "inpaint", mode == "outpaint", mode == "upscale")
    return [*(gr.Group(visible=one) for one in seen), gr.Slider(visible=mode in USUAL)]
