"""Read images and sampled frames of videos for captioning, from a folder or from the playground."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.data.folder_index import IMAGE, LAYOUTS, FolderIndex, IndexEntry, has_classes, index_folder
from unveil.data.image_decoding import decode_native_size, open_image, safe_join
from unveil.data.video_folder import VIDEO, apply_orientation
from unveil.errors import DataError, RecipeError
from unveil.io.video.frame_timing import frame_count
from unveil.io.video.reader import FrameSelection, VideoLimits, VideoReader
from unveil.playground.dataset import Playground

MAX_SIDE = 512  # pixels of the longer side of a captioner's input
MAX_PIXELS = 100_000_000  # maximum pixels of an image file


@dataclass(frozen=True)
class ScanDefaults:
    """Default settings of `index_folder`; see `FolderConfig`."""

    path: str
    metadata_file: str | None = None
    file_column: str = "file_name"
    caption_column: str = "text"
    label_column: str = "label"
    synthetic_column: str = "caption"
    captions_file: str | None = None
    labels: Literal["auto", "folders", "none"] = "none"
    classes: tuple[str, ...] | None = None


class SampledFrames(NamedTuple):
    """Sampled frames of a video; an image is one frame.

    Attributes:
        pixels: uint8 (3, T, H, W).
        rate: Sampled frames per second.
    """

    pixels: Tensor
    rate: float


@dataclass
class MediaListing:
    """Images and videos of a folder.

    Attributes:
        root: The folder.
        images, clips: Entries of images and videos, sorted by path, with their captions.
        refused: Path and reason of each image or video file that cannot be opened.
        table: Name of the metadata file; None without metadata.
        classes: Class folder of each file, if the folder has classes and no metadata.
    """

    root: Path
    images: list[IndexEntry] = field(default_factory=list)
    clips: list[IndexEntry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    table: str | None = None
    classes: dict[str, str] = field(default_factory=dict)

    @property
    def entries(self) -> list[IndexEntry]:
        """Return all entries, sorted by path."""
        return sorted([*self.images, *self.clips], key=lambda entry: entry.path)


def scan_folder(folder: Path) -> MediaListing:
    """List the images and videos of a folder.

    Raises:
        DataError: The folder does not exist or contains neither images nor videos, or its metadata cannot be read.
    """
    indices: dict[str, FolderIndex] = {}
    problems: list[DataError] = []
    for kind in (IMAGE, VIDEO):
        try:
            indices[kind.noun] = index_folder(ScanDefaults(str(folder)), kind)
        except DataError as problem:
            problems.append(problem)
    if not indices:
        same = len({str(problem) for problem in problems}) == 1  # an error of the metadata concerns both kinds
        if same or not folder.is_dir():
            raise problems[0]
        raise DataError(f"{folder}: contains neither an image nor a video")
    first = next(iter(indices.values()))
    listing = MediaListing(first.root, table=None if first.layout in LAYOUTS else first.layout)
    listing.classes = {path: name for entry in indices.values() for path, name in _classes(entry).items()}
    listing.clips = indices[VIDEO.noun].entries if VIDEO.noun in indices else []
    listed = {entry.path for entry in listing.clips}  # a GIF file may be an image or a video
    listing.images = (
        [entry for entry in indices[IMAGE.noun].entries if entry.path not in listed] if IMAGE.noun in indices else []
    )
    listed |= {entry.path for entry in listing.images}
    refused = {path: reason for entry in indices.values() for path, reason in entry.refused if path not in listed}
    listing.refused = sorted(refused.items())
    return listing


def _classes(index: FolderIndex) -> dict[str, str]:
    """Return the class folder of each file, if training uses the folders as classes."""
    paths = [entry.path for entry in index.entries]
    if index.layout not in LAYOUTS or not has_classes(ScanDefaults(str(index.root), labels="auto"), paths):
        return {}
    return {path: path.partition("/")[0] for path in paths}


class MediaReader:
    """Reads the entries of a folder.

    Args:
        listing: Listing of the folder.
        frames: Maximum number of frames read from a video, spaced evenly, both ends included.
    """

    def __init__(self, listing: MediaListing, frames: int) -> None:
        self.listing, self.frames = listing, frames
        self._clips = {entry.path for entry in listing.clips}
        self._decoder = VideoReader()

    @property
    def entries(self) -> list[IndexEntry]:
        """Return all entries of the folder, sorted by path."""
        return self.listing.entries

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Return the files that cannot be read, with the reasons."""
        return self.listing.refused

    @property
    def table(self) -> Path | None:
        """Return the path of the folder's metadata file; None without metadata."""
        return None if self.listing.table is None else self.listing.root / self.listing.table

    @property
    def classes(self) -> dict[str, str]:
        """Return the class folder of each file."""
        return self.listing.classes

    def __call__(self, entry: IndexEntry, rate: float | None = None) -> SampledFrames:
        """Read an entry: an image, or frames of a video as `sample_frames` takes them.

        Raises:
            DataError: The file cannot be read.
        """
        path = safe_join(self.listing.root, entry.path)
        try:
            if entry.path in self._clips:
                return sample_frames(path, self._decoder, self.frames, rate=rate)
            return SampledFrames(_read_image(path)[:, None], 1.0)
        except DataError:
            raise
        except OSError as problem:
            raise DataError(problem.strerror or str(problem)) from problem

    def close(self) -> None:
        """End the decoding process."""
        self._decoder.close()


