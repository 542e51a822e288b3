"""Every clip of a folder decoded once, before training: what it is, what happens to it, and why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

from unveil.data.folder_index import CLIPS, OTHER_PICTURES, PICTURES, Kind, listing
from unveil.data.image_validation import allowed, gathered
from unveil.data.report import Change, Report
from unveil.data.scan_cache import Progress, Viewer, looks
from unveil.data.video_slicing import ClipsConfig, Plan, plan
from unveil.io.optional_deps import extra
from unveil.io.video.containers import HEAD, container_of
from unveil.io.video.reader import Decoder, Film

SUFFIXES = frozenset(CLIPS - {".gif"})
CLIP = Kind(
    "clip",
    "MP4, MOV, WebM, MKV or GIF",
    frozenset(CLIPS),
    frozenset({".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".ogv", ".3gp", ".asf"}),
    container_of,
    HEAD,
)


@dataclass
class ClipsReport(Report):
    """The clips of a folder and everything that happens to them.

    Beside what a report of pictures has: films and plans: of every usable file. rates: frames in a second, as text,
    -> how many files. seconds: of all usable files. told: path and reason of what is used as it is though it should
    be known, such as brightness that is not mapped.
    """

    noun: ClassVar[str] = "clip"
    warned: ClassVar[dict[str, str]] = Report.warned | {"retime": "brought to another rate", "cut": "cut in time"}
    titles: ClassVar[dict[str, str]] = Report.titles | {
        "retime": "brought to another rate",
        "cut": "not used whole",
        "turn": "turned upright",
        "square": "pixels made square",
    }

    films: dict[str, Film] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    rates: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    told: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pieces(self) -> int:
        """How many clips training sees."""
        return sum(len(self.plans[entry.path].pieces) for entry in self.entries)

    def kinds(self) -> dict[str, dict[str, int]]:
        """How many files of each container, codec and rate; and totals of the usable ones."""
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
        """What is to be known of files beside their changes, for JSON."""
        return {"notes": [{"path": path, "reason": reason} for path, reason in self.told]}

    def noted(self) -> dict[str, list[tuple[str, str]]]:
        """The same for a person."""
        return {"to be known": self.told}


def check_clips(config: ClipsConfig, progress: Progress | None = None) -> ClipsReport:
    """Decodes every clip of a folder and reports what training would do with it. Changes nothing there.

    The result is kept in the cache folder until a file, or a limit, changes; results with unreadable files are not.

    Args:
        config: the folder and how its clips are used.
        progress: called as progress(done, total), now and then.

    Raises:
        MediaError: no such folder, no clip in it, bad metadata.
        RecipeError: what decodes clips is not installed.
    """
    versions = extra("av", "a folder of clips", "video").__version__
    found = listing(config, CLIP)
    decoders = threading.local()

    def view(file: IO[bytes]) -> Film:
        if not hasattr(decoders, "own"):
            decoders.own = Decoder()
        return decoders.own.look(Path(file.name), config.limits)

    viewer = Viewer(f"clips {versions}\0{config.limits}", view, _again)
    seen = looks(found, viewer, progress)
    report = ClipsReport(found.root, found.layout, found.classes, config.size)
    for path, look in seen.items():
        if look.header is not None:
            _add(report, path, look.header, config)
    return gathered(report, found, seen)


def usable_clips(config: ClipsConfig, max_bad: float | None = None, progress: Progress | None = None) -> ClipsReport:
    """The report of a folder that may be trained on; what happens to its clips is logged as a warning.

    Args:
        config: the folder.
        max_bad: the share of bad files above which nothing is trained on; None takes the config's.
        progress: as for `check_clips`.

    Raises:
        MediaError: more than max_bad of the files are bad, with the list; or none is left; or as `check_clips`.
    """
    return allowed(check_clips(config, progress), config.path, config.max_bad if max_bad is None else max_bad)


def holds_clips(folder: Path) -> bool:
    """Whether a folder is one of clips: it holds a video, or GIFs and no pictures; by names alone."""
    found = {path.suffix.lower() for path in folder.rglob("*") if not path.name.startswith(".")}
    return bool(found & SUFFIXES) or (".gif" in found and not found & (PICTURES | OTHER_PICTURES - {".gif"}))


def _again(kept: Sequence[Any]) -> Film:
    """The facts of a file from what JSON keeps of them."""
    film = Film(*kept)
    return film._replace(times=tuple(film.times), notes=tuple(film.notes))


def _add(report: ClipsReport, path: str, film: Film, config: ClipsConfig) -> None:
    planned = plan(film, config)
    report.formats[film.container] += 1
    report.codecs[film.codec] += 1
    report.rates["variable" if film.rate is None else f"{film.rate:.5g}"] += 1
    width, height = film.shown
    report.sizes[(width, height) if film.turn < 5 else (height, width)] += 1
    report.films[path], report.plans[path] = film, planned
    report.told += [(path, note) for note in film.notes]
    if film.transparent:
        report.told.append((path, f"transparent: laid on {config.background}"))
    if planned.refused is not None:
        report.refused.append((path, planned.refused))
    elif planned.actions:
        report.changes.append(Change(path, planned.actions, planned.reason))
