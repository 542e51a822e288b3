"""A folder of videos as a data set: its settings, the check of every file, and items decoded on demand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unveil.data.folder_index import (
    IMAGE_SUFFIXES,
    OTHER_IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    FileInspector,
    IndexEntry,
    MediaType,
    Progress,
    check_mix,
    check_shares,
    check_size,
    colour,
    index_folder,
    inspect_files,
)
from unveil.data.image_decoding import DecodeOptions, fit_box, safe_join
from unveil.data.image_folder import complete_report, enforce_max_bad, held_out_files, pick_caption, resize_actions
from unveil.data.registry import data_kind
from unveil.data.report import FileAction, FolderReport
from unveil.data.tensor_dataset import Split
from unveil.errors import DataError, RecipeError
from unveil.io.optional_deps import import_extra
from unveil.io.video.containers import HEAD, container_of
from unveil.io.video.frame_timing import Rule as TimeRule
from unveil.io.video.frame_timing import frame_count, resample_frames, same_rate
from unveil.io.video.reader import FrameSelection, VideoInfo, VideoLimits, VideoReader
from unveil.io.video.scene_changes import split_at_cuts
from unveil.types import Item

_RULES = "resample: nearest (the frame closest in time) or resample: shown (the one a player shows), with fps"


@dataclass(frozen=True)
class VideoFolderConfig:
    """A folder of MP4, MOV, WebM, MKV or GIF files: videos of `frames` frames, uint8 (3, T, H, W).

    The folder is laid out as that of images: with a file that lists them, a sub-folder per class, or plain; in
    each, name.txt beside name.mp4 is its caption.

    Attributes:
        size: "native" keeps the video's own; a number is used as `fit` says.
        fit: Crop, pad, stretch to size x size; aspect keeps the aspect ratio and has size x size pixels at most.
        size_multiple: Sides of native and aspect videos become multiples of it, by a crop around the centre.
        frames: Frames of a video.
        pieces: Which pieces of a file are used: all, or only the first.
        stride: Frames from the start of one piece of a scene to that of the next; None takes them side by side, with a
            last one that ends with the scene, so that all of it is used.
        scenes: A piece never goes over a scene change (cut), or may (join).
        too_short: Treatment of files with fewer frames: drop, or keep with as many as 1 + k
            temporal_multiple.
        fps: Frames per second; None takes each file's own.
        resample: Conversion of a file of another or a variable rate to fps: none refuses it;
            nearest and shown are the rules of `io.video.frame_timing`.
        undersized: Treatment of videos with fewer pixels than `size`: enlarge or drop.
        max_pixels: Pixels of a frame; a larger one is refused.
        max_frames, max_seconds: Length of a file; a longer one is refused.
        background, decode, labels, classes: As for images.
        metadata_file, file_column, caption_column, label_column, synthetic_column: As for images.
        captions_file, synthetic_prob: As for images.
        max_bad, val_fraction: As for images.
    """

    path: str
    size: int | Literal["native"]
    frames: int
    fps: float | None = None
    resample: Literal["none", "nearest", "shown"] = "none"
    pieces: Literal["all", "first"] = "all"
    stride: int | None = None
    scenes: Literal["cut", "join"] = "cut"
    too_short: Literal["drop", "keep"] = "drop"
    temporal_multiple: int = 1
    fit: Literal["crop", "pad", "stretch", "aspect"] = "crop"
    size_multiple: int = 1
    undersized: Literal["enlarge", "drop"] = "enlarge"
    decode: Literal["exact", "fast"] = "exact"
    background: str = "white"
    labels: Literal["auto", "folders", "none"] = "auto"
    classes: tuple[str, ...] | None = None
    metadata_file: str | None = None
    file_column: str = "file_name"
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
            raise RecipeError(f"stride {self.stride}: must be at least 1, or left out to use the whole file")
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
        actions: Names of what is done to it: drop, retime, scenes, cut, turn, and those of images.
        reason: The same in words.
    """

    pieces: tuple[VideoSegment, ...] = ()
    refused: str | None = None
    actions: tuple[str, ...] = ()
    reason: str = ""


