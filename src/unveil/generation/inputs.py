"""Input files of tasks: images, masks and noise, identified by the hash of their content."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, cast

from torch import Tensor

from unveil.data.image_decoding import HEAD, decode_native_size, format_of, open_image
from unveil.errors import DataError
from unveil.generation.generate import SourceFile
from unveil.generation.invert import read_noise
from unveil.io import staging
from unveil.io.files import sha256

IMAGE, MASK, NOISE = "image", "mask", "noise"  # roles
EXTRA_FILES = ("sheet.png", "strip.png")  # files that commands write into a folder next to its images
MAX_PIXELS = 100_000_000


class LoadedInput(NamedTuple):
    """A file that was read: uint8 (C, H, W) of an image or a mask, float32 of one noise."""

    path: Path
    content: Tensor
    input: SourceFile


def list_inputs(place: Path) -> list[Path]:
    """Return the file itself, or the images in a folder, by name, without the contact sheet and the strip of a command.

    Raises:
        DataError: No such file or folder, or a folder without images.
    """
    staging.recover(place)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place}: no such image or folder")
    files = (path for path in place.iterdir() if path.is_file() and path.name not in EXTRA_FILES)
    images = sorted(path for path in files if _is_image(path))
    if not images:
        raise DataError(f"{place}: contains no image; PNG, JPEG and WebP are read")
    return images


def open_input(role: str, path: Path, channels: int, size: tuple[int, int] | None = None, row: int = 0) -> LoadedInput:
    """Read an input file.

    Args:
        role: Image, mask (one channel) or noise.
        path: Path of the file.
        channels: Number of channels of the model's images.
        size: Height and width that an image is resized to; None: its own.
        row: Index of the noise in a file of several.

    Raises:
        DataError: No such file, not of this role, or damaged.
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
    """Return the paths of the files that metadata name, among these files and folders.

    Raises:
        DataError: A file is missing, or only one of the same name has another content.
    """
    by_name: dict[str, list[Path]] = {}
    for place in places:
        for path in [place] if place.is_file() else sorted(place.iterdir()) if place.is_dir() else []:
            by_name.setdefault(path.name, []).append(path)
    by_hash = {sha256(path): path for path in places if path.is_file()}  # may have been renamed
    return [_find_input(file, by_name, by_hash) for file in wanted]


def _find_input(wanted: SourceFile, by_name: Mapping[str, Sequence[Path]], by_hash: Mapping[str, Path]) -> Path:
    candidates = [path for path in by_name.get(wanted.name, ()) if path.is_file()]
    same = next((path for path in candidates if sha256(path) == wanted.sha256), by_hash.get(wanted.sha256))
    if same is not None:
        return same
    other = f"; {candidates[0]} is another file" if candidates else ""
    raise DataError(
        f"{wanted.name} (sha256 {wanted.sha256[:12]}...), which the image was made from, is not here{other}; "
        "give it, or the folder that contains it"
    )


def _is_image(path: Path) -> bool:
    with path.open("rb") as file:
        return format_of(file.read(HEAD)) is not None
