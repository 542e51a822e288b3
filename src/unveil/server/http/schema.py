"""Request and response bodies, with OpenAI's fields and own ones."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unveil.errors import RecipeError
from unveil.server.jobs.image_job import MAX_IMAGES, ControlNetSpec
from unveil.server.jobs.image_job import EditTask as PictureVerb
from unveil.server.jobs.job import ErrorSource
from unveil.server.jobs.request import MAX_SEED, MAX_SIDE, Name, Text
from unveil.server.jobs.video_job import Keyframe, Scene, VideoTask

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
Ignored = Annotated[Any, Field(description="field of OpenAI's API; ignored")]
Strength = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=0, le=4096)]


class Ask(BaseModel):
    """Fields that image and video requests share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: Text | None = None
    model: Name | None = None
    size: Annotated[str, Field(max_length=20, description="WIDTHxHEIGHT, or auto")] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="random by default; see the response")] | None = None
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    sampler: Annotated[str, Field(max_length=100)] | None = None
    negative_prompt: Text | None = None
    expand: Annotated[bool, Field(description="expand a short prompt into a detailed one")] = True

    def sampling(self) -> dict[str, Any]:
        """Return the overrides of the model's sampling settings."""
        named = {"steps": self.steps, "guidance_scale": self.guidance, "sampler": self.sampler}
        return {key: value for key, value in named.items() if value is not None}

    def sides(self) -> dict[str, int]:
        """Return width and height, if given.

        Raises:
            RecipeError: Not WIDTHxHEIGHT.
        """
        if self.size is None or self.size == "auto":
            return {}
        match = _SIZE.fullmatch(self.size)
        if match is None or max(int(match[1]), int(match[2])) > MAX_SIDE:
            raise RecipeError(f"size {self.size!r}: must be WIDTHxHEIGHT in pixels, such as 64x48, or auto")
        return {"width": int(match[1]), "height": int(match[2])}

    def common(self, seed: int) -> dict[str, Any]:
        """Return the fields of a job's request that image and video jobs share."""
        named = {"model": self.model, "prompt": self.prompt, "negative": self.negative_prompt}
        texts = {key: value for key, value in named.items() if value is not None}
        return {**texts, **self.sides(), "seed": seed, "sampling": self.sampling(), "expand": self.expand}


class ImagesAsk(Ask):
    """`POST /v1/images/generations`."""

    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = 1
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png"] | None = None
    stream: Literal[False] | None = None
    partial_images: Literal[0] | None = None
    label: Annotated[Text, Field(max_length=300)] | None = None
    loras: Annotated[tuple[Name, ...], Field(max_length=8)] = ()
    controls: Annotated[tuple[ControlNetSpec, ...], Field(max_length=4)] = ()
    wait: Annotated[bool, Field(description="false: respond at once with the job")] = True
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
        """Return the request of an image job."""
        request = {**self.common(seed), "count": self.n or 1, "loras": list(self.loras)}
        request |= {"controls": [control.model_dump() for control in self.controls]}
        return request | ({} if self.label is None else {"label": self.label})


class EditsAsk(ImagesAsk):
    """`POST /v1/images/edits`, whose files are `image` and `mask`."""

    verb: PictureVerb | None = Field(None, description="inpaint with a mask, else img2img")
    strength: Strength | None = None
    feather: Annotated[int, Field(ge=0, le=512)] = 0
    left: Pixels = 0
    right: Pixels = 0
    top: Pixels = 0
    bottom: Pixels = 0
    factor: Annotated[int, Field(ge=1, le=8)] = 2

    def edit(self, seed: int, image: str, mask: str | None) -> dict[str, Any]:
        """Return the request of an image job that edits an upload."""
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
    verb: VideoTask | None = None
    form: Literal["mp4", "webm", "gif"] = "mp4"
    known: Annotated[tuple[Keyframe, ...], Field(max_length=64)] = ()
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
        """Return the request of a video job, without its files.

        Args:
            seed: Seed of the video.
            rate: Default frame rate, in frames per second.
        """
        frames = self.frames
        if frames is None and self.seconds is not None:
            frames = max(1, round(self.seconds * (self.fps or rate)))
        names = ("fps", "window", "direction", "context", "way", "strength", "source", "fade", "factor")
        fields: dict[str, Any] = {name: getattr(self, name) for name in names}
        fields |= {"verb": self.verb or "make", "form": self.form, "frames": frames}
        fields |= {"prompts": list(self.prompts), "known": [item.model_dump() for item in self.known]}
        fields |= {"scenes": [item.model_dump() for item in self.scenes]}
        return {**self.common(seed), **{key: value for key, value in fields.items() if value not in (None, [])}}


class JobsAsk(BaseModel):
    """`POST /v1/jobs`: a job of any type, with all parameters of its type."""

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[str, Field(max_length=100)]
    request: dict[str, Any]


class OutputFile(BaseModel):
    """An output file of a job."""

    name: str
    url: str


class JobResponse(BaseModel):
    """A job and its state; times are seconds since 1970, `position` is the number of jobs ahead of it.

    `error_source` is what caused an error: the request, lacking resources (memory or disk space), or the server.
    """

    id: str
    object: Literal["job"] = "job"
    kind: str
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    progress: int
    completed_steps: int
    total_steps: int
    position: int | None
    expected_seconds: float | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    attempts: int
    cancelling: bool
    outputs: list[OutputFile]
    warnings: list[str]
    error: str | None
    error_source: ErrorSource | None
    request: dict[str, Any]


class JobsResponse(BaseModel):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[JobResponse]
    has_more: bool


class ImageResponse(BaseModel):
    """One generated image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None
    seed: int | None = None


class ImagesResponse(BaseModel):
    """Generated images."""

    created: int
    data: list[ImageResponse]
    output_format: Literal["png"] = "png"
    size: str | None = None
    job: str
    warnings: list[str]


class VideoError(BaseModel):
    """Error of a video job."""

    code: str
    message: str


class VideoResponse(BaseModel):
    """A video job and its state."""

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


class VideosResponse(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[VideoResponse]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelResponse(BaseModel):
    """A model; fields that are unknown before it is loaded are null."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    makes: Literal["images", "videos"] | None = None
    takes: list[str] | None = None
    shape: list[int] | None = None
    steps: int | None = None


class ModelsResponse(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelResponse]


class UploadResponse(BaseModel):
    """An uploaded file, and the name by which requests refer to it."""

    name: str
    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int


class DeletedResponse(BaseModel):
    """A deleted object."""

    id: str
    object: str
    deleted: Literal[True] = True
