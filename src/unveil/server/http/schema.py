"""What is asked and answered, in the words of OpenAI's interface and in ours."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unveil.server.jobs.image_job import MOST, Steered
from unveil.server.jobs.image_job import Verb as PictureVerb
from unveil.server.jobs.job import Fault
from unveil.server.jobs.request import SEEDS, SIDE, Name, Text
from unveil.server.jobs.video_job import KnownFrame, Scene, Verb
from unveil.types import RecipeError

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
Ignored = Annotated[Any, Field(description="of OpenAI's interface; without effect here")]
Strength = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=0, le=4096)]


class Ask(BaseModel):
    """What requests for pictures and clips have alike."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: Text | None = None
    model: Name | None = None
    size: Annotated[str, Field(max_length=20, description="WIDTHxHEIGHT, or auto")] | None = None
    seed: Annotated[int, Field(ge=0, le=SEEDS, description="drawn by chance when left out, and told")] | None = None
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    sampler: Annotated[str, Field(max_length=100)] | None = None
    negative_prompt: Text | None = None
    expand: Annotated[bool, Field(description="make a short prompt dense")] = True

    def sampling(self) -> dict[str, Any]:
        """Changes of the model's own settings."""
        named = {"steps": self.steps, "guidance_scale": self.guidance, "sampler": self.sampler}
        return {key: value for key, value in named.items() if value is not None}

    def sides(self) -> dict[str, int]:
        """Width and height, where they were given.

        Raises:
            RecipeError: not WIDTHxHEIGHT.
        """
        if self.size is None or self.size == "auto":
            return {}
        found = _SIZE.fullmatch(self.size)
        if found is None or max(int(found[1]), int(found[2])) > SIDE:
            raise RecipeError(f"size {self.size!r}: is written WIDTHxHEIGHT in pixels, such as 64x48, or is auto")
        return {"width": int(found[1]), "height": int(found[2])}

    def common(self, seed: int) -> dict[str, Any]:
        """The part of a job's request that pictures and clips have alike."""
        named = {"model": self.model, "prompt": self.prompt, "negative": self.negative_prompt}
        said = {key: value for key, value in named.items() if value is not None}
        return {**said, **self.sides(), "seed": seed, "sampling": self.sampling(), "expand": self.expand}


class ImagesAsk(Ask):
    """`POST /v1/images/generations`."""

    n: Annotated[int, Field(ge=1, le=MOST)] | None = 1
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png"] | None = None
    stream: Literal[False] | None = None
    partial_images: Literal[0] | None = None
    label: Annotated[Text, Field(max_length=300)] | None = None
    loras: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    controls: Annotated[tuple[Steered, ...], Field(max_length=4)] = ()
    wait: Annotated[bool, Field(description="false: answer at once with the job")] = True
    quality: Ignored = None
    style: Ignored = None
    user: Ignored = None
    background: Ignored = None
    moderation: Ignored = None
    output_compression: Ignored = None
    safety_identifier: Ignored = None
    complexity: Ignored = None
    input_fidelity: Ignored = None

    def request(self, seed: int) -> dict[str, Any]:
        """The request of a job of pictures."""
        found = {**self.common(seed), "count": self.n or 1, "loras": list(self.loras)}
        found |= {"controls": [one.model_dump() for one in self.controls]}
        return found | ({} if self.label is None else {"label": self.label})


class EditsAsk(ImagesAsk):
    """`POST /v1/images/edits`, whose files are `image` and `mask`."""

    verb: PictureVerb | None = Field(None, description="inpaint where there is a mask, else img2img")
    strength: Strength | None = None
    feather: Annotated[int, Field(ge=0, le=512)] = 0
    left: Pixels = 0
    right: Pixels = 0
    top: Pixels = 0
    bottom: Pixels = 0
    factor: Annotated[int, Field(ge=1, le=8)] = 2

    def edit(self, seed: int, image: str, mask: str | None) -> dict[str, Any]:
        """The request of a job that edits a picture that was sent."""
        verb = self.verb or ("img2img" if mask is None else "inpaint")
        names = ("strength", "feather", "left", "right", "top", "bottom", "factor")
        change = {name: getattr(self, name) for name in names}
        change |= {"verb": verb, "picture": image, "mask": mask}
        return {**self.request(seed), "change": {key: value for key, value in change.items() if value is not None}}


