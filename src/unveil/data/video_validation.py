"""Every video of a folder decoded once, before training: what it is, what happens to it, and why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

from unveil.data.folder_index import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaType, index_folder
from unveil.data.image_validation import complete_report, enforce_max_bad
from unveil.data.report import FileAction, FolderReport
from unveil.data.scan_cache import FileInspector, Progress, inspect_files
from unveil.data.video_slicing import SegmentPlan, VideoFolderConfig, plan_segments
from unveil.io.optional_deps import import_extra
from unveil.io.video.containers import HEAD, container_of
from unveil.io.video.reader import VideoDecoder, VideoInfo

SUFFIXES = frozenset(VIDEO_SUFFIXES - {".gif"})
VIDEO = MediaType(
    "clip",
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

    noun: ClassVar[str] = "clip"
    warned: ClassVar[dict[str, str]] = FolderReport.warned | {"retime": "brought to another rate", "cut": "cut in time"}
    titles: ClassVar[dict[str, str]] = FolderReport.titles | {
        "retime": "brought to another rate",
        "cut": "not used whole",
        "turn": "turned upright",
        "square": "pixels made square",
    }

    films: dict[str, VideoInfo] = field(default_factory=dict)
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
        films = [self.films[path] for path in dict.fromkeys(entry.path for entry in self.entries)]
        seconds = sum(film.seconds + 1 / film.mean_rate for film in films)
        totals = {"pieces": self.pieces, "frames": sum(film.frames for film in films), "seconds": round(seconds)}
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
        config: the folder and how its videos are used.
        progress: called as progress(done, total), now and then.

    Raises:
        DataError: no such folder, no video in it, bad metadata.
        RecipeError: what decodes videos is not installed.
    """
    versions = import_extra("av", "a folder of clips", "video").__version__
    index = index_folder(config, VIDEO)
    decoders = threading.local()

    def view(file: IO[bytes]) -> VideoInfo:
        if not hasattr(decoders, "decoder"):
            decoders.decoder = VideoDecoder()
        return decoders.decoder.look(Path(file.name), config.limits)

    viewer = FileInspector(f"clips {versions}\0{config.limits}", view, _again)
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
        config: the folder.
        max_bad: the share of bad files above which nothing is trained on; None takes the config's.
        progress: as for `check_videos`.

    Raises:
        DataError: more than max_bad of the files are bad, with the list; or none is left; or as `check_videos`.
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
    film = VideoInfo(*stored)
    return film._replace(times=tuple(film.times), notes=tuple(film.notes))


def _add(report: VideoFolderReport, path: str, film: VideoInfo, config: VideoFolderConfig) -> None:
    planned = plan_segments(film, config)
    report.formats[film.container] += 1
    report.codecs[film.codec] += 1
    report.rates["variable" if film.rate is None else f"{film.rate:.5g}"] += 1
    width, height = film.shown
    report.sizes[(width, height) if film.turn < 5 else (height, width)] += 1
    report.films[path], report.plans[path] = film, planned
    report.remarks += [(path, note) for note in film.notes]
    if film.transparent:
        report.remarks.append((path, f"transparent: laid on {config.background}"))
    if planned.refused is not None:
        report.refused.append((path, planned.refused))
    elif planned.actions:
        report.changes.append(FileAction(path, planned.actions, planned.reason))
