"""`unveil preprocess`: control images made from images, one file or a whole folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.data.folder_index import IMAGE_SUFFIXES
from unveil.data.image_decoding import DecodeOptions, read, read_classes
from unveil.data.preprocessors import segmentation
from unveil.data.preprocessors.registry import PREPROCESSORS
from unveil.errors import DataError, Error, OutputError, RecipeError, did_you_mean
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, write_atomically
from unveil.io.images import png

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 24  # of a file of boxes
_AS_IT_IS = DecodeOptions(None, max_pixels=MAX_PIXELS)
_SHOWN = 10  # files that could not be drawn, in the message


@dataclass(frozen=True)
class Place:
    """What is read, a file or a folder, and where its hints go; `force`: whatever is there."""

    source: Path
    out: Path
    force: bool = False


def draw(kind: str, settings: Mapping[str, Any], place: Place, console: Console) -> None:
    """Draws the hints of pictures, each of the picture's own size."""
    hint = PREPROCESSORS[kind](**settings)
    _each(place, IMAGE_SUFFIXES, lambda path: hint({"pixels": _picture(path)}), console)


def mask(place: Place, console: Console) -> None:
    """Draws maps of classes in colours."""
    _each(place, IMAGE_SUFFIXES, lambda path: segmentation.colours(read_classes(path, MAX_PIXELS)), console)


def boxes(place: Place, width: int, height: int, style: str, console: Console) -> None:
    """Draws files of boxes."""
    hint = PREPROCESSORS["boxes"](labels="labels", style=style)
    _check_size(width, height)
    blank = torch.zeros(1, height, width, dtype=torch.uint8)
    _each(place, {".json"}, lambda path: hint({"pixels": blank, **_boxes(path)}), console)


def resize(place: Place, width: int, height: int, console: Console) -> None:
    """Brings hints that exist to a size."""
    _check_size(width, height)
    _each(place, IMAGE_SUFFIXES, lambda path: segmentation.resize_control_image(_picture(path), height, width), console)


def _each(place: Place, suffixes: Iterable[str], hint: Callable[[Path], Tensor], console: Console) -> None:
    """Draws every file; those that cannot be drawn are named at the end, and do not stop the others."""
    pairs = _pairs(place, set(suffixes))
    drawn: list[dict[str, Any]] = []
    failed: list[Error] = []
    with console.progress("hint", len(pairs)) as progress:
        for source, target in pairs:
            try:
                made = hint(source)
            except (Error, OSError) as problem:
                told = str(problem) if str(source) in str(problem) else f"{source}: {problem}"
                failed.append(type(problem)(told) if isinstance(problem, Error) else DataError(told))
            else:
                write_atomically(target, png(made))
                share = round(float((made != 0).any(0).double().mean()), 6)
                size = [made.shape[2], made.shape[1]]
                drawn.append({"source": str(source), "hint": str(target), "size": size, "drawn": share})
            progress.advance()
    if len(failed) == 1 and len(pairs) == 1:
        raise failed[0]
    if failed:
        lines = [f"  {problem}" for problem in failed[:_SHOWN]]
        lines += [f"  and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
        raise DataError(
            "\n".join([f"{len(failed)} of {len(pairs)} could not be processed, {len(drawn)} were:", *lines])
            + "\nrepair or remove them"
        )
    told = f"{len(drawn)} control images in {place.out}" if place.source.is_dir() else str(place.out)
    console.result({"hints": drawn}, told)


def _pairs(place: Place, suffixes: set[str]) -> list[tuple[Path, Path]]:
    """Each file to be read and the one that its hint goes to; none of the latter is there, unless forced."""
    source, out = place.source.expanduser(), place.out.expanduser()
    if not source.exists():
        beside = [one.name for one in source.parent.iterdir()] if source.parent.is_dir() else []
        raise DataError(f"{source}: no such file or folder{did_you_mean(source.name, beside)}")
    if source.is_file():
        if out.suffix.lower() != ".png":
            raise RecipeError(f"--out {out}: must end in .png")
        if out.resolve() == source.resolve():
            raise OutputError(f"--out {out}: is the input image itself; choose another name")
        return [(source, refuse_overwrite(out, place.force))]
    if out.is_file() or out.suffix.lower() == ".png":
        raise RecipeError(f"--out {out}: {source} is a folder, so the control images need a folder too, not a file")
    if out.resolve().is_relative_to(source.resolve()):
        raise RecipeError(
            f"--out {out}: is inside {source}, so that control images would be read as images; choose another"
        )
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not found:
        raise DataError(f"{source}: no {', '.join(sorted(suffixes))} in it; check the path")
    targets: dict[Path, Path] = {}
    for path in found:
        target = (out / path.relative_to(source)).with_suffix(".png")
        if target in targets:
            raise DataError(f"{path} and {targets[target]}: both would be written to {target}; rename one of them")
        targets[target] = path
    return [(path, refuse_overwrite(target, place.force)) for target, path in targets.items()]


def _picture(path: Path) -> Tensor:
    real = path.resolve()  # a link that the user names may lead anywhere
    return read(real.parent, real.name, _AS_IT_IS)


def _boxes(path: Path) -> dict[str, Tensor | None]:
    """The boxes (N, 4) and labels (N,) of a file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        held = json.loads(path.read_text("utf-8"))
        rows = torch.tensor(held["boxes"], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor(held.get("labels", [0] * len(rows)))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, RecursionError) as problem:
        raise DataError(
            f"{path}: not a file of boxes ({problem}); it holds "
            '{"boxes": [[0.5, 0.5, 0.2, 0.4]], "labels": [0]}: centre x, centre y, width, height in [0, 1]'
        ) from problem
    return {"boxes": rows, "labels": labels.long() if not len(rows) else labels}


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise RecipeError(f"--width {width} --height {height}: each at least 1, together at most {MAX_PIXELS:,} pixels")
