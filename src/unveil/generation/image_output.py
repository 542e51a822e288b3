"""What every command that draws does alike: it watches the run, and writes pictures with their records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.errors import RecipeError
from unveil.generation.generate import GeneratedSample, Request, Source, generate
from unveil.generation.metadata import PARAMETERS, parameters
from unveil.generation.task_spec import PLAIN, TaskSpec
from unveil.generation.trajectory import Preview
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import METADATA_KEY, make_grid, png, to_pixels
from unveil.model import Model

FRAMES = 9  # of a strip: the noise's first step to the picture
STRIPS = 8  # samples that a strip shows at most
SHOWN = 256  # that the sheet of a folder does
PREVIEWS = 8  # of a run, at most, that `on_preview` is given


@dataclass(frozen=True)
class ImageOutput:
    """Where pictures go: a folder, or one .png file; and where the estimate is shown on the way."""

    out: Path
    strip: bool = False
    metadata: bool = True
    force: bool = False
    preview: Path | None = None
    preview_every: int = 5
    on_preview: Callable[[bytes, int, int | None], object] | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ImageOutput:
        """The place of a command's options, by their names."""
        plain = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in options.items() if name in plain})

    @property
    def one_file(self) -> bool:
        """Whether everything goes into a single picture."""
        return self.out.suffix.lower() == ".png"

    def check(self, names: Sequence[str] = (), alike: bool = True, mark: str = "") -> None:
        """Refuses what is there already, before any work.

        Args:
            names: of the pictures in a folder, where they are known.
            alike: whether these have one size, so that there are a sheet and a strip of them.
            mark: what the names of sheet and strip in a folder begin with.

        Raises:
            RecipeError: a preview that would be overwritten by the picture, two results of one name, or pictures of
                several sizes for one file.
            OutputError: a file that would be overwritten.
        """
        if self.preview is not None and self.preview == self.out:
            raise RecipeError(f"--preview {self.preview}: is the output file; choose another name")
        if self.one_file and not alike:
            raise RecipeError(
                f"--out {self.out}: images of several sizes fit no contact sheet; use a folder, or --size"
            )
        found = [self.out] if self.one_file else [self.out / name for name in names]
        if names and alike:
            found += [self.out / f"{mark}sheet.png"] if len(names) > 1 and not self.one_file else []
            found += [self.strip_path(mark)] if self.strip else []
        if doubled := [path for path, often in Counter(found).items() if often > 1]:
            raise RecipeError(f"{doubled[0]}: two results would have this name; rename one of the input images")
        for path in found + ([self.preview] if self.preview else []):
            refuse_overwrite(path, self.force)

    def strip_path(self, mark: str = "") -> Path:
        """The file of the strip, whose name in a folder begins with a mark."""
        return self.out.with_suffix(".strip.png") if self.one_file else self.out / f"{mark}strip.png"


@dataclass
class WrittenFiles:
    """The files of a command."""

    images: list[Path] = field(default_factory=list)
    sheet: Path | None = None
    strip: Path | None = None

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": [str(path) for path in self.images],
            "sheet": str(self.sheet) if self.sheet else None,
            "strip": str(self.strip) if self.strip else None,
        }

    def text(self) -> str:
        """For a person."""
        lines = [str(self.images[0])] if len(self.images) == 1 else []
        if len(self.images) > 1:
            lines.append(f"{len(self.images)} images: {self.images[0]} ... {self.images[-1].name}")
        return "\n".join([*lines, *(str(path) for path in (self.sheet, self.strip) if path)])


def numbered(request: Request) -> list[tuple[int, int]]:
    """The seed and the number of each picture of a request."""
    if isinstance(request.seed, int):
        return [(request.seed, request.first + place) for place in range(request.count)]
    return [(seed, request.first) for seed in request.seed]


def filenames(rows: Iterable[tuple[int, int]]) -> list[str]:
    """The files of pictures in a folder, by their seeds and numbers; what comes again has a number behind it."""
    found: list[str] = []
    often = Counter[str]()
    for seed, number in rows:
        name = f"seed{seed}_{number:05d}"
        often[name] += 1
        found.append(f"{name}.png" if often[name] == 1 else f"{name}_{often[name]}.png")
    return found


