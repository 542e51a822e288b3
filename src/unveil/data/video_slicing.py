"""Segments of a video file by the settings of its folder, or the reason why it cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from unveil.data.folder_index import check_mix, check_shares, check_size, colour
from unveil.data.image_decoding import DecodeOptions
from unveil.data.image_validation import resize_actions
from unveil.errors import RecipeError
from unveil.io.video.frame_timing import Rule as TimeRule
from unveil.io.video.frame_timing import frame_count, resample_frames, same_rate
from unveil.io.video.reader import VideoInfo, VideoLimits

_RULES = "resample: nearest (the frame closest in time) or resample: shown (the one a player shows), with fps"


@dataclass(frozen=True)
class VideoFolderConfig:
    """A folder of MP4, MOV, WebM, MKV or GIF files: videos of `frames` frames, uint8 (3, T, H, W).

    The folder is laid out as that of images: metadata.jsonl or metadata.csv, a sub-folder per class, or plain; in
    each, name.txt beside name.mp4 is its caption.

    Attributes:
        size: "native" keeps the video's own; a number is used as `fit` says.
        fit: crop, pad, stretch to size x size; aspect keeps the aspect ratio and has size x size pixels at most.
        size_multiple: sides of native and aspect videos become multiples of it, by a crop around the centre.
        frames: Frames of a video.
        stride: Frames from the start of one piece of a file to that of the next; None takes one piece, from the file's
            beginning.
        too_short: what happens to files with fewer frames: drop, or keep with as many as 1 + k temporal_multiple.
        fps: Frames per second; None takes each file's own.
        resample: how a file of another rate, or a variable one, is brought to fps: none refuses it; nearest and shown
            are the rules of `io.video.frame_timing`.
        undersized: what happens to videos with fewer pixels than `size`: enlarge or drop.
        max_pixels: Pixels of a frame; a larger one is refused.
        max_frames, max_seconds: Length of a file; a longer one is refused.
        background, decode, labels, classes: as for images.
        caption_column, label_column, synthetic_column, captions_file, synthetic_prob: as for images.
        max_bad, val_fraction: as for images.
    """

    path: str
    size: int | Literal["native"]
    frames: int
    fps: float | None = None
    resample: Literal["none", "nearest", "shown"] = "none"
    stride: int | None = None
    too_short: Literal["drop", "keep"] = "drop"
    temporal_multiple: int = 1
    fit: Literal["crop", "pad", "stretch", "aspect"] = "crop"
    size_multiple: int = 1
    undersized: Literal["enlarge", "drop"] = "enlarge"
    decode: Literal["exact", "fast"] = "exact"
    background: str = "white"
    labels: Literal["auto", "folders", "none"] = "auto"
    classes: tuple[str, ...] | None = None
    caption_column: str = "text"
    label_column: str = "label"
    synthetic_column: str = "caption"
    captions_file: str | None = None
    synthetic_prob: float = 0.95
    max_pixels: int = 8_294_400
    max_frames: int = 20_000
    max_seconds: float = 600.0
    max_bad: float = 0.01
    val_fraction: float = 0.05
    kind: Literal["video-folder"] = "video-folder"

    def __post_init__(self) -> None:
        if self.size != "native":
            check_size(self.size)
        for name in ("frames", "temporal_multiple", "size_multiple", "max_pixels", "max_frames"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.stride is not None and self.stride < 1:
            raise RecipeError(f"stride {self.stride}: must be at least 1, or left out for one piece of each file")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise RecipeError(f"fps {self.fps}: must be above 0, and at most 1000")
        if self.resample != "none" and self.fps is None:
            raise RecipeError(f"resample {self.resample}: needs fps, the rate to which videos are brought")
        if self.size_multiple > 1 and self.size != "native" and self.fit != "aspect":
            raise RecipeError(
                f"size_multiple {self.size_multiple}: is for size: native and fit: aspect; make size a multiple"
            )
        if not self.max_seconds > 0:
            raise RecipeError(f"max_seconds {self.max_seconds}: must be above 0")
        check_shares(max_bad=self.max_bad, val_fraction=self.val_fraction)
        check_mix(self.synthetic_prob)
        colour(self.background)

    @property
    def rule(self) -> DecodeOptions:
        """Options of decoding and resizing each frame."""
        size = None if self.size == "native" else self.size
        fit = "crop" if size is None else self.fit
        return DecodeOptions(size, 3, fit, self.decode, self.background, self.max_pixels, self.size_multiple)

    @property
    def limits(self) -> VideoLimits:
        """Limits of a file."""
        return VideoLimits(self.max_pixels, self.max_frames, self.max_seconds)


class VideoSegment(NamedTuple):
    """A part of a file: its times in seconds after the first frame, at `rate` frames per second."""

    times: tuple[float, ...]
    rate: float
    rule: TimeRule = "nearest"


@dataclass(frozen=True)
class SegmentPlan:
    """Segments and changes of one file.

    Attributes:
        pieces: Segments in order.
        refused: Reason why it cannot be used with these settings; then there are no segments.
        actions: names of what is done to it: drop, retime, cut, turn, and those of images.
        reason: the same in words.
    """

    pieces: tuple[VideoSegment, ...] = ()
    refused: str | None = None
    actions: tuple[str, ...] = ()
    reason: str = ""


def plan_segments(film: VideoInfo, config: VideoFolderConfig) -> SegmentPlan:
    """Plan the segments of a file by the settings."""
    if film.rate is None and config.resample == "none":
        return SegmentPlan(refused=f"{_varying(film)} and no rule for it; choose {_RULES}")
    rate = config.fps or film.mean_rate
    same = film.rate is not None and same_rate(film.rate, rate, film.frames, film.tick)
    if not same and config.resample == "none":
        return SegmentPlan(refused=f"{film.mean_rate:.4g} frames in a second, and fps is {rate:g}; choose {_RULES}")
    total = film.frames if same else frame_count(film.seconds, rate)
    shown = f"{film.shown[0]} x {film.shown[1]}, {film.frames} frames"
    actions, parts = resize_actions(*film.shown, config.rule)
    if "enlarge" in actions and config.undersized == "drop":
        return SegmentPlan(actions=("drop",), reason=f"{shown}: smaller than {config.size} pixels (undersized: drop)")
    if total < config.frames and config.too_short == "drop":
        at = "" if same else f" ({total} at {rate:g} fps)"
        return SegmentPlan(
            actions=("drop",), reason=f"{shown}{at}: fewer than frames: {config.frames} (too_short: drop)"
        )
    length = (
        config.frames
        if total >= config.frames
        else 1 + (total - 1) // config.temporal_multiple * config.temporal_multiple
    )
    starts = range(0, total - length + 1, config.stride or total)
    pace = film.rate if same and film.rate is not None else rate  # a file's own frames are found by its own times
    every = [index / pace for index in range(total)]
    done, reasons = _in_time(film, config, every, rate) if not same else ([], [])
    used = len({start + index for start in starts for index in range(length)})
    if used < total:
        done, reasons = [*done, "cut"], [*reasons, f"{used} of {total} frames used (frames: {config.frames})"]
    if film.turn > 1:
        done, reasons = [*done, "turn"], [*reasons, "turned upright by its display matrix"]
    if film.wide != 1:
        done, reasons = [*done, "square"], [*reasons, f"pixels {film.wide:.3g} times as wide as high made square"]
    rule = "nearest" if same or config.resample == "none" else config.resample
    pieces = tuple(VideoSegment(tuple(every[start : start + length]), rate, rule) for start in starts)
    return SegmentPlan(pieces, None, (*actions, *done), f"{shown}: {', '.join([*parts, *reasons])}")


def _in_time(
    film: VideoInfo, config: VideoFolderConfig, every: list[float], rate: float
) -> tuple[list[str], list[str]]:
    """Return the names and the description of a change of rate, with the numbers of dropped and repeated frames."""
    assert config.resample != "none"
    chosen = list(resample_frames(zip(film.moments(), range(film.frames), strict=True), every, config.resample))
    left, again = film.frames - len(set(chosen)), len(chosen) - len(set(chosen))
    before = _varying(film) if film.rate is None else f"{film.rate:.4g} fps"
    counts = [f"{left} of {film.frames} frames left out"] * (left > 0) + [f"{again} repeated"] * (again > 0)
    return ["retime"], [", ".join([f"{before} to {rate:g} fps ({config.resample})", *counts])]


def _varying(film: VideoInfo) -> str:
    gaps = [1000 * (later - earlier) for earlier, later in zip(film.times, film.times[1:], strict=False)]
    return f"variable frame rate (frames {min(gaps):.3g} to {max(gaps):.3g} ms apart)"
