"""The files that tasks work on: found, read, and known again by their content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

from torch import Tensor

from unveil.data.image_decoding import HEAD, decode_native_size, format_of, open_image
from unveil.errors import DataError
from unveil.generation.invert import read_noise
from unveil.generation.task_spec import SourceFile
from unveil.io.files import sha256

PICTURE, MASK, NOISE = "picture", "mask", "noise"  # roles
BESIDE = ("sheet.png", "strip.png")  # what commands write into a folder beside its pictures
MAX_PIXELS = 100_000_000


class LoadedInput(NamedTuple):
    """A file that was read: uint8 (C, H, W) of a picture or a mask, float32 of one noise."""

    path: Path
    content: Tensor
    input: SourceFile


def list_inputs(place: Path) -> list[Path]:
    """The file itself, or the pictures that lie in a folder, by name, without the sheet and the strip of a command.

    Raises:
        DataError: nothing there, or no picture in it.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place}: no such picture or folder")
    found = sorted(path for path in place.iterdir() if path.is_file() and path.name not in BESIDE and _is_picture(path))
    if not found:
        raise DataError(f"{place}: no picture in it; PNG, JPEG and WebP are read")
    return found


def open_input(role: str, path: Path, channels: int, size: tuple[int, int] | None = None, row: int = 0) -> LoadedInput:
    """A file of a role, read.

    Args:
        role: picture, mask (one channel) or noise.
        path: of the file.
        channels: of the model's pictures.
        size: height and width that a picture is brought to; its own when left out.
        row: which noise of a file of several.

    Raises:
        DataError: no such file, not of this role, or damaged.
    """
    if role == NOISE:
        return LoadedInput(path, read_noise(path)[0][row], SourceFile(path.name, sha256(path), row))
    try:
        data = path.read_bytes()
        image = open_image(io.BytesIO(data), MAX_PIXELS)
        pixels = decode_native_size(image, cast(Literal[1, 3], 1 if role == MASK else channels), size)
    except OSError as problem:
        raise DataError(f"{path}: {getattr(problem, 'strerror', None) or problem}") from problem
    return LoadedInput(path, pixels, SourceFile(path.name, hashlib.sha256(data).hexdigest()))


def find_inputs(wanted: Sequence[SourceFile], places: Sequence[Path]) -> list[Path]:
    """The files that a record names, wherever they are among these files and folders.

    Raises:
        DataError: one is not there, or only one of the same name with another content.
    """
    known: dict[str, list[Path]] = {}
    for place in places:
        for path in [place] if place.is_file() else sorted(place.iterdir()) if place.is_dir() else []:
            known.setdefault(path.name, []).append(path)
    given = {sha256(path): path for path in places if path.is_file()}  # may have been renamed
    return [_found(one, known, given) for one in wanted]


def _found(wanted: SourceFile, known: Mapping[str, Sequence[Path]], given: Mapping[str, Path]) -> Path:
    candidates = [path for path in known.get(wanted.name, ()) if path.is_file()]
    same = next((path for path in candidates if sha256(path) == wanted.sha256), given.get(wanted.sha256))
    if same is not None:
        return same
    other = f"; {candidates[0]} is another file" if candidates else ""
    raise DataError(
        f"{wanted.name} (sha256 {wanted.sha256[:12]}...), which the picture was made from, is not here{other}; "
        "give it, or the folder that it lies in"
    )


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return format_of(file.read(HEAD)) is not None