def plan_segments(video: VideoInfo, config: VideoFolderConfig) -> SegmentPlan:
    """Plan the segments of a file by the settings."""
    if video.rate is None and config.resample == "none":
        return SegmentPlan(refused=f"{_varying(video)} and no rule for it; choose {_RULES}")
    rate = config.fps or video.mean_rate
    same = video.rate is not None and same_rate(video.rate, rate, video.frames, video.tick)
    if not same and config.resample == "none":
        return SegmentPlan(refused=f"{video.mean_rate:.4g} frames in a second, and fps is {rate:g}; choose {_RULES}")
    total = video.frames if same else frame_count(video.seconds, rate)
    shown = f"{video.square_pixel_size[0]} x {video.square_pixel_size[1]}, {video.frames} frames"
    actions, parts = resize_actions(*video.square_pixel_size, config.rule)
    if "enlarge" in actions and config.undersized == "drop":
        return SegmentPlan(actions=("drop",), reason=f"{shown}: smaller than {config.size} pixels (undersized: drop)")
    if total < config.frames and config.too_short == "drop":
        at = "" if same else f" ({total} at {rate:g} fps)"
        return SegmentPlan(
            actions=("drop",), reason=f"{shown}{at}: fewer than frames: {config.frames} (too_short: drop)"
        )
    pace = video.rate if same and video.rate is not None else rate  # a file's own frames are found by its own times
    every = [index / pace for index in range(total)]
    chosen = list(range(total)) if same else _frames_at(video, config, every)
    scenes = split_at_cuts(chosen, video.cuts) if config.scenes == "cut" else [range(total)]
    windows = [window for scene in scenes for window in _windows(scene, config)]
    if not windows:
        return SegmentPlan(
            actions=("drop",),
            reason=f"{shown}: {len(scenes)} scenes, each of fewer than frames: {config.frames} (too_short: drop)",
        )
    windows = windows if config.pieces == "all" else windows[:1]
    done, reasons = _in_time(video, config, chosen, rate) if not same else ([], [])
    if len(scenes) > 1:
        done, reasons = [*done, "scenes"], [*reasons, f"cut at {len(scenes) - 1} scene changes"]
    used = len({index for window in windows for index in window})
    if used < total:
        done, reasons = [*done, "cut"], [*reasons, f"{used} of {total} frames used (frames: {config.frames})"]
    if video.orientation > 1:
        done, reasons = [*done, "turn"], [*reasons, "turned upright by its display matrix"]
    if video.pixel_aspect != 1:
        done, reasons = (
            [*done, "square"],
            [*reasons, f"pixels {video.pixel_aspect:.3g} times as wide as high made square"],
        )
    rule = "nearest" if same or config.resample == "none" else config.resample
    pieces = tuple(VideoSegment(tuple(every[window.start : window.stop]), rate, rule) for window in windows)
    return SegmentPlan(pieces, None, (*actions, *done), f"{shown}: {', '.join([*parts, *reasons])}")


def _windows(scene: range, config: VideoFolderConfig) -> list[range]:
    """The pieces of a scene, as ranges of its frames; none where it is too short."""
    length = config.frames
    if len(scene) < length:
        if config.too_short == "drop":
            return []
        length = 1 + (len(scene) - 1) // config.temporal_multiple * config.temporal_multiple
    last = scene.stop - length
    starts = list(range(scene.start, last + 1, config.stride or length))
    if config.stride is None and starts[-1] < last:
        starts.append(last)
    return [range(start, start + length) for start in starts]


def _frames_at(video: VideoInfo, config: VideoFolderConfig, every: list[float]) -> list[int]:
    """The frame that is used at each time, at another rate than the file's."""
    assert config.resample != "none"
    return list(resample_frames(zip(video.moments(), range(video.frames), strict=True), every, config.resample))


