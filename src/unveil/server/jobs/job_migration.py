"""Jobs that earlier versions stored: the former names of their fields, and the former types of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unveil.model.migration import migrate_settings

FORMER_FIELDS = {
    "done": "completed_steps",
    "total": "total_steps",
    "said": "messages",
    "fault": "error_source",
    "stopping": "cancelling",
}
FORMER_ERROR_SOURCES = {"asked": "request", "room": "resources"}
FORMER_UPLOAD_KINDS = {"picture": "image", "clip": "video"}
IMAGES, VIDEOS = "pictures", "clips"  # types of jobs before each task had its own
# Types of jobs that were commands: the name of the task, and its fields by their former names
FORMER_COMMANDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "train": ("train", {"small": "quick", "run": "run_name"}),
    "evaluate": ("evaluate", {"samples": "num_samples"}),
    "check": ("data-check", {}),
    "convert": ("convert", {"model": "source", "name": "output", "layout": "format"}),
}
FORMER_KINDS = (IMAGES, VIDEOS, *FORMER_COMMANDS)
_VIDEO_TASKS = {
    "make": "video-generate",
    "extend": "video-extend",
    "between": "video-interpolate",
    "connect": "video-join",
    "loop": "video-loop",
    "ring": "video-loop",
    "edit": "video-edit",
    "storyboard": "video-storyboard",
    "upscale": "video-upscale",
}
_COMMON_FIELDS = {"negative": "negative_prompt"}
_IMAGE_FIELDS = _COMMON_FIELDS | {"first": "start_index"}
_VIDEO_FIELDS = _COMMON_FIELDS | {
    "form": "format",
    "context": "context_frames",
    "way": "method",
    "prompts": "prompt",
    "source": "source_prompt",
    "keep": "keep_mask",
    "fade": "prompt_crossfade",
    "other": "last",
}
# fields of former requests over HTTP, and what they are called in a task
FORMER_NAMES: Mapping[str, str] = {
    **_VIDEO_FIELDS,
    **_IMAGE_FIELDS,
    "guidance": "guidance_scale",
    "loras": "lora",
    "controls": "controlnet",
    "known": "keyframes",
    "clip": "video",
    "verb": "task",
    "direction": "backward",
}
_SETTINGS = ("steps", "guidance_scale", "sampler")  # settings of sampling that are always fields of a task


def migrate_record(record: object) -> dict[str, Any]:
    """The fields of a stored job under their present names."""
    if not isinstance(record, Mapping):
        raise TypeError("a record of a job is an object")
    fields: dict[str, Any] = {FORMER_FIELDS.get(str(name), str(name)): value for name, value in record.items()}
    source = fields.get("error_source")
    kind, request = migrate_job(fields["kind"], fields["request"])
    return {**fields, "error_source": FORMER_ERROR_SOURCES.get(str(source), source), "kind": kind, "request": request}


def migrate_upload(record: Mapping[str, Any]) -> dict[str, Any]:
    """The description of an upload with the present name of its kind."""
    return {**record, "kind": FORMER_UPLOAD_KINDS.get(record["kind"], record["kind"])}


def migrate_job(kind: str, request: Any) -> tuple[str, Any]:
    """The task of a stored job and its values; those of jobs that are of no former type as they are.

    Fields that are unknown or of another form are kept: the job then fails with an error that names them.
    """
    if kind not in FORMER_KINDS or not isinstance(request, dict):
        return kind, request
    fields: dict[str, Any] = {str(name): value for name, value in request.items()}
    if kind in FORMER_COMMANDS:
        task, names = FORMER_COMMANDS[kind]
        return task, _renamed(fields, names)
    sampling = fields.pop("sampling", None)
    if isinstance(sampling, Mapping):
        settings = migrate_settings(sampling)
        fields |= {name: settings.pop(name) for name in _SETTINGS if name in settings}
        fields |= {"sampling": settings} if settings else {}
    elif sampling is not None:
        fields["sampling"] = sampling
    expand = fields.pop("expand", True)
    name, values = _image_task(fields) if kind == IMAGES else _video_task(fields)
    if not expand and name in ("sample", "video-generate"):
        values["expand_prompt"] = "none"
    return name, {key: value for key, value in values.items() if value is not None}


def former_fields(kind: str) -> Mapping[str, str]:
    """The present names of fields by their former ones, of a type of job that was a command; else empty."""
    return FORMER_COMMANDS[kind][1] if kind in FORMER_COMMANDS else {}


def _image_task(fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The task and its values of a request for images."""
    change, loras, controls = (fields.pop(key, None) for key in ("change", "loras", "controls"))
    save_trajectory = fields.pop("strip", None)
    values = {_IMAGE_FIELDS.get(key, key): value for key, value in fields.items()}
    if loras:
        values["lora"] = [_lora(lora) for lora in loras]
    if controls:
        names = {"name": "network", "picture": "image"}
        values["controlnet"] = [_renamed(control, names) for control in controls]
    if not isinstance(change, Mapping):
        return "sample", values | ({"save_trajectory": True} if save_trajectory else {})
    edit = _renamed(change, {"picture": "image"})
    name = str(edit.pop("verb", "img2img"))
    takes = {
        "img2img": ("strength",),
        "inpaint": ("strength", "mask", "feather", "method"),
        "outpaint": ("left", "right", "top", "bottom", "feather", "method"),
        "upscale": ("factor", "strength"),
    }
    allowed = ("image", *takes.get(name, tuple(edit)))
    return name, values | {key: value for key, value in edit.items() if key in allowed}


def _video_task(fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The task and its values of a request for a video."""
    verb = str(fields.pop("verb", "make"))
    direction, keyframes = fields.pop("direction", None), fields.pop("known", None)
    if verb in ("connect", "storyboard"):  # which have prompts of their videos or scenes instead
        fields.pop("prompt", None)
    values = {_VIDEO_FIELDS.get(key, key): value for key, value in fields.items()}
    if "clip" in values:
        values["first" if verb in ("between", "connect") else "video"] = values.pop("clip")
    if direction == "backward":
        values["backward"] = True
    if keyframes:
        values["keyframes"] = [_renamed(keyframe, {"picture": "image", "at": "frame"}) for keyframe in keyframes]
    return _VIDEO_TASKS.get(verb, verb), values


def _lora(text: Any) -> Any:
    """The values of a LoRA that was written as NAME or NAME:WEIGHT."""
    name, colon, weight = str(text).rpartition(":")
    try:
        return {"file": name, "weight": float(weight)} if colon else {"file": text}
    except ValueError:
        return {"file": text}


def _renamed(part: Any, names: Mapping[str, str]) -> Any:
    return {names.get(key, key): value for key, value in part.items()} if isinstance(part, Mapping) else part