class VideosAsk(Ask):
    """`POST /v1/videos`, whose files are `input_reference`, `clip`, `other`, `mask` and `keep`."""

    seconds: Annotated[float, Field(gt=0, le=3600)] | None = None
    frames: Annotated[int, Field(ge=1, le=4096)] | None = None
    fps: Annotated[float, Field(gt=0, le=120)] | None = None
    verb: Verb | None = None
    form: Literal["mp4", "webm", "gif"] = "mp4"
    known: Annotated[tuple[KnownFrame, ...], Field(max_length=64)] = ()
    window: Annotated[int, Field(ge=1, le=4096)] | None = None
    direction: Literal["forward", "backward"] | None = None
    context: Annotated[int, Field(ge=1, le=4096)] | None = None
    way: Literal["bridge", "blend", "noise", "difference"] | None = None
    prompts: Annotated[tuple[Text, ...], Field(max_length=2)] = ()
    strength: Strength | None = None
    source: Text | None = None
    scenes: Annotated[tuple[Scene, ...], Field(max_length=64)] = ()
    fade: Annotated[int, Field(ge=0, le=4096)] | None = None
    factor: Annotated[int, Field(ge=1, le=8)] | None = None

    def request(self, seed: int, rate: float) -> dict[str, Any]:
        """The request of a job of a clip, without its files.

        Args:
            seed: of the clip.
            rate: frames in a second where none are given.
        """
        frames = self.frames
        if frames is None and self.seconds is not None:
            frames = max(1, round(self.seconds * (self.fps or rate)))
        names = ("fps", "window", "direction", "context", "way", "strength", "source", "fade", "factor")
        own: dict[str, Any] = {name: getattr(self, name) for name in names}
        own |= {"verb": self.verb or "make", "form": self.form, "frames": frames}
        own |= {"prompts": list(self.prompts), "known": [one.model_dump() for one in self.known]}
        own |= {"scenes": [one.model_dump() for one in self.scenes]}
        return {**self.common(seed), **{key: value for key, value in own.items() if value not in (None, [])}}


class JobsAsk(BaseModel):
    """`POST /v1/jobs`: a job of any kind, with the whole of what its kind takes."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["pictures", "clips", "train", "caption", "evaluate", "check", "convert"]
    request: dict[str, Any]


class Output(BaseModel):
    """A file that a job made."""

    name: str
    url: str


class JobAnswer(BaseModel):
    """A job as it stands; times are seconds since 1970, `position` counts the jobs before it.

    `fault` says of one that failed whether what was asked for cannot be done, a place is full, or the server is wrong.
    """

    id: str
    object: Literal["job"] = "job"
    kind: str
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    progress: int
    done: int
    total: int
    position: int | None
    expected_seconds: float | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    stopping: bool
    outputs: list[Output]
    warnings: list[str]
    error: str | None
    fault: Fault | None
    request: dict[str, Any]


class Listed(BaseModel):
    """A page of jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobAnswer]
    has_more: bool


class ImageAnswer(BaseModel):
    """A picture."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int | None = None


class ImagesAnswer(BaseModel):
    """Pictures."""

    created: int
    data: list[ImageAnswer]
    output_format: Literal["png"] = "png"
    size: str | None = None
    job: str
    warnings: list[str]


class VideoError(BaseModel):
    """Why there is no clip."""

    code: str
    message: str


class VideoAnswer(BaseModel):
    """A clip, or what will be one."""

    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    model: str
    progress: int
    prompt: str | None = None
    seconds: str
    size: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    error: VideoError | None = None
    seed: int
    warnings: list[str]


class VideosAnswer(BaseModel):
    """A page of clips."""

    object: Literal["list"] = "list"
    data: list[VideoAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelAnswer(BaseModel):
    """A model that requests may name; what is not known before it is opened is null."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    makes: Literal["pictures", "clips"] | None = None
    takes: list[str] | None = None
    shape: list[int] | None = None
    steps: int | None = None


class ModelsAnswer(BaseModel):
    """Every model."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class SentAnswer(BaseModel):
    """A file that was sent, and the name by which requests speak of it."""

    name: str
    kind: Literal["picture", "clip"]
    width: int
    height: int
    frames: int


class Deleted(BaseModel):
    """Something that is no more."""

    id: str
    object: str
    deleted: Literal[True] = True
