"""The reader of former metadata: images of format 1 in the form of today's tasks.

Format 1 named a task by a `verb` with its settings; format 2 contains the task itself, see `tasks.task.Task.metadata`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from unveil.errors import DataError

FORMAT = 2
ROLES = {"picture": "image", "noise": "latents"}  # former names of the fields that hold inputs


def migrate_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata in today's form.

    Args:
        facts: Metadata of any format.

    Raises:
        DataError: They are damaged.
    """
    facts = dict(facts)
    if "fps" in facts:  # a video: its metadata of format 1 lack what is needed to generate it again
        return facts
    if facts.get("format", 1) >= FORMAT or not isinstance(facts.get("model"), Mapping):
        return facts
    former = facts.get("task")
    try:
        if former is None:
            facts["task"] = {"name": "sample"}
        elif isinstance(former, Mapping) and former.get("verb") in _TASKS:
            facts["task"] = _TASKS[str(former["verb"])](former, facts)
            facts["inputs"] = _with_roles(former.get("inputs", {}))
            facts |= {key: former[key] for key in ("passes",) if key in former}
        else:
            return facts
        batch = facts.get("batch")
        if isinstance(batch, Mapping) and "inputs" in batch:
            facts["batch"] = {**batch, "inputs": _with_roles(batch["inputs"])}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as problem:
        raise DataError(f"the image's metadata lack {problem}; use the file as it was written") from problem
    return facts | {"format": FORMAT}


def _with_roles(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {ROLES.get(role, role): files for role, files in inputs.items()}


def _file(former: Mapping[str, Any], role: str) -> str:
    return str(former.get("inputs", {}).get(role, {}).get("name", role))


def _img2img(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "img2img", "image": _file(former, "picture"), "strength": former["strength"]}


def _inpainting(former: Mapping[str, Any]) -> dict[str, Any]:
    length, times = former["jumps"]
    jumps = {"repaint_jump_length": length, "repaint_resamples": times}
    return {"feather": former["feather"], "method": former["method"], **jumps}


def _inpaint(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    files = {"image": _file(former, "picture"), "mask": _file(former, "mask")}
    return {"name": "inpaint", **files, "strength": former["strength"], **_inpainting(former)}


def _outpaint(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    margins = dict(zip(("left", "right", "top", "bottom"), former["margins"], strict=True))
    return {"name": "outpaint", "image": _file(former, "picture"), **margins, **_inpainting(former)}


def _upscale(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: former[key] for key in ("factor", "strength", "overlap")}
    return {"name": "upscale", "image": _file(former, "picture"), **settings}


def _variations(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    seed, index = former["of"]
    return {
        "name": "variations",
        "image": "image",
        "variation_strength": former["amount"],
        "source_sample": [seed, index],
    }


def _interpolate(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    (first, index), (last, _) = former["ends"]
    given = {key: [values[0], *former["to"].get(key, ())] for key, values in facts["batch"]["given"].items()}
    own = {key: given.pop(key) for key in ("prompt", "label") if key in given}
    return {
        "name": "interpolate",
        "seed": [first, last],
        "start_index": index,
        "frames": former["frames"],
        **own,
        **({"cond": given} if given else {}),
    }


def _noise(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "sample", "latents": _file(former, "noise")}


def _large(former: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": "sample"}


_TASKS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "img2img": _img2img,
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "upscale": _upscale,
    "vary": _variations,
    "interpolate": _interpolate,
    "noise": _noise,
    "large": _large,
}