def draw(
    model: Model, source: Source, request: Request, place: ImageOutput, console: Console, edit: TaskSpec = PLAIN
) -> Iterator[GeneratedSample]:
    """The pictures of a request as they come, with progress, and previews where the place asks for them.

    What is asked to be gone away from without guidance is told to have no effect.
    """
    if request.negative and request.sampling.get("guidance_scale", model.sampling.guidance.scale) == 1:
        console.warn("negative prompts and conditions have no effect without guidance; use --guidance-scale above 1")
    frames = FRAMES if place.strip else 0
    preview = _preview(place, model.sampling.changed(request.sampling).steps)
    with console.progress("step", 0) as progress:
        yield from generate(model, request, source, edit, frames=frames, on_step=progress.reach, preview=preview)


def write(
    pictures: Iterable[GeneratedSample],
    place: ImageOutput,
    names: Sequence[str],
    columns: int | None = None,
    mark: str = "",
) -> WrittenFiles:
    """One file each, as they come, and then a sheet of them; a single .png holds the picture, or the sheet.

    Who ends it in between has the pictures that were there by then.

    Args:
        pictures: at least one; a sheet and a strip need all of one size. In a folder the sheet shows the first 256.
        place: where they go.
        names: of the files in a folder.
        columns: of the sheet.
        mark: what the names of sheet and strip in a folder begin with.

    Raises:
        OutputError: a file is there already, which `ImageOutput.check` finds before the work.
    """
    files: dict[Path, bytes] = {}
    written, count, alone = WrittenFiles(), 0, b""
    kept: list[Tensor] = []
    ways: list[Tensor] = []
    shapes: set[tuple[int, ...]] = set()
    for count, picture in enumerate(pictures, 1):
        content = png(picture.pixels, _texts(picture, place.metadata))
        if place.one_file:
            alone = alone or content
        else:
            written.images.append(place.out / names[count - 1])
            put({written.images[-1]: content}, place.force)
        shapes.add(tuple(picture.pixels.shape))
        kept += [picture.pixels] if place.one_file or len(kept) < SHOWN else []
        ways += [to_pixels(picture.frames)] if place.strip and len(ways) < STRIPS else []
    if count == 1 and place.one_file:
        files[place.out] = alone
        written.images.append(place.out)
    if count > 1 and len(shapes) == 1:
        written.sheet = place.out if place.one_file else place.out / f"{mark}sheet.png"
        files[written.sheet] = png(make_grid(torch.stack(kept), columns))
    if ways and len(shapes) == 1:
        written.strip = place.strip_path(mark)
        files[written.strip] = png(make_grid(torch.cat(ways), columns=len(ways[0])))
    put(files, place.force)
    return written


def put(files: dict[Path, bytes], force: bool) -> None:
    """Writes every file, each whole or not at all.

    Raises:
        OutputError: one is there already; nothing was written.
    """
    for path in files:
        refuse_overwrite(path, force)
    for path, content in files.items():
        write_atomically(path, content)


def _preview(place: ImageOutput, steps: int) -> Preview | None:
    path, on_preview = place.preview, place.on_preview
    if on_preview is not None:
        return Preview(
            lambda pixels, done, total: on_preview(png(make_grid(pixels)), done, total), max(1, steps // PREVIEWS)
        )
    if path is None:
        return None

    def show(pixels: Tensor, done: int, total: int | None) -> None:
        del done, total
        write_atomically(path, png(make_grid(pixels)))

    return Preview(show, place.preview_every)


def _texts(picture: GeneratedSample, metadata: bool) -> dict[str, str]:
    if not metadata:
        return {}
    facts = picture.facts
    return {
        PARAMETERS: parameters(facts, picture.pixels.shape[1:]),
        METADATA_KEY: json.dumps(facts, ensure_ascii=False),
    }
