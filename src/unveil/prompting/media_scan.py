"""Images and sampled frames of videos to be captioned, of a folder or of the playground, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.data.folder_index import IMAGE, FolderIndex, IndexEntry, has_classes, index_folder
from unveil.data.image_decoding import decode_native_size, open_image, safe_join
from unveil.data.metadata import METADATA
from unveil.data.video_folder import apply_orientation
from unveil.data.video_validation import VIDEO
from unveil.errors import DataError, RecipeError
from unveil.io.video.reader import FrameSelection, VideoDecoder, VideoLimits
from unveil.playground.dataset import Playground

MAX_SIDE = 512  # pixels of the longer side of what a captioner gets
MAX_PIXELS = 100_000_000  # of an image that is opened


@dataclass(frozen=True)
class ScanDefaults:
    """The settings of `index_folder` for a folder in which nothing is chosen; see `FolderConfig`."""

    path: str
    caption_column: str = "text"
    label_column: str = "label"
    synthetic_column: str = "caption"
    captions_file: str | None = None
    labels: Literal["auto", "folders", "none"] = "none"
    classes: tuple[str, ...] | None = None


class SampledFrames(NamedTuple):
    """Some frames, uint8 (3, T, H, W), and how many of them there are in a second; an image is one frame."""

    pixels: Tensor
    rate: float


@dataclass
class MediaListing:
    """Images and videos of a folder.

    images, clips: images and videos by name, with their captions. refused: path and reason of
    what promises an image or a video and cannot be opened. table: the name of its metadata, None without metadata.
    classes: the sub-folders that are the classes of files, by their names, where there is no metadata.
    """

    root: Path
    images: list[IndexEntry] = field(default_factory=list)
    clips: list[IndexEntry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    table: str | None = None
    classes: dict[str, str] = field(default_factory=dict)

    @property
    def entries(self) -> list[IndexEntry]:
        """Images and videos by name."""
        return sorted([*self.images, *self.clips], key=lambda entry: entry.path)


def scan_folder(folder: Path) -> MediaListing:
    """The images and videos of a folder.

    Raises:
        DataError: no such folder, neither an image nor a video in it, or metadata that cannot be read.
    """
    indices: dict[str, FolderIndex] = {}
    problems: list[DataError] = []
    for kind in (IMAGE, VIDEO):
        try:
            indices[kind.noun] = index_folder(ScanDefaults(str(folder)), kind)
        except DataError as problem:
            problems.append(problem)
    if not indices:
        same = len({str(problem) for problem in problems}) == 1  # of the metadata, whatever is looked for
        if same or not folder.is_dir():
            raise problems[0]
        raise DataError(f"{folder}: neither an image nor a video in it")
    first = next(iter(indices.values()))
    seen = MediaListing(first.root, table=first.layout if first.layout in METADATA else None)
    seen.classes = {path: name for entry in indices.values() for path, name in _classes(entry).items()}
    seen.clips = indices[VIDEO.noun].entries if VIDEO.noun in indices else []
    listed = {entry.path for entry in seen.clips}  # a GIF promises either
    seen.images = (
        [entry for entry in indices[IMAGE.noun].entries if entry.path not in listed] if IMAGE.noun in indices else []
    )
    listed |= {entry.path for entry in seen.images}
    refused = {path: reason for entry in indices.values() for path, reason in entry.refused if path not in listed}
    seen.refused = sorted(refused.items())
    return seen


def _classes(index: FolderIndex) -> dict[str, str]:
    """The sub-folder that each file lies in, where training takes these as classes."""
    paths = [entry.path for entry in index.entries]
    if index.layout in METADATA or not has_classes(ScanDefaults(str(index.root), labels="auto"), paths):
        return {}
    return {path: path.partition("/")[0] for path in paths}


class MediaReader:
    """Reads the entries of a folder.

    Args:
        seen: Listing of the folder.
        frames: Maximum number of frames read from a video, spaced evenly, both ends included.
    """

    def __init__(self, seen: MediaListing, frames: int) -> None:
        self.seen, self.frames = seen, frames
        self._clips = {entry.path for entry in seen.clips}
        self._decoder = VideoDecoder()

    @property
    def entries(self) -> list[IndexEntry]:
        """Images and videos of the folder."""
        return self.seen.entries

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Files that cannot be read, with the reasons."""
        return self.seen.refused

    @property
    def table(self) -> Path | None:
        """The folder's metadata."""
        return None if self.seen.table is None else self.seen.root / self.seen.table

    @property
    def classes(self) -> dict[str, str]:
        """Class folder of each file."""
        return self.seen.classes

    def __call__(self, entry: IndexEntry) -> SampledFrames:
        """Some frames of it.

        Raises:
            DataError: it cannot be read.
        """
        path = safe_join(self.seen.root, entry.path)
        try:
            if entry.path in self._clips:
                return sample_frames(path, self._decoder, self.frames)
            return SampledFrames(_read_image(path)[:, None], 1.0)
        except DataError:
            raise
        except OSError as problem:
            raise DataError(problem.strerror or str(problem)) from problem

    def close(self) -> None:
        """End the process that decodes."""
        self._decoder.close()


