"""Video tab: text-, image- and video-to-video generation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.errors import RecipeError
from unveil.model.model import FPS
from unveil.server.jobs.catalog import ModelInfo, model_info
from unveil.server.jobs.outputs import video_file
from unveil.studio.tab_base import QUIET, GenerationTab, JobWatcher, TabContext, connect_default, default_strength
from unveil.studio.timeline import LOOP_FROM_PROMPT, FrameSpan, frame_spans, timeline_html
from unveil.studio.upload_components import ImageUpload, VideoUpload
from unveil.tasks.fields import MAX_FRAMES, PLAYGROUND
from unveil.tasks.task import Task
from unveil.tasks.video_edit import VideoEdit
from unveil.tasks.video_extend import VideoExtend
from unveil.tasks.video_generate import VideoGenerate
from unveil.tasks.video_interpolate import VideoInterpolate
from unveil.tasks.video_join import VideoJoin
from unveil.tasks.video_loop import VideoLoop
from unveil.tasks.video_storyboard import VideoStoryboard
from unveil.tasks.video_upscale import VideoUpscale

_EVERY = (
    VideoGenerate, VideoExtend, VideoInterpolate, VideoJoin, VideoLoop, VideoEdit, VideoStoryboard, VideoUpscale,
)  # fmt: skip
TASKS: dict[str, type[Task]] = {task.name: task for task in _EVERY}
CONTINUED = (VideoExtend.name, VideoInterpolate.name, VideoLoop.name, VideoJoin.name)  # their input videos go on
# default strength of each task that has one
STRENGTHS = {name: default_strength(task) for name, task in TASKS.items() if "strength" in task.model_fields}


class VideoTab(GenerationTab):
    """Tab of videos."""

    tasks = TASKS

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
            tr("Text to video"): VideoGenerate.name,
            tr("Extend"): VideoExtend.name,
            tr("Interpolate"): VideoInterpolate.name,
            tr("Join"): VideoJoin.name,
            tr("Loop"): VideoLoop.name,
            tr("Text to looping video"): LOOP_FROM_PROMPT,
            tr("Edit"): VideoEdit.name,
            tr("Storyboard"): VideoStoryboard.name,
            tr("Upscale"): VideoUpscale.name,
        }
        self.task = gr.Radio([*names.items()], value=VideoGenerate.name, label=tr("Task"), elem_id="video-task")
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
        with gr.Group(visible=False) as self.input_fields:
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
                [(tr("frames in between"), "bridge"), (tr("crossfade"), "blend")],
                value=VideoJoin.model_fields["method"].default, label=tr("Joining method"), elem_id="video-joint",
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
            self.strength = self.build_strength(VideoEdit)
        with gr.Group(visible=False) as self.edited:
            self.way = gr.Radio(
                [
                    (tr("noise and denoise (SDEdit)"), "noise"),
                    (tr("difference of the prompts (FlowEdit)"), "difference"),
                ],
                value=VideoEdit.model_fields["method"].default,
                label=tr("Editing method"),
                elem_id="video-way",
            )
            self.source_prompt = gr.Textbox(label=tr("Prompt of the input video"), elem_id="video-before")
            gr.Markdown(tr("The whole video is edited unless you paint a mask."))
            self.editor, self.mask = self.brush(), self.ready_mask()
            self.means = gr.Radio(
                [(tr("regenerate"), "mask"), (tr("keep"), "keep_mask")], value="mask",
                label=tr("Painted part"), elem_id="video-means",
            )  # fmt: skip
        with gr.Group(visible=False) as self.scene_list:
            self.scenes = gr.Textbox(
                label=tr("Scenes, one per line: FIRST-LAST prompt"), lines=4, elem_id="video-scenes",
                placeholder="0-7 a red circle moves left\n8-15 a blue square grows",
            )  # fmt: skip
            self.add(VideoStoryboard, "prompt_crossfade")
        with gr.Group(visible=False) as self.larger:
            self.add(VideoUpscale, "factor")

    def _numbers(self) -> None:
        tr = self.tr
        with gr.Row():
            for name in ("frames", "steps", "guidance_scale"):
                self.add(VideoGenerate, name)
        self.build_seed()
        with gr.Accordion(tr("More settings"), open=False, elem_id="video-more"):
            self.add(VideoGenerate, "negative_prompt")
            self.expand_prompt = self.build_expansion(VideoGenerate)
            self.sampler = self.by_name()
            with gr.Row():
                self.add(VideoExtend, "context_frames")
                self.add(VideoGenerate, "window")
            with gr.Row():
                self.add(VideoGenerate, "width")
                self.add(VideoGenerate, "height")
                self.add(VideoGenerate, "fps")
            self.add(VideoGenerate, "format")
            self.add(VideoGenerate, "sampling")

    @property
    def fields(self) -> dict[str, Any]:
        """Input components by name."""
        named = ("task", "model", "prompt", "still", "at", "clip", "other", "direction", "joint", "way")
        named += ("source_prompt", "strength", "scenes", "seed", "fresh", "expand_prompt", "each", "editor", "mask")
        named += ("means", "sampler")
        return {name: getattr(self, name) for name in named} | self.parts

    @property
    def groups(self) -> list[Any]:
        """Components shown only for some tasks."""
        return [
            self.begins, self.input_fields, self.second, self.extended, self.joined, self.edited, self.scene_list,
            self.larger, self.changed,
        ]  # fmt: skip

    # -- events -------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self.draft.connect(self.fields)
        chosen = [self.task.change, self.joint.change]
        seen = gr.on(chosen, _groups, [self.task, self.joint], self.groups, trigger_mode="always_last", **QUIET)
        connect_default(self.task, self.strength, STRENGTHS)
        # an editor that is not visible yet cannot show an image
        for event in (partial(seen.then, trigger_mode="always_last"), self.clip.change):
            inputs = [self.task, self.clip]
            self.on(event, self._to_paint, inputs, [self.editor], by_user=False, in_order="video-paint")
        for event in (self.go.click, self.prompt.submit):
            self.watch.begins(event, self.submitted, [*self.fields.values()], self.settled)
        drawing = (self.task, self.model, self.still, self.at, self.clip, self.other, self.direction, self.joint)
        changes = [part.change for part in (*drawing, self.parts["frames"], self.parts["fps"], self.scenes)]
        self.on_latest(changes, self.planned, [*self.fields.values()], [self.timeline])
        self.on(self.again.click, self._reuse, [self.watch.browser_state], [self.clip, self.task])

    def _to_paint(self, owner: str, task: str, clip: str | None) -> Any:
        return self.to_paint(clip) if task == VideoEdit.name else gr.skip()

    def planned(self, owner: str, *values: Any) -> Markup:
        """Return the timeline: which frames are given, and which are generated."""
        form = dict(zip(self.fields, values, strict=True))
        try:
            return timeline_html(self._spans(form), self.tr)
        except RecipeError:  # a number that is not typed completely
            return Markup("")

    def _spans(self, form: Mapping[str, Any]) -> list[FrameSpan]:
        model = next((entry for entry in self.client.catalog.models() if entry.name == form["model"]), None)
        info = ModelInfo() if model is None else model_info(model)
        default = info.shape[1] if info.shape is not None and len(info.shape) == 4 else 16
        rate = self._fields["fps"].read(form["fps"])
        if rate is None and form["task"] in CONTINUED and FPS not in (info.takes or ()):
            rate = info.fps  # the videos are brought to it
        uploads = [upload for path in (form["clip"], form["other"]) if (upload := self.client.store_upload(path))]
        lengths = [upload.frames_at(rate) for upload in uploads]
        frames = self.typed.integer(form["frames"], self.tr.optional("Frames")) or default
        at = self.typed.integer(form["at"], self.tr("Frame of the keyframe image (-1 is the last)")) or 0
        return frame_spans(form["task"], frames, lengths, at if form["still"] else None, form, self._scenes(form))

    def task_of(self, form: Mapping[str, Any]) -> str:
        """Return the name of the chosen task."""
        return VideoLoop.name if form["task"] == LOOP_FROM_PROMPT else form["task"]

    def request(self, form: Mapping[str, Any]) -> dict[str, Any]:
        """Build the values of the task from those of the components.

        Raises:
            RecipeError: A value is missing or invalid.
            DataError: An image or a video cannot be read.
        """
        task = TASKS[self.task_of(form)]
        request = self.read(task, form) | self._input_videos(form)
        if not takes_strength(form["task"], form["joint"]):
            request.pop("strength", None)
        if task is VideoGenerate and form["still"]:
            upload = self.client.store_upload(form["still"])
            assert upload is not None
            at = self.typed.integer(form["at"], self.tr("Frame of the keyframe image (-1 is the last)")) or 0
            request["keyframes"] = [{"image": upload.name, "frame": at}]
        elif task is VideoExtend:
            request["backward"] = form["direction"] == "backward"
        elif task is VideoJoin:
            request |= {"method": form["joint"], "prompt": [line.strip() for line in _lines(form["each"])]}
        elif task is VideoEdit:
            request["method"] = form["way"]
            if form["way"] == "difference" and form["source_prompt"]:
                request["source_prompt"] = form["source_prompt"]
            upload = self.client.store_upload(form["clip"])
            if upload is not None and (mask := self.masked(form, upload)):
                request[form["means"]] = mask
        elif task is VideoStoryboard:
            request["scenes"] = self._scenes(form)
        return request

    def _input_videos(self, form: Mapping[str, Any]) -> dict[str, str]:
        """The input videos of the chosen task.

        Raises:
            RecipeError: One is missing.
        """
        names = input_fields(form["task"])
        values: dict[str, str] = {}
        for name, part in zip(names, ("clip", "other"), strict=False):
            upload = self.client.store_upload(form[part])
            if upload is None:
                first, second = self.tr("Choose a video first."), self.tr("Choose the second video first.")
                raise RecipeError(first if part == "clip" else second)
            values[name] = upload.name
        return values

    def filled_by(self, task: str, request: Mapping[str, Any]) -> list[Any]:
        """Return the values of the components that produce this request."""
        values = self.common_values(task, request)
        if task == VideoLoop.name and request.get("video") is None:
            values["task"] = LOOP_FROM_PROMPT
        if task == VideoJoin.name:
            values |= {"each": values["prompt"], "prompt": "", "joint": request.get("method", "bridge")}
        else:
            values["each"] = ""
        if task == VideoEdit.name:
            values["way"] = request.get("method", VideoEdit.model_fields["method"].default)
        values |= {"still": None, "editor": None, "source_prompt": request.get("source_prompt", "")}
        means = "keep_mask" if request.get("keep_mask") and not request.get("mask") else "mask"
        values |= {"means": means, "mask": self.client.upload_path(request.get(means))}
        clip = request.get("video", request.get("first"))
        values |= {"clip": self.client.upload_path(clip), "other": self.client.upload_path(request.get("last"))}
        values["direction"] = "backward" if request.get("backward") else "forward"
        strength = request.get("strength", STRENGTHS.get(task, STRENGTHS[VideoEdit.name]))
        values["strength"] = strength[0] if isinstance(strength, list) else strength
        for keyframe in request.get("keyframes", ())[:1]:
            values |= {"still": self.client.upload_path(keyframe["image"]), "at": keyframe.get("frame", 0)}
        lines = [f"{scene['first']}-{scene['last']} {scene['prompt']}" for scene in request.get("scenes", ())]
        values["scenes"] = "\n".join(lines)
        return [values.get(name, gr.skip()) for name in self.fields]

    def refreshed(self) -> list[Any]:
        """Return the current lists of names for `named`."""
        return [gr.Dropdown(choices=self.client.models(None, "videos"))]

    @property
    def named(self) -> list[Any]:
        """Components that list names."""
        return [self.model]

    def left_out(self, task: str, request: Mapping[str, Any]) -> list[str]:
        """Return the settings of a request that have no component, as text."""
        represented = ("video", "first", "last", "mask", "keep_mask", "keyframes", "scenes", "method", "backward")
        represented += ("source_prompt",)
        if task == VideoJoin.name:
            represented += ("prompt",)
        if not isinstance(request.get("strength"), list):
            represented += ("strength",)
        words = self.unsupported(task, request, represented)
        if request.get("mask") and request.get("keep_mask"):
            words.append(self.tr("one of two masks"))
        if len(request.get("keyframes", ())) > 1:
            words.append(self.tr("all keyframes except the first"))
        return words

    def _scenes(self, form: Mapping[str, Any]) -> list[dict[str, Any]]:
        scenes: list[dict[str, Any]] = []
        for line in _lines(form["scenes"]) if form["task"] == VideoStoryboard.name else ():
            span, _, prompt = line.strip().partition(" ")
            first, _, last = span.partition("-")
            if not all(re.fullmatch("[0-9]{1,9}", word) for word in (first, last)) or int(last) > MAX_FRAMES:
                raise RecipeError(self.tr("{line}: a scene must be FIRST-LAST prompt", line=line[:80]))
            scenes.append({"first": int(first), "last": int(last), "prompt": prompt})
        return scenes

    def _reuse(self, owner: str, state: Mapping[str, Any]) -> list[Any]:
        job = self.client.job((state or {}).get("job"), owner)
        name = None if job is None or job.state != "completed" else video_file(job)
        if job is None or name is None:
            raise RecipeError(self.tr("No video exists yet."))
        return [str(self.client.service.results.file(job.id, name)), VideoExtend.name]


def _lines(text: str | None) -> list[str]:
    """The lines of a text that are not empty."""
    return [line for line in (text or "").splitlines() if line.strip()]


def input_fields(task: str) -> list[str]:
    """The fields of a task that name its input videos; none for a loop from a prompt."""
    if task == LOOP_FROM_PROMPT:
        return []
    return [name for name in ("video", "first", "last") if name in TASKS[task].model_fields]


def takes_strength(task: str, joint: str) -> bool:
    """Return True if the task has a strength; joining has one only as a crossfade."""
    return task in STRENGTHS and (task != VideoJoin.name or joint == "blend")


def _groups(task: str, joint: str) -> list[Any]:
    """Return which groups a task shows."""
    inputs = input_fields(task)
    seen = (
        task == VideoGenerate.name,
        bool(inputs),
        len(inputs) > 1,
        task == VideoExtend.name,
        task == VideoJoin.name,
        task == VideoEdit.name,
        task == VideoStoryboard.name,
        task == VideoUpscale.name,
        takes_strength(task, joint),
    )
    return [gr.Group(visible=visible) for visible in seen]
