"""Input videos and images of video tasks, read whole and converted to one size and frame rate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unveil.data.image_decoding import open_image, read_header
from unveil.data.video_folder import VideoFolderConfig, apply_orientation, frame_selection, plan_segments
from unveil.errors import DataError, RecipeError
from unveil.generation import inputs
from unveil.generation.generate import SourceFile
from unveil.generation.image_output import read_generation_metadata
from unveil.io import staging
from unveil.io.files import sha256
from unveil.io.video.reader import VideoLimits, VideoReader, given_or_new
from unveil.model import Model
from unveil.model.model import FPS
from unveil.model.shapes import check_size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
RATE = 8.0  # frame rate of videos of a model that states none


class InputVideo(NamedTuple):
    """An input video.

    Attributes:
        pixels: uint8 (1, 3, T, H, W).
        rate: Frames per second.
        input: Name and hash of the file.
        prompt: Prompt in its metadata, if it has some.
        file_rate: Frames per second of the file, on average; None for images.
    """

    pixels: Tensor
    rate: float
    input: SourceFile
    prompt: str | None
    file_rate: float | None = None


def rate_of(model: Model) -> float:
    """Frame rate of the model's videos: that of its training, or `RATE` if it is unknown."""
    return RATE if model.fps is None else model.fps


def takes_rate(model: Model) -> bool:
    """Return True if the network is conditioned on the frame rate."""
    return FPS in model.conditioners


def rate_condition(model: Model, rate: float) -> dict[str, list[float]]:
    """Condition on the frame rate, for a network that takes it."""
    return {FPS: [rate]} if takes_rate(model) else {}


def load_video(path: Path, model: Model, size: tuple[int, int] | None, rate: float | None) -> InputVideo:
    """Read a video, or an image as a video of one frame.

    Args:
        path: MP4, MOV, WebM, MKV or GIF; an image; or a folder of PNG frames, in the order of their names.
        model: Model that processes it.
        size: Height and width that its centre is resized to; None: its own.
        rate: Frame rate that it is resampled to, with the frames closest in time; None: its own.

    Raises:
        DataError: It cannot be read, or its frame rate varies and none was given.
        RecipeError: The model does not take its size; the nearest is named.
    """
    staging.recover(path)
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        files = inputs.list_inputs(path)
        _refuse_animated(files[0])
        frames = [inputs.open_input(inputs.IMAGE, file, model.shape[0]) for file in files]
        if len({frame.content.shape for frame in frames}) > 1:
            raise DataError(f"{path}: frames of several sizes; a video has one")
        pixels, file_rate = torch.stack([frame.content for frame in frames], dim=1), None
        frame_rate = rate_of(model) if rate is None else rate
        source = _of_folder(path, frames) if path.is_dir() else frames[0].input
        prompt = _prompt(files[0])
    else:
        with given_or_new(None) as decoder:  # a child process starts in 0.2 s
            pixels, frame_rate, file_rate = decode_video(path, rate, decoder)
            prompt = _prompt(path, decoder)
        source = SourceFile(path.name, sha256(path))
    pixels = pixels if size is None else center_crop_resize(pixels, size)
    try:
        check_size(model, tuple(pixels.shape[2:]))
    except RecipeError as problem:
        raise RecipeError(f"{path}: {problem}; --size WIDTHxHEIGHT resizes it") from problem
    return InputVideo(pixels[None], frame_rate, source, prompt, file_rate)


def _of_folder(path: Path, frames: Sequence[inputs.LoadedInput]) -> SourceFile:
    """Return a folder of frames as an input: its name, and a hash of the hashes of its files."""
    return SourceFile(path.resolve().name, _digest(frame.input.sha256 for frame in frames))


