"""The record in a file of a picture or a clip: how it was made, in full, for people and for making it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unveil.errors import DataError
from unveil.io.images import EXIF, METADATA_KEY, UNICODE, USER_COMMENT
from unveil.io.video.containers import HEAD, container_of
from unveil.io.video.reader import VideoDecoder
from unveil.model.migration import migrate_metadata, migrate_settings
from unveil.types import format_size

MAX_TEXT = 1_000_000  # characters of a record that are read
PARAMETERS = "parameters"  # the name of the text that picture tools show


def read_facts(path: Path) -> dict[str, Any]:
    """What a picture or a clip of ours says about how it was made.

    Raises:
        DataError: no such file, not a picture or a clip, or one without our metadata.
    """
    text = _clip_text(path) or _picture_text(path)
    if text is None:
        raise DataError(f"{path}: holds no record of how it was made (stripped, or written with --no-metadata)")
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"{len(text)} characters")
        facts = json.loads(text)
        if not isinstance(facts, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path}: its record is damaged ({problem}); use the file as it was written") from problem
    return migrate_metadata(facts)


def _picture_text(path: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG", "GIF", "WEBP"]) as image:
            if image.format == "PNG":
                image.load()  # texts may follow the pixels
                return getattr(image, "text", {}).get(METADATA_KEY)
            found = image.getexif().get_ifd(EXIF).get(USER_COMMENT, b"")
            if isinstance(found, bytes) and found.startswith(UNICODE):
                return found.removeprefix(UNICODE).decode("utf-16-le")
            return _ours(image.info.get("comment", b"").decode())
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> DataError:
    if isinstance(problem, FileNotFoundError):
        return DataError(f"{path}: no such file; give an image or video that this program wrote")
    return DataError(f"{path}: not a readable PNG file, nor a clip ({problem}); give a file that this program wrote")


def _clip_text(path: Path) -> str | None:
    """The record in a video; None where there is none, or the file is no video."""
    try:
        with path.open("rb") as file:
            if container_of(file.read(HEAD)) in (None, "GIF"):
                return None
        decoder = VideoDecoder()
        found = _ours(decoder.comment(path) or "")
        decoder.close()
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    if found is None:
        raise DataError(f"{path}: holds no record of how it was made (stripped, or written with --no-metadata)")
    return found


def _ours(comment: str) -> str | None:
    """A comment that can be a record: other programs write theirs in the same place."""
    return comment if comment.startswith("{") else None


def parameters(facts: Mapping[str, Any], size: Sequence[int]) -> str:
    """The record as the one-line text that picture tools show under `parameters`."""
    wish = ", ".join(f"{key} {value}" for key, value in facts.get("given", {}).items())
    shown = {
        "Steps": facts["steps"],
        "Sampler": facts["sampler"],
        "CFG scale": migrate_settings(facts)["guidance_scale"],
        "Seed": facts["seed"],
        "Sample": facts["sample"],
        "Size": format_size(size),
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
