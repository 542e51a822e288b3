"""The record in a picture file: how it was made, in full, for people and for making it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unveil.types import MediaError

MAX_TEXT = 1_000_000  # characters of a record that are read
PARAMETERS, FACTS = "parameters", "unveil"  # names of the two texts in a PNG file


def read_facts(path: Path) -> dict[str, Any]:
    """What a picture of ours says about how it was made.

    Raises:
        MediaError: no such file, not a PNG, or one without our metadata.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # texts may follow the pixels
            text = getattr(image, "text", {}).get(FACTS)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as problem:
        raise MediaError(
            f"{path}: not a readable PNG file ({problem}); give a picture that `unveil sample` wrote"
        ) from problem
    if text is None:
        raise MediaError(f"{path}: holds no record of how it was made (stripped, or written with --no-metadata)")
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"{len(text)} characters")
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as problem:
        raise MediaError(f"{path}: its record is damaged ({problem}); use the picture as it was written") from problem
    return facts


def parameters(facts: Mapping[str, Any], size: Sequence[int]) -> str:
    """The record as the one-line text that picture tools show under `parameters`."""
    wish = ", ".join(f"{key} {value}" for key, value in facts.get("given", {}).items())
    shown = {
        "Steps": facts["steps"],
        "Sampler": facts["sampler"],
        "CFG scale": facts["scale"],
        "Seed": facts["seed"],
        "Sample": facts["sample"],
        "Size": f"{size[1]}x{size[0]}",
        "Model hash": str(facts["model"]["sha256"])[:10],
        "Model": facts["model"]["name"],
        "Version": f"unveil {facts['versions']['unveil']}",
    }
    if worn := facts.get("loras"):
        shown["LoRA"] = " ".join(f"{one['name']} {one['sha256'][:10]} x {one['weight']:g}" for one in worn)
    for number, one in enumerate(facts.get("controls", [])):
        shown[f"ControlNet {number}"] = (
            f"{one['name']} {one['sha256'][:10]} x {one['weight']:g}, {one['start']:g} to {one['stop']:g}, "
            f"of {one['picture']} {one['picture_sha256'][:10]}"
        )
    return f"{wish}\n" + ", ".join(f"{key}: {value}" for key, value in shown.items())