class PlaygroundReader:
    """Reads videos of the playground by index; it has the interface of `MediaReader`.

    Args:
        world: Playground data set.
        count: Number of videos, counted from the first.

    Raises:
        RecipeError: The count exceeds the size of the data set.
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
            IndexEntry(str(index), text=item.get("texts", [item["text"]])[0]) for index, item in enumerate(annotations)
        ]

    def __call__(self, entry: IndexEntry, rate: float | None = None) -> SampledFrames:
        """Return all frames of a video."""
        del rate  # the captioner chooses among all frames
        item = self.world[int(entry.path)]
        pixels: Tensor = item["pixels"]
        return SampledFrames(pixels if pixels.ndim == 4 else pixels[:, None], float(item["fps"]))

    def close(self) -> None:
        """Do nothing; no file is open."""


def sample_frames(
    path: Path, decoder: VideoReader, count: int, limits: VideoLimits | None = None, *, rate: float | None = None
) -> SampledFrames:
    """Decode at most `count` frames of a video, spaced evenly, both ends included.

    Args:
        path: Path of the video.
        decoder: Decoding process.
        count: Maximum number of frames.
        limits: Limits of the file.
        rate: Frames per second that a faster video is brought to first, by the frames closest in time; None: its own.

    Raises:
        DataError: As `VideoReader.probe`.
    """
    limits = limits or VideoLimits()
    video = decoder.probe(path, limits)
    timestamps = video.moments()
    if rate is not None and (fewer := frame_count(video.seconds, rate)) < len(timestamps):
        timestamps = [timestamps[0] + index / rate for index in range(fewer)]
    indices = torch.linspace(0, len(timestamps) - 1, min(count, len(timestamps))).round().long().tolist()
    times = tuple(timestamps[index] for index in indices)
    selection = FrameSelection(
        times, "nearest", (0.0, 0.0, float(video.width), float(video.height)), _fit(*video.square_pixel_size)
    )
    pixels, _ = decoder.read(path, video, selection, limits)
    pace = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
    return SampledFrames(apply_orientation(pixels, video.orientation), pace)


def _read_image(path: Path) -> Tensor:
    with path.open("rb") as file:
        pixels = decode_native_size(open_image(file, MAX_PIXELS), 3)
    width, height = _fit(pixels.shape[2], pixels.shape[1])
    return resized(pixels[:, None], (height, width))[:, 0]


def _fit(width: int, height: int) -> tuple[int, int]:
    """Return the size whose longer side has at most MAX_SIDE pixels, with the same aspect ratio."""
    scale = min(1.0, MAX_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize frames, uint8 (C, T, H, W), to a height and width by antialiased bicubic interpolation."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    frames = pixels.transpose(0, 1).float()
    interpolated = F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
    return interpolated.round().clamp(0, 255).to(torch.uint8).transpose(0, 1)
