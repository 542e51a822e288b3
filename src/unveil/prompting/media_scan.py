"""A look at what is to be told: pictures and some frames of clips, of a folder or of the playground, one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.data.folder_index import PICTURE, Entry, Listing, has_classes, listing
from unveil.data.image_decoding import inside, natural, open_picture
from unveil.data.metadata import METADATA
from unveil.data.video_folder import upright
from unveil.data.video_validation import CLIP
from unveil.io.video.reader import Cut, Decoder, Limits
from unveil.playground.dataset import Playground
from unveil.types import DataError, RecipeError

LONGEST = 512  # pixels of the longer side that anybody is shown
PIXELS = 100_000_000  # of a picture that is opened


@dataclass(frozen=True)
class Everything:
    """The settings of `listing` for a folder in which nothing is chosen; see `FolderConfig`."""

    path: str
    caption_column: str = "text"
    label_column: str = "label"
    synthetic_column: str = "caption"
    captions_file: str | None = None
    labels: Literal["auto", "folders", "none"] = "none"
    classes: tuple[str, ...] | None = None


class Glimpse(NamedTuple):
    """Some frames, uint8 (3, T, H, W), and how many of them there are in a second; a picture is one frame."""

    pixels: Tensor
    rate: float


@dataclass
class Seen:
    """What lies in a folder.

    pictures, clips: what is to be looked at, by its name, with the captions that are there. refused: path and reason of
    what promises a picture or a clip and cannot be opened. table: the name of its metadata, None where it has none.
    classes: the sub-folders that are the classes of files, by their names, where there is no metadata.
    """

    root: Path
    pictures: list[Entry] = field(default_factory=list)
    clips: list[Entry] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    table: str | None = None
    classes: dict[str, str] = field(default_factory=dict)

    @property
    def entries(self) -> list[Entry]:
        """Pictures and clips by name."""
        return sorted([*self.pictures, *self.clips], key=lambda one: one.path)


def look_round(folder: Path) -> Seen:
    """The pictures and clips of a folder.

    Raises:
        MediaError: no such folder, neither a picture nor a clip in it, or metadata that cannot be read.
    """
    found: dict[str, Listing] = {}
    problems: list[DataError] = []
    for kind in (PICTURE, CLIP):
        try:
            found[kind.noun] = listing(Everything(str(folder)), kind)
        except DataError as problem:
            problems.append(problem)
    if not found:
        same = len({str(problem) for problem in problems}) == 1  # of the metadata, whatever is looked for
        if same or not folder.is_dir():
            raise problems[0]
        raise DataError(f"{folder}: neither a picture nor a clip in it")
    first = next(iter(found.values()))
    seen = Seen(first.root, table=first.layout if first.layout in METADATA else None)
    seen.classes = {path: name for one in found.values() for path, name in _classes(one).items()}
    seen.clips = found[CLIP.noun].entries if CLIP.noun in found else []
    known = {one.path for one in seen.clips}  # a GIF promises either
    seen.pictures = (
        [one for one in found[PICTURE.noun].entries if one.path not in known] if PICTURE.noun in found else []
    )
    known |= {one.path for one in seen.pictures}
    refused = {path: reason for one in found.values() for path, reason in one.refused if path not in known}
    seen.refused = sorted(refused.items())
    return seen


def _classes(found: Listing) -> dict[str, str]:
    """The sub-folder that each file lies in, where training takes these as classes."""
    paths = [one.path for one in found.entries]
    if found.layout in METADATA or not has_classes(Everything(str(found.root), labels="auto"), paths):
        return {}
    return {path: path.partition("/")[0] for path in paths}


class Looker:
    """Looks at the entries of a folder.

    Args:
        seen: the folder.
        frames: that are looked at of a clip at most, evenly spread, both ends among them.
    """

    def __init__(self, seen: Seen, frames: int) -> None:
        self.seen, self.frames = seen, frames
        self._clips = {one.path for one in seen.clips}
        self._decoder = Decoder()

    @property
    def entries(self) -> list[Entry]:
        """Of the folder."""
        return self.seen.entries

    @property
    def refused(self) -> list[tuple[str, str]]:
        """Of the folder."""
        return self.seen.refused

    @property
    def table(self) -> Path | None:
        """The folder's metadata."""
        return None if self.seen.table is None else self.seen.root / self.seen.table

    @property
    def classes(self) -> dict[str, str]:
        """Of the folder."""
        return self.seen.classes

    def __call__(self, entry: Entry) -> Glimpse:
        """Some frames of it.

        Raises:
            MediaError: it cannot be read.
        """
        path = inside(self.seen.root, entry.path)
        try:
            if entry.path in self._clips:
                return frames_of(path, self._decoder, self.frames)
            return Glimpse(_picture(path)[:, None], 1.0)
        except DataError:
            raise
        except OSError as problem:
            raise DataError(problem.strerror or str(problem)) from problem

    def close(self) -> None:
        """Ends the process that decodes."""
        self._decoder.close()


class Numbers:
    """The playground's clips by number, as `Seen` and `Looker` have those of a folder.

    Args:
        world: of the clips. count: its first ones.

    Raises:
        RecipeError: more than it has.
    """

    def __init__(self, world: Playground, count: int) -> None:
        if not 1 <= count <= len(world):
            raise RecipeError(f"count {count}: must be 1 to {len(world)}, the clips of this data")
        self.world = world
        self.refused: list[tuple[str, str]] = []
        self.table: Path | None = None
        self.classes: dict[str, str] = {}
        told = world.told(range(count))
        self.entries = [Entry(str(n), text=item.get("texts", [item["text"]])[0]) for n, item in enumerate(told)]

    def __call__(self, entry: Entry) -> Glimpse:
        """All frames of a clip."""
        item = self.world[int(entry.path)]
        pixels: Tensor = item["pixels"]
        return Glimpse(pixels if pixels.ndim == 4 else pixels[:, None], float(item["fps"]))

    def close(self) -> None:
        """Nothing is open."""


def frames_of(path: Path, decoder: Decoder, count: int, limits: Limits | None = None) -> Glimpse:
    """So many frames of a clip at most, evenly spread, both ends among them.

    Raises:
        MediaError: as `Decoder.look`.
    """
    limits = limits or Limits()
    film = decoder.look(path, limits)
    moments = film.moments()
    chosen = torch.linspace(0, len(moments) - 1, min(count, len(moments))).round().long().tolist()
    times = tuple(moments[place] for place in chosen)
    cut = Cut(times, "nearest", (0.0, 0.0, float(film.width), float(film.height)), _within(*film.shown))
    pixels, _ = decoder.read(path, film, cut, limits)
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0
    return Glimpse(upright(pixels, film.turn), rate)


def _picture(path: Path) -> Tensor:
    with path.open("rb") as file:
        pixels = natural(open_picture(file, PIXELS), 3)
    wide, high = _within(pixels.shape[2], pixels.shape[1])
    return resized(pixels[:, None], (high, wide))[:, 0]


def _within(wide: int, high: int) -> tuple[int, int]:
    scale = min(1.0, LONGEST / max(wide, high))
    return max(1, round(wide * scale)), max(1, round(high * scale))


def resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Frames uint8 (C, T, H, W) in another height and width."""
    if tuple(pixels.shape[2:]) == size:
        return pixels
    frames = pixels.transpose(0, 1).float()
    large = F.interpolate(frames, size, mode="bicubic", align_corners=False, antialias=True)
    return large.round().clamp(0, 255).to(torch.uint8).transpose(0, 1)