def _in_time(
    video: VideoInfo, config: VideoFolderConfig, chosen: list[int], rate: float
) -> tuple[list[str], list[str]]:
    """Return the names and the description of a change of rate, with the numbers of dropped and repeated frames."""
    left, again = video.frames - len(set(chosen)), len(chosen) - len(set(chosen))
    before = _varying(video) if video.rate is None else f"{video.rate:.4g} fps"
    counts = [f"{left} of {video.frames} frames left out"] * (left > 0) + [f"{again} repeated"] * (again > 0)
    return ["retime"], [", ".join([f"{before} to {rate:g} fps ({config.resample})", *counts])]


def _varying(video: VideoInfo) -> str:
    gaps = [1000 * (later - earlier) for earlier, later in zip(video.times, video.times[1:], strict=False)]
    return f"variable frame rate (frames {min(gaps):.3g} to {max(gaps):.3g} ms apart)"


SUFFIXES = frozenset(VIDEO_SUFFIXES - {".gif"})
VIDEO = MediaType(
    "video",
    "MP4, MOV, WebM, MKV or GIF",
    frozenset(VIDEO_SUFFIXES),
    frozenset({".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".ogv", ".3gp", ".asf"}),
    container_of,
    HEAD,
)


@dataclass
class VideoFolderReport(FolderReport):
    """The videos of a folder and everything that happens to them.

    Beside what a report of images has: videos and plans: of every usable file. rates: frames per second, as text,
    -> how many files. remarks: path and reason of what is used as it is though it should
    be known, such as brightness that is not mapped.
    """

    noun: ClassVar[str] = "video"
    warned: ClassVar[dict[str, str]] = FolderReport.warned | {"retime": "brought to another rate", "cut": "cut in time"}
    titles: ClassVar[dict[str, str]] = FolderReport.titles | {
        "retime": "brought to another rate",
        "scenes": "cut at scene changes",
        "cut": "not used whole",
        "turn": "turned upright",
        "square": "pixels made square",
    }

    videos: dict[str, VideoInfo] = field(default_factory=dict)
    plans: dict[str, SegmentPlan] = field(default_factory=dict)
    rates: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    remarks: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pieces(self) -> int:
        """Number of videos that training sees."""
        return sum(len(self.plans[entry.path].pieces) for entry in self.entries)

    def kinds(self) -> dict[str, dict[str, int]]:
        """Return the number of files by container, codec and rate, and totals of the usable ones."""
        videos = [self.videos[path] for path in dict.fromkeys(entry.path for entry in self.entries)]
        seconds = sum(video.seconds + 1 / video.mean_rate for video in videos)
        totals = {"pieces": self.pieces, "frames": sum(video.frames for video in videos), "seconds": round(seconds)}
        return {
            "formats": dict(self.formats),
            "codecs": dict(self.codecs),
            "fps": dict(self.rates),
            "in all": totals,
        }

    def notes(self) -> dict[str, Any]:
        """Return notes on files beyond their changes, for JSON."""
        return {"notes": [{"path": path, "reason": reason} for path, reason in self.remarks]}

    def noted(self) -> dict[str, list[tuple[str, str]]]:
        """The same for a person."""
        return {"to be known": self.remarks}


def check_videos(config: VideoFolderConfig, progress: Progress | None = None) -> VideoFolderReport:
    """Decodes every video of a folder and reports what training would do with it. Changes nothing there.

    The result is kept in the cache folder until a file, or a limit, changes; results with unreadable files are not.

    Args:
        config: The folder and how its videos are used.
        progress: Called as progress(done, total), now and then.

    Raises:
        DataError: No such folder, no video in it, bad metadata.
        RecipeError: What decodes videos is not installed.
    """
    versions = import_extra("av", "a folder of clips", "video").__version__
    index = index_folder(config, VIDEO)
    decoders = threading.local()

    def view(file: IO[bytes]) -> VideoInfo:
        if not hasattr(decoders, "decoder"):
            decoders.decoder = VideoReader()
        return decoders.decoder.probe(Path(file.name), config.limits)

    viewer = FileInspector(f"clips with scenes {versions}\0{config.limits}", view, _again)
    seen = inspect_files(index, viewer, progress)
    report = VideoFolderReport(index.root, index.layout, index.classes, config.size)
    for path, look in seen.items():
        if look.header is not None:
            _add(report, path, look.header, config)
    return complete_report(report, index, seen)


def check_videos_or_raise(
    config: VideoFolderConfig, max_bad: float | None = None, progress: Progress | None = None
) -> VideoFolderReport:
    """The report of a folder that may be trained on; what happens to its videos is logged as a warning.

    Args:
        config: The folder.
        max_bad: The share of bad files above which nothing is trained on; None takes the config's.
        progress: Progress, as for `check_videos`.

    Raises:
        DataError: More than max_bad of the files are bad, with the list; or none is left; or as `check_videos`.
    """
    return enforce_max_bad(check_videos(config, progress), config.path, config.max_bad if max_bad is None else max_bad)


def has_videos(folder: Path) -> bool:
    """Return True if a folder holds a video, or GIFs and no other images; by names only."""
    suffixes = {path.suffix.lower() for path in folder.rglob("*") if not path.name.startswith(".")}
    return bool(suffixes & SUFFIXES) or (
        ".gif" in suffixes and not suffixes & (IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES - {".gif"})
    )


def _again(stored: Sequence[Any]) -> VideoInfo:
    """The facts of a file from what JSON keeps of them."""
    video = VideoInfo(*stored)
    return video._replace(times=tuple(video.times), notes=tuple(video.notes), cuts=tuple(video.cuts))


def _add(report: VideoFolderReport, path: str, video: VideoInfo, config: VideoFolderConfig) -> None:
    planned = plan_segments(video, config)
    report.formats[video.container] += 1
    report.codecs[video.codec] += 1
    report.rates["variable" if video.rate is None else f"{video.rate:.5g}"] += 1
    width, height = video.square_pixel_size
    report.sizes[(width, height) if video.orientation < 5 else (height, width)] += 1
    report.videos[path], report.plans[path] = video, planned
    report.remarks += [(path, note) for note in video.notes]
    if video.transparent:
        report.remarks.append((path, f"transparent: laid on {config.background}"))
    if planned.refused is not None:
        report.refused.append((path, planned.refused))
    elif planned.actions:
        report.changes.append(FileAction(path, planned.actions, planned.reason))


class VideoItem(NamedTuple):
    """One item: a piece of a file, and what is known about the file."""

    entry: IndexEntry
    video: VideoInfo
    piece: VideoSegment


@data_kind("video-folder", VideoFolderConfig, has_images=False)
class VideoDataset(Dataset[Item]):
    """The checked videos of one part: pixels uint8 (3, T, H, W), with label and text where they are known.

    Items also have "fps", frames per second; "source_fps", those of its file, on average
    where they vary; "times", float64 (T,), the time in its file of every frame, in seconds after the first.

    A file belongs to the held-out part by a hash of its content, with all its pieces.

    Raises:
        DataError: See `check_videos_or_raise`; or the part would be empty.
    """

    def __init__(
        self, config: VideoFolderConfig, part: Split = "train", report: VideoFolderReport | None = None
    ) -> None:
        self.report = check_videos_or_raise(config) if report is None else report
        self.classes = self.report.classes
        self.root = self.report.root
        self.config = config
        # held-out videos are the same whichever way training reads
        self.rule = replace(config.rule, decode="exact") if part == "held-out" else config.rule
        self.share, self.held_out = config.synthetic_prob, part == "held-out"
        chosen = held_out_files(self.report.digests, config.val_fraction)
        self.entries = [
            VideoItem(entry, self.report.videos[entry.path], piece)
            for entry, out in zip(self.report.entries, chosen, strict=True)
            for piece in self.report.plans[entry.path].pieces
            if out == (part == "held-out")
        ]
        self.captioned = any((indexed.text, indexed.synthetic) != (None, None) for indexed in self.report.entries)
        self._decoder = VideoReader()
        if not self.entries:
            raise DataError(
                f"{config.path}: no video for the {part} part of {len(chosen)} (val_fraction {config.val_fraction:g}); "
                "use more videos, or another val_fraction"
            )

    def __len__(self) -> int:
        """Number of videos: segments of files."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        """One video and what is known about it.

        Raises:
            DataError: The file has changed or gone since it was checked.
        """
        entry, video, piece = self.entries[index]
        try:
            path = safe_join(self.root, entry.path)
            raw, times = self._decoder.read(path, video, frame_selection(video, piece, self.rule), self.config.limits)
        except DataError as error:
            raise DataError(f"{self.root / entry.path}: {error}") from error
        pixels = apply_orientation(letterbox(raw, self.rule), video.orientation)
        item: Item = {
            "pixels": pixels,
            "fps": piece.rate,
            "source_fps": video.mean_rate,
            "times": torch.tensor(times, dtype=torch.float64),
        }
        return item | self.facts(index)

    def sizes(self) -> Tensor:
        """Frames, height and width of every video, of what is known without reading it: int64 (N, 3)."""
        return torch.tensor([(len(scene.piece.times), *_shown(scene.video, self.rule)) for scene in self.entries])

    def explain_missing(self, key: str) -> str | None:
        """Return why the items lack a caption or a label, as `FolderReport.explain_missing`."""
        return self.report.explain_missing(key)

    def facts(self, index: int) -> Item:
        """Return a video's annotations, without its pixels."""
        entry, item = self.entries[index].entry, Item()
        if entry.label is not None:
            item["label"] = entry.label
        if self.captioned:
            item |= pick_caption(entry, self.share, fixed=self.held_out)
        return item


def frame_selection(video: VideoInfo, piece: VideoSegment, rule: DecodeOptions) -> FrameSelection:
    """Return the decoder's selection of a segment; its box is in stored pixels, before they are made square."""
    (left, top, right, bottom), size = fit_box(*video.square_pixel_size, rule)
    wide = video.width / video.square_pixel_size[0]
    gap = 2.0 if rule.decode == "fast" else None
    red, green, blue = colour(rule.background)[:3]
    return FrameSelection(
        piece.times, piece.rule, (left * wide, top, right * wide, bottom), size, gap, (red, green, blue)
    )


def _shown(video: VideoInfo, rule: DecodeOptions) -> tuple[int, int]:
    """Height and width of a video's frames as an item has them, see `letterbox` and `apply_orientation`."""
    wide, high = fit_box(*video.square_pixel_size, rule)[1]
    if rule.fit == "pad" and rule.size is not None:
        wide = high = rule.size
    return (wide, high) if video.orientation >= 5 else (high, wide)


def letterbox(pixels: Tensor, rule: DecodeOptions) -> Tensor:
    """uint8 (3, T, H, W) in the middle of size x size of the background, where the rule pads."""
    height, width = pixels.shape[2:]
    if rule.fit != "pad" or rule.size is None or (height, width) == (rule.size, rule.size):
        return pixels
    ground = torch.tensor(colour(rule.background)[:3], dtype=torch.uint8).reshape(3, 1, 1, 1)
    page = ground.repeat(1, pixels.shape[1], rule.size, rule.size)
    top, left = (rule.size - height) // 2, (rule.size - width) // 2
    page[:, :, top : top + height, left : left + width] = pixels
    return page


def apply_orientation(pixels: Tensor, turn: int) -> Tensor:
    """Frames (..., H, W) as they are shown, from an orientation of EXIF, 1 to 8."""
    if turn >= 5:
        pixels = pixels.transpose(-1, -2)
    flips = [axis for axis, turns in ((-1, (2, 3, 6, 7)), (-2, (3, 4, 7, 8))) if turn in turns]
    return pixels.flip(flips).contiguous()