def _digest(hashes: Iterable[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def find_video(wanted: SourceFile, places: Sequence[Path]) -> Path:
    """Return the path of the file or the folder of frames that metadata name, recognised by its content.

    Args:
        wanted: Its name and hash.
        places: Files and folders that may contain it.

    Raises:
        DataError: It does not exist.
    """
    near = [inner for place in places if place.is_dir() for inner in (place, *sorted(place.iterdir()))]
    for path in near:
        if path.is_dir() and path.resolve().name == wanted.name:
            with suppress(DataError):
                if _digest(map(sha256, inputs.list_inputs(path))) == wanted.sha256:
                    return path
    return inputs.find_inputs([wanted], places)[0]


def _refuse_animated(path: Path) -> None:
    """Raise DataError for an image of several frames, of which only the first would be read."""
    with path.open("rb") as file:
        count = read_header(open_image(file, inputs.MAX_PIXELS)).frames
    if count > 1:
        raise DataError(
            f"{path}: an image of {count} frames; videos are read from MP4, MOV, WebM, MKV, GIF or a folder of PNG: "
            "convert it to one of them"
        )


def center_crop_resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the centre of frames uint8 (C, T, H, W) at another height and width."""
    if tuple(frames.shape[2:]) == size:
        return frames
    scale = max(size[0] / frames.shape[2], size[1] / frames.shape[3])
    tall, wide = (max(least, round(side * scale)) for least, side in zip(size, frames.shape[2:], strict=True))
    large = functional.interpolate(
        frames.transpose(0, 1).float(), (tall, wide), mode="bicubic", align_corners=False, antialias=True
    )
    top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
    part = large[:, :, top : top + size[0], left : left + size[1]]
    return part.round().clamp(0, 255).to(torch.uint8).transpose(0, 1)


def check_same_fps(videos: Sequence[InputVideo], paths: Sequence[Path], otherwise: float) -> float:
    """Return the common frame rate of several videos, `otherwise` if they are images, which have none.

    Raises:
        RecipeError: The frame rates differ.
    """
    rates = {video.rate: path for video, path in zip(videos, paths, strict=True) if video.pixels.shape[2] > 1}
    if len(rates) > 1:
        listed = ", ".join(f"{path} {rate:g}" for rate, path in rates.items())
        raise RecipeError(f"videos of different frame rates ({listed}): convert them to one with --fps {min(rates):g}")
    return next(iter(rates), otherwise)


def decode_video(path: Path, rate: float | None, decoder: VideoReader | None = None) -> tuple[Tensor, float, float]:
    """Return the frames uint8 (3, T, H, W) of a file, their frame rate, and that of the file, on average.

    Raises:
        DataError: It cannot be read, or its frame rate varies and none was given.
    """
    try:
        with given_or_new(decoder) as decoder:
            return _decode(path, rate, decoder)
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from problem


def _decode(path: Path, rate: float | None, decoder: VideoReader) -> tuple[Tensor, float, float]:
    limits = VideoLimits()
    info = decoder.probe(path, limits)
    if info.rate is None and rate is None:
        raise DataError("its frame rate varies; give --fps, such as --fps 8: each frame is the one closest in time")
    rule = "none" if rate is None else "nearest"
    config = VideoFolderConfig(path=str(path), size="native", frames=1, fps=rate, resample=rule, scenes="join")
    planned = plan_segments(info, config)
    if planned.refused or not planned.pieces:
        raise DataError(planned.refused or planned.reason)
    whole = planned.pieces[0]._replace(times=tuple(piece.times[0] for piece in planned.pieces))
    pixels, _ = decoder.read(path, info, frame_selection(info, whole, config.rule), limits)
    return apply_orientation(pixels, info.orientation), whole.rate, info.mean_rate


def _prompt(path: Path, decoder: VideoReader | None = None) -> str | None:
    """Return the prompt in a file's metadata, if it has some."""
    try:
        conditions = read_generation_metadata(path, decoder).get("given", {})
    except DataError:
        return None
    prompt = conditions.get("prompt") if isinstance(conditions, dict) else None
    return prompt if isinstance(prompt, str) else None