class PlaygroundReader:
    """The playground's videos by number, as `MediaListing` and `MediaReader` have those of a folder.

    Args:
        world: Playground of the videos. count: Number of its first videos.

    Raises:
        RecipeError: more than it has.
    """

    def __init__(self, world: Playground, count: int) -> None:
        if not 1 <= count <= len(world):
            raise RecipeError(f"count {count}: must be 1 to {len(world)}, the videos of this data")
        self.world = world
        self.refused: list[tuple[str, str]] = []
        self.table: Path | None = None
        self.classes: dict[str, str] = {}
        annotations = world.annotations(range(count))
        self.entries = [
            IndexEntry(str(n), text=item.get("texts", [item["text"]])[0]) for n, item in enumerate(annotations)
        ]

    def __call__(self, entry: IndexEntry) -> SampledFrames:
        """All frames of a video."""
        item = self.world[int(entry.path)]
        pixels: Tensor = item["pixels"]
        return SampledFrames(pixels if pixels.ndim == 4 else pixels[:, None], float(item["fps"]))

    def close(self) -> None:
        """Do nothing: nothing is open."""


def sample_frames(path: Path, decoder: VideoDecoder, count: int, limits: VideoLimits | None = None) -> SampledFrames:
    """Decode at most `count` frames of a video, spaced evenly, both ends included.

    Raises:
        DataError: as `VideoDecoder.look`.
    """
    limits = limits or VideoLimits()
    video = decoder.look(path, limits)
    moments = video.moments()
    chosen = torch.linspace(0, len(moments) - 1, min(count, len(moments))).round().long().tolist()
    times = tuple(moments[place] for place in chosen)
    cut = FrameSelection(times, "nearest", (0.0, 0.0, float(video.width), float(video.height)), _within(*video.shown))
    pixels, _ = decoder.read(path, video, cut, limits)
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
    return SampledFrames(apply_orientation(pixels, video.turn), rate)


def _read_image(path: Path) -> Tensor:
    with path.open("rb") as file:
        pixels = decode_native_size(open_image(file, MAX_PIXELS), 3)
    wide, high = _within(pixels.shape[2], pixels.shape[1])
    return resized(pixels[:, None], (high, wide))[:, 0]


def _within(wide: int, high: int) -> tuple[int, int]:
    scale = min(1.0, MAX_SIDE / max(wide, high))
    return max(1, round(wide * scale)), max(1, round(high * scale))


def resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Frames uint8 (C, T, H, W) in another height and width."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    frames = pixels.transpose(0, 1).float()
    large = F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
    return large.round().clamp(0, 255).to(torch.uint8).transpose(0, 1)
