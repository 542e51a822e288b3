"""A folder of videos as a data set, decoded on demand by any number of workers."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unveil.data.caption_mixing import pick_caption
from unveil.data.folder_index import IndexEntry, colour
from unveil.data.image_decoding import DecodeOptions, fit_box, safe_join
from unveil.data.image_folder import held_out_files
from unveil.data.registry import data_kind
from unveil.data.tensor_dataset import Part
from unveil.data.video_slicing import VideoFolderConfig, VideoSegment
from unveil.data.video_validation import VideoFolderReport, check_videos_or_raise
from unveil.errors import DataError
from unveil.io.video.reader import FrameSelection, VideoDecoder, VideoInfo
from unveil.types import Item


class VideoItem(NamedTuple):
    """One item: a piece of a file, and what is known about the file."""

    entry: IndexEntry
    film: VideoInfo
    piece: VideoSegment


@data_kind("video-folder", VideoFolderConfig, has_images=False)
class VideoDataset(Dataset[Item]):
    """The checked videos of one part: pixels uint8 (3, T, H, W), with label and text where they are known.

    Items also have "fps", frames per second; "source_fps", those of its file, on average
    where they vary; "times", float64 (T,), the time in its file of every frame, in seconds after the first.

    A file belongs to the held-out part by a hash of its content, with all its pieces.

    Raises:
        DataError: see `check_videos_or_raise`; or the part would be empty.
    """

    def __init__(
        self, config: VideoFolderConfig, part: Part = "train", report: VideoFolderReport | None = None
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
            VideoItem(entry, self.report.films[entry.path], piece)
            for entry, out in zip(self.report.entries, chosen, strict=True)
            for piece in self.report.plans[entry.path].pieces
            if out == (part == "held-out")
        ]
        self.captioned = any((indexed.text, indexed.synthetic) != (None, None) for indexed in self.report.entries)
        self._decoder = VideoDecoder()
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
            DataError: the file has changed or gone since it was checked.
        """
        entry, film, piece = self.entries[index]
        try:
            path = safe_join(self.root, entry.path)
            raw, times = self._decoder.read(path, film, frame_selection(film, piece, self.rule), self.config.limits)
        except DataError as error:
            raise DataError(f"{self.root / entry.path}: {error}") from error
        pixels = apply_orientation(letterbox(raw, self.rule), film.turn)
        item: Item = {
            "pixels": pixels,
            "fps": piece.rate,
            "source_fps": film.mean_rate,
            "times": torch.tensor(times, dtype=torch.float64),
        }
        return item | self.facts(index)

    def sizes(self) -> Tensor:
        """Frames, height and width of every video, of what is known without reading it: int64 (N, 3)."""
        return torch.tensor([(len(scene.piece.times), *_shown(scene.film, self.rule)) for scene in self.entries])

    def facts(self, index: int) -> Item:
        """Return a video's annotations, without its pixels."""
        entry, item = self.entries[index].entry, Item()
        if entry.label is not None:
            item["label"] = entry.label
        if self.captioned:
            item |= pick_caption(entry, self.share, fixed=self.held_out)
        return item


def frame_selection(film: VideoInfo, piece: VideoSegment, rule: DecodeOptions) -> FrameSelection:
    """Return the decoder's selection of a segment; its box is in stored pixels, before they are made square."""
    (left, top, right, bottom), size = fit_box(*film.shown, rule)
    wide = film.width / film.shown[0]
    gap = 2.0 if rule.decode == "fast" else None
    red, green, blue = colour(rule.background)[:3]
    return FrameSelection(
        piece.times, piece.rule, (left * wide, top, right * wide, bottom), size, gap, (red, green, blue)
    )


def _shown(film: VideoInfo, rule: DecodeOptions) -> tuple[int, int]:
    """Height and width of a film's frames as an item has them, see `letterbox` and `apply_orientation`."""
    wide, high = fit_box(*film.shown, rule)[1]
    if rule.fit == "pad" and rule.size is not None:
        wide = high = rule.size
    return (wide, high) if film.turn >= 5 else (high, wide)


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
