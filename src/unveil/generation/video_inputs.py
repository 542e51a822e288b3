"""Clips and pictures that commands on clips work on, read whole and brought to one size and rate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unveil.data.image_decoding import header, open_image
from unveil.data.video_folder import apply_orientation, frame_selection
from unveil.data.video_slicing import VideoFolderConfig, plan_segments
from unveil.errors import DataError, RecipeError
from unveil.generation import inputs
from unveil.generation.metadata import read_facts
from unveil.generation.task_spec import SourceFile
from unveil.io.files import sha256
from unveil.io.video.reader import VideoDecoder, VideoLimits
from unveil.model import Model
from unveil.model.shapes import check_size

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
RATE = 8.0  # frames in a second of what is made from nothing


class Read(NamedTuple):
    """A clip, uint8 (1, 3, T, H, W), its frames in a second, the file it comes from and the prompt of its record."""

    pixels: Tensor
    rate: float
    input: SourceFile
    prompt: str | None


def read(path: Path, model: Model, size: tuple[int, int] | None, rate: float | None) -> Read:
    """A clip or a picture, which is a clip of one frame.

    Args:
        path: MP4, MOV, WebM, MKV or GIF; a picture; or a folder of PNG frames, in the order of their names.
        model: that works on it.
        size: height and width that its centre is brought to; None: its own.
        rate: frames in a second that it is brought to, each frame the one closest in time; None: its own.

    Raises:
        DataError: it cannot be read, or its rate varies and none was given.
        RecipeError: its size is none that the model takes; the nearest is named.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir() or path.suffix.lower() in PICTURES:
        files = inputs.list_inputs(path)
        _refuse_animated(files[0])
        frames = [inputs.open_input(inputs.PICTURE, file, model.shape[0]) for file in files]
        if len({one.content.shape for one in frames}) > 1:
            raise DataError(f"{path}: frames of several sizes; a video has one")
        pixels, found = torch.stack([one.content for one in frames], dim=1), RATE if rate is None else rate
        named, told = (_of_folder(path, frames) if path.is_dir() else frames[0].input), files[0]
    else:
        pixels, found = decoded(path, rate)
        named, told = SourceFile(path.name, sha256(path)), path
    pixels = pixels if size is None else sized(pixels, size)
    try:
        check_size(model, tuple(pixels.shape[2:]))
    except RecipeError as problem:
        raise RecipeError(f"{path}: {problem}; --size WIDTHxHEIGHT brings it to one") from problem
    return Read(pixels[None], found, named, _prompt(told))


def _of_folder(path: Path, frames: Sequence[inputs.LoadedInput]) -> SourceFile:
    """A folder of frames as an input: its name, and a hash of the hashes of its files."""
    return SourceFile(path.resolve().name, _digest(frame.input.sha256 for frame in frames))


def _digest(hashes: Iterable[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def find(wanted: SourceFile, places: Sequence[Path]) -> Path:
    """The file or the folder of frames that metadata name, recognised by its content.

    Args:
        wanted: Its name and hash.
        places: Files and folders where it may lie.

    Raises:
        DataError: It is not there.
    """
    near = [inner for place in places if place.is_dir() for inner in (place, *sorted(place.iterdir()))]
    for path in near:
        if path.is_dir() and path.resolve().name == wanted.name:
            with suppress(DataError):
                if _digest(map(sha256, inputs.list_inputs(path))) == wanted.sha256:
                    return path
    return inputs.find_inputs([wanted], places)[0]


def _refuse_animated(path: Path) -> None:
    """Raises DataError: a picture of several frames, of which the first alone would be seen."""
    with path.open("rb") as file:
        count = header(open_image(file, inputs.MAX_PIXELS)).frames
    if count > 1:
        raise DataError(
            f"{path}: an image of {count} frames; videos are read from MP4, MOV, WebM, MKV, GIF or a folder of PNG: "
            "convert it to one of them"
        )


def sized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of frames uint8 (C, T, H, W) in another height and width."""
    if tuple(frames.shape[2:]) == size:
        return frames
    scale = max(size[0] / frames.shape[2], size[1] / frames.shape[3])
    tall, wide = (max(one, round(side * scale)) for one, side in zip(size, frames.shape[2:], strict=True))
    large = functional.interpolate(
        frames.transpose(0, 1).float(), (tall, wide), mode="bicubic", align_corners=False, antialias=True
    )
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    part = large[:, :, top : top + size[0], left : left + size[1]]
    return part.round().clamp(0, 255).to(torch.uint8).transpose(0, 1)


def check_rates(every: Sequence[Read], paths: Sequence[Path]) -> float:
    """The frames in a second of several clips, pictures aside.

    Raises:
        RecipeError: they differ.
    """
    rates = {one.rate: path for one, path in zip(every, paths, strict=True) if one.pixels.shape[2] > 1}
    if len(rates) > 1:
        told = ", ".join(f"{path} {rate:g}" for rate, path in rates.items())
        raise RecipeError(f"videos of different frame rates ({told}): convert them to one with --fps {min(rates):g}")
    return next(iter(rates), RATE)


def decoded(path: Path, rate: float | None) -> tuple[Tensor, float]:
    """Frames uint8 (3, T, H, W) of a file, and how many there are in a second.

    Raises:
        DataError: it cannot be read, or its rate varies and none was given.
    """
    limits = VideoLimits()
    decoder = VideoDecoder()
    try:
        film = decoder.look(path, limits)
        if film.rate is None and rate is None:
            raise DataError("its frame rate varies; give --fps, such as --fps 8: each frame is the one closest in time")
        rule = "none" if rate is None else "nearest"
        config = VideoFolderConfig(path=str(path), size="native", frames=1, fps=rate, resample=rule, stride=1)
        planned = plan_segments(film, config)
        if planned.refused or not planned.pieces:
            raise DataError(planned.refused or planned.reason)
        whole = planned.pieces[0]._replace(times=tuple(piece.times[0] for piece in planned.pieces))
        pixels, _ = decoder.read(path, film, frame_selection(film, whole, config.rule), limits)
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from problem
    finally:
        decoder.close()
    return apply_orientation(pixels, film.turn), whole.rate


def _prompt(path: Path) -> str | None:
    """The prompt that a file of ours was made by, None where there is none."""
    try:
        given = read_facts(path).get("given", {})
    except DataError:
        return None
    prompt = given.get("prompt") if isinstance(given, dict) else None
    return prompt if isinstance(prompt, str) else None
