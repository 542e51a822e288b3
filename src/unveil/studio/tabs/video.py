"""Video tab: text-, image- and video-to-video generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.errors import RecipeError
from unveil.generation.video_inputs import RATE
from unveil.server.jobs.catalog import model_info
from unveil.server.jobs.video_job import CLIPS, FRAMES, NEEDS, TAKES
from unveil.studio.form_parsing import non_empty
from unveil.studio.tab_base import GenerationTab, JobWatcher, TabContext, connect_default
from unveil.studio.timeline import FrameSpan, frame_spans, timeline_html
from unveil.studio.upload_components import ImageUpload, VideoUpload
from unveil.tasks.fields import PLAYGROUND

TWO = ("between", "connect")  # tasks with a second input video
USUAL = {"edit": 0.7, "connect": 0.7, "upscale": 0.3}  # default denoising strengths, as in the service


class VideoTab(GenerationTab):
    """Tab of videos."""

    kind = CLIPS

    def __init__(self, context: TabContext) -> None:
        super().__init__(context, "video")

    def build(self) -> None:
        """Create the components."""
        self.begin()
        self.draft.build()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self._inputs()
            with gr.Column(scale=3, min_width=300):
                self.timeline = gr.HTML(elem_id="video-timeline")
                self.go = gr.Button(self.tr("Generate video"), variant="primary", elem_id="video-go")
                self.build_unsupported()
                self.watch = JobWatcher(self, "video", self.tr("Enter a prompt and generate a video."))
                self.watch.build()
                self.again = gr.Button(self.tr("Extend this video"), elem_id="video-again")
        self._connect()

    # -- components ---------------------------------------------------------------------------------------------

    def _inputs(self) -> None:
        tr = self.tr
        names = {
            tr("Text to video"): "make",
            tr("Extend"): "extend",
            tr("Interpolate"): "between",
            tr("Join"): "connect",
            tr("Loop"): "loop",
            tr("Text to looping video"): "ring",
            tr("Edit"): "edit",
            tr("Storyboard"): "storyboard",
            tr("Upscale"): "upscale",
        }
        self.verb = gr.Radio([*names.items()], value="make", label=tr("Task"), elem_id="video-verb")
        self.model = gr.Dropdown(
            self.client.models(None, "videos"), value=PLAYGROUND, label=tr("Model"), elem_id="video-model"
        )
        self.prompt = gr.Textbox(
            label=tr("Prompt"), lines=2, elem_id="video-prompt", placeholder=tr("a small red circle moves left")
        )
        with gr.Group() as self.begins:
            self.still = ImageUpload(
                label=tr("Keyframe image"), type="filepath", sources=["upload", "clipboard"],
                height=200, elem_id="video-still",
            )  # fmt: skip
            self.at = gr.Number(
                0, precision=0, label=tr("Frame of the keyframe image (-1 is the last)"), elem_id="video-at"
            )
        with gr.Group(visible=False) as self.given:
            self.clip = VideoUpload(label=tr("Input video"), sources=["upload"], height=240, elem_id="video-clip")
        with gr.Group(visible=False) as self.second:
            self.other = VideoUpload(label=tr("Second video"), sources=["upload"], height=240, elem_id="video-other")
        with gr.Group(visible=False) as self.extended:
            self.direction = gr.Radio(
                [(tr("at the end"), "forward"), (tr("at the start"), "backward")], value="forward",
                label=tr("Direction"), elem_id="video-direction",
            )  # fmt: skip
        with gr.Group(visible=False) as self.joined:
            self.joint = gr.Radio(
                [(tr("frames in between"), "bridge"), (tr("crossfade"), "blend")], value="bridge",
                label=tr("Joining method"), elem_id="video-joint",
            )  # fmt: skip
            self.each = gr.Textbox(
                label=tr("Prompts of the two videos, one per line"), lines=2, elem_id="video-each",
                placeholder=tr("as in the videos' metadata"),
            )  # fmt: skip
        self._rarer()
        self._numbers()

    def _rarer(self) -> None:
        tr = self.tr
        with gr.Group(visible=False) as self.changed:
            self.strength = self.anew(USUAL["edit"])
        with gr.Group(visible=False) as self.edited:
            self.way = gr.Radio(
                [
                    (tr("noise and denoise (SDEdit)"), "noise"),
                    (tr("difference of the prompts (FlowEdit)"), "difference"),
                ],
                value="noise",
                label=tr("Editing method"),
                elem_id="video-way",
            )
            self.before = gr.Textbox(label=tr("Prompt of the input video"), elem_id="video-before")
            gr.Markdown(tr("The whole video is edited unless you paint a mask."))
            self.editor, self.mask = self.brush(), self.ready_mask()
            self.means = gr.Radio(
                [(tr("regenerate"), "mask"), (tr("keep"), "keep")], value="mask",
                label=tr("Painted part"), elem_id="video-means",
            )  # fmt: skip
        with gr.Group(visible=False) as self.scene_list:
            self.scenes = gr.Textbox(
                label=tr("Scenes, one per line: FIRST-LAST prompt"), lines=4, elem_id="video-scenes",
                placeholder="0-7 a red circle moves left\n8-15 a blue square grows",
            )  # fmt: skip
            self.fade = self.field(tr("Prompt crossfade (frames)"), "fade")
        with gr.Group(visible=False) as self.larger:
            self.factor = gr.Slider(1, 8, value=2, step=1, label=tr("Upscale factor"))

    def _numbers(self) -> None:
        tr = self.tr
        with gr.Row():
            self.frames, self.steps = self.field(tr("Frames"), "frames"), self.field(tr("Steps"), "steps")
            self.guidance = self.field(tr("Guidance scale"), "guidance")
        self.build_seed()
        with gr.Accordion(tr("More settings"), open=False, elem_id="video-more"):
            self.negative = gr.Textbox(label=tr("Negative prompt"))
            self.expand = gr.Checkbox(True, label=tr("Prompt expansion (for models trained on detailed prompts)"))
            self.sampler = self.by_name()
            with gr.Row():
                self.context = self.field(tr("Context frames"), "context")
                self.window = self.field(tr("Window (frames generated at a time, for long videos)"), "window")
            with gr.Row():
                self.width, self.height = self.field(tr("Width"), "width"), self.field(tr("Height"), "height")
                self.fps = gr.Textbox(label=tr("Frames per second"), placeholder=f"{RATE:g}", min_width=90)
            self.form = gr.Radio(["mp4", "webm", "gif"], value="mp4", label=tr("File format"), elem_id="video-form")

    @property
    def fields(self) -> dict[str, Any]:
        """Input components by name."""
        named = ("verb", "model", "prompt", "still", "at", "clip", "other", "direction", "joint", "way", "before")
        named += ("strength", "scenes", "factor", "frames", "steps", "guidance", "seed", "fresh", "negative", "expand")
        named += ("context", "width", "height", "fps", "form", "window", "each", "editor", "mask", "means", "fade")
        named += ("sampler",)
        return {name: getattr(self, name) for name in named}

    @property
    def groups(self) -> list[Any]:
        """Components shown only for some tasks."""
        return [
            self.begins, self.given, self.second, self.extended, self.joined, self.edited, self.scene_list,
            self.larger, self.changed,
        ]  # fmt: skip

    # -- events -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self.draft.connect(self.fields)
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        seen = self.verb.change(_groups, [self.verb, self.joint], self.groups, **quiet)
        self.joint.change(_groups, [self.verb, self.joint], self.groups, **quiet)
        connect_default(self.verb, self.strength, USUAL)
        for event in (seen.then, self.clip.change):  # an editor that is not visible yet cannot show an image
            self.on(event, self._to_paint, [self.verb, self.clip], [self.editor], by_user=False)
        for event in (self.go.click, self.prompt.submit):
            self.watch.begins(event, self.submitted, [*self.fields.values()], self.settled)
        drawing = (self.verb, self.model, self.still, self.at, self.clip, self.other, self.direction, self.joint)
        for part in (*drawing, self.frames, self.scenes):  # also after an error of an earlier submission
            self.on(part.change, self.planned, [*self.fields.values()], [self.timeline], by_user=False)
        self.on(self.again.click, self._reuse, [self.watch.browser_state], [self.clip, self.verb])

    def _to_paint(self, owner: str, verb: str, clip: str | None) -> Any:
        return self.to_paint(clip) if verb == "edit" else gr.skip()

    def planned(self, owner: str, *values: Any) -> Markup:
        """Return the timeline: which frames are given, and which are generated."""
        form = dict(zip(self.fields, values, strict=True))
        try:
            return timeline_html(self._spans(form), self.tr)
        except RecipeError:  # a number that is not typed completely
            return Markup("")

    def _spans(self, form: Mapping[str, Any]) -> list[FrameSpan]:
        model = next((entry for entry in self.client.service.catalog.models() if entry.name == form["model"]), None)
        shape = None if model is None else model_info(model).shape
        default = shape[1] if shape is not None and len(shape) == 4 else 16
        lengths = [
            upload.frames for path in (form["clip"], form["other"]) if (upload := self.client.store_upload(path))
        ]
        frames = self.typed.integer(form["frames"], self.tr("Frames")) or default
        at = self.typed.integer(form["at"], self.tr("Frame of the keyframe image (-1 is the last)")) or 0
        return frame_spans(form["verb"], frames, lengths, at if form["still"] else None, form, self._scenes(form))

    def request(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """Build the request from the field values that the task takes.

        Raises:
            RecipeError: A field is missing or invalid.
            DataError: An image or a video cannot be read.
        """
        tr, verb, whole, number = self.tr, form["verb"], self.typed.integer, self.typed.number
        every = non_empty(
            frames=whole(form["frames"], tr("Frames")), context=whole(form["context"], tr("Frames")),
            direction=form["direction"], strength=form["strength"] if takes_strength(verb, form["joint"]) else None,
            factor=form["factor"],
            way=form["joint"] if verb == "connect" else form["way"] if verb == "edit" else None,
            source=form["before"] if form["way"] == "difference" else None, scenes=self._scenes(form),
            fade=whole(form["fade"], tr("Frames")), window=whole(form["window"], tr("Frames")),
            prompts=tuple(line.strip() for line in (form["each"] or "").splitlines() if line.strip()),
        )  # fmt: skip
        sent = {name: upload for name in ("clip", "other") if (upload := self.client.store_upload(form[name]))}
        every |= {name: upload.name for name, upload in sent.items()}
        if verb == "edit" and "clip" in sent and (mask := self.masked(form, sent["clip"])):
            every[form["means"]] = mask
        if form["still"] and verb == "make":
            upload = self.client.store_upload(form["still"])
            assert upload is not None
            at = whole(form["at"], tr("Frame of the keyframe image (-1 is the last)")) or 0
            every["known"] = [{"picture": upload.name, "at": at}]
        if missing := [name for name in NEEDS[verb] if name in ("clip", "other") and name not in every]:
            raise RecipeError(
                tr("Choose the second video first.") if "other" in missing else tr("Choose a video first.")
            )
        taken = {name: value for name, value in every.items() if name in (*NEEDS[verb], *TAKES[verb])}
        common = non_empty(
            model=form["model"], prompt=form["prompt"], negative=form["negative"], form=form["form"],
            width=whole(form["width"], tr("Width")), height=whole(form["height"], tr("Height")),
            fps=number(form["fps"], tr("Frames per second")),
        )  # fmt: skip
        sampling = non_empty(
            steps=whole(form["steps"], tr("Steps")), guidance_scale=number(form["guidance"], tr("Guidance scale")),
            sampler=form["sampler"],
        )  # fmt: skip
        seed = whole(form["seed"], tr("Seed")) or 0
        return {**common, **taken, "verb": verb, "seed": seed, "expand": form["expand"], "sampling": sampling}

    def filled_by(self, request: Mapping[str, Any]) -> list[Any]:
        """Return the field values that produce this request."""
        sampling, verb = request.get("sampling", {}), request.get("verb", "make")
        values = {"verb": verb, "model": request.get("model", PLAYGROUND), "seed": request.get("seed", 0)}
        plain = ("prompt", "negative", "width", "height", "fps", "frames", "context", "window", "fade")
        values |= {key: request.get(key, "") for key in plain}
        values |= {"fresh": False, "steps": sampling.get("steps", ""), "guidance": sampling.get("guidance_scale", "")}
        values["sampler"] = sampling.get("sampler", "")
        values |= {"expand": request.get("expand", True), "form": request.get("form", "mp4"), "still": None}
        values |= {"each": "\n".join(request.get("prompts", ())), "editor": None}
        means = "keep" if request.get("keep") and not request.get("mask") else "mask"
        values |= {"means": means, "mask": self.client.upload_path(request.get(means))}
        values |= {key: self.client.upload_path(request.get(key)) for key in ("clip", "other")}
        usual = {"direction": "forward", "strength": USUAL.get(verb, USUAL["edit"]), "factor": 2}
        values |= {key: request.get(key, value) for key, value in usual.items()}
        values |= {"before": request.get("source", ""), "scenes": ""}
        if "way" in request:
            values["joint" if verb == "connect" else "way"] = request["way"]
        for item in request.get("known", ())[:1]:
            values |= {"still": self.client.upload_path(item["picture"]), "at": item["at"]}
        lines = [f"{item['first']}-{item['last']} {item['prompt']}" for item in request.get("scenes", ())]
        values["scenes"] = "\n".join(lines)
        return [values.get(name, gr.skip()) for name in self.fields]

    def left_out(self, request: Mapping[str, Any]) -> list[str]:
        """Return the settings of a request that have no field, as text."""
        unsupported = {
            self.tr("one of two masks"): bool(request.get("mask") and request.get("keep")),
            self.tr("all keyframes except the first"): len(request.get("known", ())) > 1,
        }
        return [words for words, lacking in unsupported.items() if lacking]

    def _scenes(self, form: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        scenes: list[dict[str, Any]] = []
        for line in (form["scenes"] or "").splitlines() if form["verb"] == "storyboard" else ():
            span, _, prompt = line.strip().partition(" ")
            first, _, last = span.partition("-")
            if not span:
                continue
            if not (first.isdigit() and last.isdigit()) or int(last) > FRAMES:
                raise RecipeError(self.tr("{line}: a scene must be FIRST-LAST prompt", line=line[:80]))
            scenes.append({"first": int(first), "last": int(last), "prompt": prompt})
        return tuple(scenes)

    def _reuse(self, owner: str, state: Mapping[str, Any]) -> list[Any]:
        job = self.client.job((state or {}).get("job"), owner)
        if job is None or job.state != "completed":
            raise RecipeError(self.tr("No video exists yet."))
        name = next(output for output in job.outputs if output.startswith("clip."))
        return [str(self.client.service.results.file(job.id, name)), "extend"]


def takes_strength(verb: str, joint: str) -> bool:
    """Return True if the task has a denoising strength; joining has one only as a crossfade."""
    return verb in USUAL and (verb != "connect" or joint == "blend")


def _groups(verb: str, joint: str) -> list[Any]:
    """Return which groups a task shows."""
    seen = (
        verb == "make",
        "clip" in NEEDS[verb],
        verb in TWO,
        verb == "extend",
        verb == "connect",
        verb == "edit",
        verb == "storyboard",
        verb == "upscale",
        takes_strength(verb, joint),
    )
    return [gr.Group(visible=visible) for visible in seen]
