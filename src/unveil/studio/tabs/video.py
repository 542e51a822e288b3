"""Clips: from words, pictures and other clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
from markupsafe import Markup

from unveil.cli.options import PLAYGROUND
from unveil.cli.video_inputs import RATE
from unveil.server.jobs.catalog import about
from unveil.server.jobs.video_job import CLIPS, FRAMES, NEEDS, TAKES
from unveil.studio.form_parsing import filled
from unveil.studio.tab_base import Desk, Maker, Watch, shows_usual
from unveil.studio.timeline import Span, drawn, spans
from unveil.studio.upload_components import Film, Still
from unveil.types import RecipeError

TWO = ("between", "connect")  # that take a second clip
USUAL = {"edit": 0.7, "connect": 0.7, "upscale": 0.3}  # how much is made anew, as the service has it


class Video(Maker):
    """The tab of clips."""

    kind = CLIPS

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk, "video")

    def lay(self) -> None:
        """Places its parts."""
        self.begin()
        self.draft.lay()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self._asked()
            with gr.Column(scale=3, min_width=300):
                self.timeline = gr.HTML(elem_id="video-timeline")
                self.go = gr.Button(self.say("Make the clip"), variant="primary", elem_id="video-go")
                self.lay_lacking()
                self.watch = Watch(self, "video", self.say("Write what happens, and make the clip."))
                self.watch.lay()
                self.again = gr.Button(self.say("Go on from this clip"), elem_id="video-again")
        self._wire()

    # -- parts --------------------------------------------------------------------------------------------------

    def _asked(self) -> None:
        say = self.say
        names = {
            say("New"): "make",
            say("Go on"): "extend",
            say("Between two"): "between",
            say("Connect two"): "connect",
            say("Loop"): "loop",
            say("New loop"): "ring",
            say("Edit"): "edit",
            say("Storyboard"): "storyboard",
            say("Larger"): "upscale",
        }
        self.verb = gr.Radio([*names.items()], value="make", label=say("What to do"), elem_id="video-verb")
        self.model = gr.Dropdown(
            self.client.models(None, CLIPS), value=PLAYGROUND, label=say("Model"), elem_id="video-model"
        )
        self.prompt = gr.Textbox(
            label=say("What happens"), lines=2, elem_id="video-prompt", placeholder=say("a small red circle moves left")
        )
        with gr.Group() as self.begins:
            self.still = Still(
                label=say("A picture that is a frame of it"), type="filepath", sources=["upload", "clipboard"],
                height=200, elem_id="video-still",
            )  # fmt: skip
            self.at = gr.Number(0, precision=0, label=say("Which frame it is; -1 is the last"), elem_id="video-at")
        with gr.Group(visible=False) as self.given:
            self.clip = Film(label=say("The clip"), sources=["upload"], height=240, elem_id="video-clip")
        with gr.Group(visible=False) as self.second:
            self.other = Film(label=say("The second clip"), sources=["upload"], height=240, elem_id="video-other")
        with gr.Group(visible=False) as self.extended:
            self.direction = gr.Radio(
                [(say("after its end"), "forward"), (say("before its start"), "backward")], value="forward",
                label=say("Where it goes on"), elem_id="video-direction",
            )  # fmt: skip
        with gr.Group(visible=False) as self.joined:
            self.joint = gr.Radio(
                [(say("frames between them"), "bridge"), (say("one becomes the other"), "blend")], value="bridge",
                label=say("How they are connected"), elem_id="video-joint",
            )  # fmt: skip
            self.each = gr.Textbox(
                label=say("What happens in each, a line each"), lines=2, elem_id="video-each",
                placeholder=say("as the clips were made"),
            )  # fmt: skip
        self._rarer()
        self._numbers()

    def _rarer(self) -> None:
        say = self.say
        with gr.Group(visible=False) as self.changed:
            self.strength = self.anew(USUAL["edit"])
        with gr.Group(visible=False) as self.edited:
            self.way = gr.Radio(
                [(say("from noise"), "noise"), (say("by the difference of the texts"), "difference")], value="noise",
                label=say("How it is edited"), elem_id="video-way",
            )  # fmt: skip
            self.before = gr.Textbox(label=say("What happens in the clip as it is"), elem_id="video-before")
            gr.Markdown(say("All of it is edited, unless you paint over a part."))
            self.editor, self.mask = self.brush(), self.ready_mask()
            self.means = gr.Radio(
                [(say("is made anew"), "mask"), (say("stays"), "keep")], value="mask",
                label=say("What is painted over"), elem_id="video-means",
            )  # fmt: skip
        with gr.Group(visible=False) as self.told_in_parts:
            self.scenes = gr.Textbox(
                label=say("Scenes, a line each: FIRST-LAST what happens"), lines=4, elem_id="video-scenes",
                placeholder="0-7 a red circle moves left\n8-15 a blue square grows",
            )  # fmt: skip
            self.fade = self.field(say("Frames in which one scene becomes the next"), "fade")
        with gr.Group(visible=False) as self.larger:
            self.factor = gr.Slider(1, 8, value=2, step=1, label=say("Times as large"))

    def _numbers(self) -> None:
        say = self.say
        with gr.Row():
            self.frames, self.steps = self.field(say("Frames"), "frames"), self.field(say("Steps"), "steps")
            self.guidance = self.field(say("Guidance"), "guidance")
        self.lay_seed()
        with gr.Accordion(say("More settings"), open=False, elem_id="video-more"):
            self.negative = gr.Textbox(label=say("What is not to be seen"))
            self.expand = gr.Checkbox(True, label=say("Make a short text dense, for models that read such"))
            self.sampler = self.by_name()
            with gr.Row():
                self.context = self.field(say("Frames of a clip that are looked at"), "context")
                self.window = self.field(say("Frames that are made together, of long clips"), "window")
            with gr.Row():
                self.width, self.height = self.field(say("Width"), "width"), self.field(say("Height"), "height")
                self.fps = gr.Textbox(label=say("Frames in a second"), placeholder=f"{RATE:g}", min_width=90)
            self.form = gr.Radio(["mp4", "webm", "gif"], value="mp4", label=say("File"), elem_id="video-form")

    @property
    def fields(self) -> dict[str, Any]:
        """The parts that are asked, by name."""
        named = ("verb", "model", "prompt", "still", "at", "clip", "other", "direction", "joint", "way", "before")
        named += ("strength", "scenes", "factor", "frames", "steps", "guidance", "seed", "fresh", "negative", "expand")
        named += ("context", "width", "height", "fps", "form", "window", "each", "editor", "mask", "means", "fade")
        named += ("sampler",)
        return {name: getattr(self, name) for name in named}

    @property
    def groups(self) -> list[Any]:
        """The parts that are seen with some verbs alone."""
        return [
            self.begins, self.given, self.second, self.extended, self.joined, self.edited, self.told_in_parts,
            self.larger, self.changed,
        ]  # fmt: skip

    # -- what they do -------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        self.draft.wire(self.fields)
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        seen = self.verb.change(_groups, [self.verb, self.joint], self.groups, **quiet)
        self.joint.change(_groups, [self.verb, self.joint], self.groups, **quiet)
        shows_usual(self.verb, self.strength, USUAL)
        for event in (seen.then, self.clip.change):  # what is not on the page yet cannot show a picture
            self.on(event, self._to_paint, [self.verb, self.clip], [self.editor], asked=False)
        for event in (self.go.click, self.prompt.submit):
            self.watch.begins(event, self.submitted, [*self.fields.values()], self.settled)
        drawing = (self.verb, self.model, self.still, self.at, self.clip, self.other, self.direction, self.joint)
        for part in (*drawing, self.frames, self.scenes):  # which may come after the fault of what was asked since
            self.on(part.change, self.planned, [*self.fields.values()], [self.timeline], asked=False)
        self.on(self.again.click, self._reuse, [self.watch.kept], [self.clip, self.verb])

    def _to_paint(self, owner: str, verb: str, clip: str | None) -> Any:
        return self.to_paint(clip) if verb == "edit" else gr.skip()

    def planned(self, owner: str, *values: Any) -> Markup:
        """Which frames of the clip are known, and which are made."""
        said = dict(zip(self.fields, values, strict=True))
        try:
            return drawn(self._spans(said), self.say)
        except RecipeError:  # a number that is not typed to its end
            return Markup("")

    def _spans(self, said: Mapping[str, Any]) -> list[Span]:
        known = next((one for one in self.client.service.catalog.models() if one.name == said["model"]), None)
        shape = None if known is None else about(known).shape
        own = shape[1] if shape is not None and len(shape) == 4 else 16
        lengths = [kept.frames for path in (said["clip"], said["other"]) if (kept := self.client.keep(path))]
        frames = self.typed.whole(said["frames"], self.say("Frames")) or own
        at = self.typed.whole(said["at"], self.say("Which frame it is; -1 is the last")) or 0
        return spans(said["verb"], frames, lengths, at if said["still"] else None, said, self._scenes(said))

    def request(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What is asked of the service: of what was said, all that the verb takes.

        Raises:
            RecipeError: something is missing, or is no number.
            MediaError: a picture or a clip that cannot be read.
        """
        say, verb, whole, number = self.say, said["verb"], self.typed.whole, self.typed.number
        every = filled(
            frames=whole(said["frames"], say("Frames")), context=whole(said["context"], say("Frames")),
            direction=said["direction"], strength=said["strength"] if remakes(verb, said["joint"]) else None,
            factor=said["factor"],
            way=said["joint"] if verb == "connect" else said["way"] if verb == "edit" else None,
            source=said["before"] if said["way"] == "difference" else None, scenes=self._scenes(said),
            fade=whole(said["fade"], say("Frames")), window=whole(said["window"], say("Frames")),
            prompts=tuple(line.strip() for line in (said["each"] or "").splitlines() if line.strip()),
        )  # fmt: skip
        sent = {name: kept for name in ("clip", "other") if (kept := self.client.keep(said[name]))}
        every |= {name: kept.name for name, kept in sent.items()}
        if verb == "edit" and "clip" in sent and (mask := self.masked(said, sent["clip"])):
            every[said["means"]] = mask
        if said["still"] and verb == "make":
            kept = self.client.keep(said["still"])
            assert kept is not None
            at = whole(said["at"], say("Which frame it is; -1 is the last")) or 0
            every["known"] = [{"picture": kept.name, "at": at}]
        if missing := [name for name in NEEDS[verb] if name in ("clip", "other") and name not in every]:
            raise RecipeError(say("Give the second clip first.") if "other" in missing else say("Give the clip first."))
        taken = {name: value for name, value in every.items() if name in (*NEEDS[verb], *TAKES[verb])}
        common = filled(
            model=said["model"], prompt=said["prompt"], negative=said["negative"], form=said["form"],
            width=whole(said["width"], say("Width")), height=whole(said["height"], say("Height")),
            fps=number(said["fps"], say("Frames in a second")),
        )  # fmt: skip
        sampling = filled(
            steps=whole(said["steps"], say("Steps")), guidance_scale=number(said["guidance"], say("Guidance")),
            sampler=said["sampler"],
        )  # fmt: skip
        seed = whole(said["seed"], say("Seed")) or 0
        return {**common, **taken, "verb": verb, "seed": seed, "expand": said["expand"], "sampling": sampling}

    def filled_by(self, request: Mapping[str, Any]) -> list[Any]:
        """The values of its fields that ask for this again."""
        sampling, verb = request.get("sampling", {}), request.get("verb", "make")
        known = {"verb": verb, "model": request.get("model", PLAYGROUND), "seed": request.get("seed", 0)}
        plain = ("prompt", "negative", "width", "height", "fps", "frames", "context", "window", "fade")
        known |= {key: request.get(key, "") for key in plain}
        known |= {"fresh": False, "steps": sampling.get("steps", ""), "guidance": sampling.get("guidance_scale", "")}
        known["sampler"] = sampling.get("sampler", "")
        known |= {"expand": request.get("expand", True), "form": request.get("form", "mp4"), "still": None}
        known |= {"each": "\n".join(request.get("prompts", ())), "editor": None}
        means = "keep" if request.get("keep") and not request.get("mask") else "mask"
        known |= {"means": means, "mask": self.client.sent(request.get(means))}
        known |= {key: self.client.sent(request.get(key)) for key in ("clip", "other")}
        usual = {"direction": "forward", "strength": USUAL.get(verb, USUAL["edit"]), "factor": 2}
        known |= {key: request.get(key, value) for key, value in usual.items()}
        known |= {"before": request.get("source", ""), "scenes": ""}
        if "way" in request:
            known["joint" if verb == "connect" else "way"] = request["way"]
        for one in request.get("known", ())[:1]:
            known |= {"still": self.client.sent(one["picture"]), "at": one["at"]}
        lines = [f"{one['first']}-{one['last']} {one['prompt']}" for one in request.get("scenes", ())]
        known["scenes"] = "\n".join(lines)
        return [known.get(name, gr.skip()) for name in self.fields]

    def left_out(self, request: Mapping[str, Any]) -> list[str]:
        """What of a request has no field, in words."""
        found = {
            self.say("one of two masks"): bool(request.get("mask") and request.get("keep")),
            self.say("all known frames but one"): len(request.get("known", ())) > 1,
        }
        return [words for words, lacking in found.items() if lacking]

    def _scenes(self, said: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        found: list[dict[str, Any]] = []
        for line in (said["scenes"] or "").splitlines() if said["verb"] == "storyboard" else ():
            span, _, prompt = line.strip().partition(" ")
            first, _, last = span.partition("-")
            if not span:
                continue
            if not (first.isdigit() and last.isdigit()) or int(last) > FRAMES:
                raise RecipeError(self.say("{line}: a scene is written FIRST-LAST what happens", line=line[:80]))
            found.append({"first": int(first), "last": int(last), "prompt": prompt})
        return tuple(found)

    def _reuse(self, owner: str, kept: Mapping[str, Any]) -> list[Any]:
        job = self.client.job((kept or {}).get("job"), owner)
        if job is None or job.state != "completed":
            raise RecipeError(self.say("There is no clip yet."))
        name = next(one for one in job.outputs if one.startswith("clip."))
        return [str(self.client.service.results.file(job.id, name)), "extend"]


def remakes(verb: str, joint: str) -> bool:
    """Whether one says how much is made anew: of two clips that are connected, where one becomes the other."""
    return verb in USUAL and (verb != "connect" or joint == "blend")


def _groups(verb: str, joint: str) -> list[Any]:
    """Which groups are seen with a verb."""
    seen = (
        verb == "make",
        "clip" in NEEDS[verb],
        verb in TWO,
        verb == "extend",
        verb == "connect",
        verb == "edit",
        verb == "storyboard",
        verb == "upscale",
        remakes(verb, joint),
    )
    return [gr.Group(visible=one) for one in seen]
