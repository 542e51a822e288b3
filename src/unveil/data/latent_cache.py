"""Latents of a data set cached in one file, so that training need not encode an image twice.

The file's name is a hash of everything that determines its content: the images and their order, the encoder, and the
settings. A change of any of these gives another name, so an existing file is never stale. The file has the format of
`data.latents`. It holds the full output of the encoder, so that latents can be sampled from it as from the pixels.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from unveil.data.adapter import SourceDataset
from unveil.data.cache import cache_folder
from unveil.data.control_images import ControlImageDataset
from unveil.data.fingerprint import Progress, dataset_fingerprint
from unveil.data.latents import LABELS, LATENTS, LatentFile, open_latent_file, write_latents
from unveil.errors import DataError, NonFinite, OutputError, RecipeError, ShapeError
from unveil.io.files import tensor_bytes, write_atomically
from unveil.io.images import to_unit
from unveil.types import Item

_VERSION = 1  # of what is in a file; another one is another name
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class LatentEncoder:
    """An encoder of pixels to latents.

    Attributes:
        encode: Function of pixels float32 (B, C, H, W) in [-1, 1] to all that is cached: (B, moments * C', h, w).
        identity: Identifier of the weights and settings.
        moments: 1 for latents, 2 for means and logarithms of variances.
        scale, shift: x0 = (latents - shift) * scale; one number for each channel C'.
    """

    encode: Callable[[Tensor], Tensor]
    identity: str
    moments: int = 1
    scale: Sequence[float] = (1.0,)
    shift: Sequence[float] = (0.0,)


@dataclass(frozen=True)
class LatentCacheOptions:
    """Options of a latent cache.

    Attributes:
        key: Key of the items that holds the pixels.
        mirrored: Those of the images mirrored left to right too, for training that mirrors at random.
        dtype: float32 keeps every bit; bfloat16 and float16 take half the room.
        batch: Images that are encoded at once, and that an interrupted run loses at most.
        folder: Folder of the files; None: `latents` in the cache folder.
    """

    key: str = "pixels"
    mirrored: bool = False
    dtype: torch.dtype = torch.float32
    batch: int = 32
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Raises RecipeError for another type, or a batch below 1."""
        if self.dtype not in _DTYPES:
            raise RecipeError(f"dtype {self.dtype}: must be one of {', '.join(map(str, _DTYPES))}")
        if self.batch < 1:
            raise RecipeError(f"batch {self.batch}: at least 1 image is encoded at once")


class CachedLatents(Dataset[Item]):
    """A data set with the encoder's output instead of the pixels: float32 (versions, moments * C', h, w).

    The first version is of the image as it is, the second, where there is one, of the mirrored image. What else
    an item holds is the source's; its images are read only if `keys` need more than labels and texts.

    Attributes:
        path: Path of the file.
        shape: Shape of one item, (versions, moments * C', h, w).
        classes: The source's, where it has them.
    """

    def __init__(self, source: SourceDataset, path: Path, key: str = "pixels", keys: Sequence[str] = ()) -> None:
        self.source, self.path, self.key, self.keys = source, path, key, tuple(keys)
        self.packed = open_latent_file(path)
        self.versions = _versions(self.packed, len(source))
        self.shape = (self.versions, *self.packed.shape[1:])
        self.classes: list[str] | None = getattr(source, "classes", None)
        self._latents = self.packed.mapped()
        facts = getattr(source, "facts", None)
        enough = facts is not None and set(self.keys) <= set(facts(0))
        self._facts: Callable[[int], Mapping[str, Any]] = facts if facts is not None and enough else source.__getitem__

    def __len__(self) -> int:
        """Number of images."""
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        """Return one image's latents and its other annotations."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several, which costs a tenth of asking for each of them."""
        count = len(self)
        if any(not 0 <= index < count for index in indices):
            raise IndexError(f"items {list(indices)} of {count}")
        rows = np.add.outer(indices, count * np.arange(self.versions))
        latents = self.packed.floats(self._latents[rows]).unbind()
        return [{**self._facts(index), self.key: latent} for index, latent in zip(indices, latents, strict=True)]

    def __reduce__(self) -> tuple[type[CachedLatents], tuple[SourceDataset, Path, str, tuple[str, ...]]]:
        """A process that is started again maps the file itself; a pickled map would be a copy of the whole."""
        return CachedLatents, (self.source, self.path, self.key, self.keys)


def cache_latents(
    items: SourceDataset,
    encoder: LatentEncoder,
    how: LatentCacheOptions | None = None,
    progress: Progress | None = None,
) -> tuple[Path, bool]:
    """Return the file of the encoder's output for every item, and whether it existed; else it is written now.

    After an interruption, the next call continues with the missing part. Several processes that need the same
    file wait for the first of them.

    Args:
        progress: Called as progress(done, total), after every batch.

    Raises:
        DataError: Items that cannot be read, or no items.
        ShapeError: Items without pixels that can be encoded, or of several sizes.
        NonFinite: The encoder gives NaN or infinite numbers.
        OutputError, OutOfResources: The place cannot be written, or the disk is full.
    """
    how = how or LatentCacheOptions()
    facts = _facts(items, encoder, how)
    path = _folder(how) / f"{cache_key(facts)}.safetensors"
    with _alone(path):
        if _whole(path, facts):
            return path, True
        parts = path.with_suffix(f".{how.batch}.parts")
        for first in range(0, len(items), how.batch):
            rows = range(first, min(first + how.batch, len(items)))
            _part(parts / f"{first}.safetensors", items, rows, encoder, how)
            if progress:
                progress(rows.stop, len(items))
        _join(path, parts, items, encoder, how, facts)
        shutil.rmtree(parts, ignore_errors=True)
    return path, False


def cache_key(facts: Mapping[str, Any]) -> str:
    """The name of what follows from these facts: a hash of them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


# ---------------------------------------------------------------------- the file and its parts


def _facts(items: SourceDataset, encoder: LatentEncoder, how: LatentCacheOptions) -> dict[str, Any]:
    """Everything that the content of a file follows from."""
    if not len(items):
        raise DataError("a data set without images has no latents")
    pixels = _unit(items[0], 0, how.key)
    return {
        "version": _VERSION,
        "data": dataset_fingerprint(
            items.source if isinstance(items, ControlImageDataset) else items
        ),  # a hint changes no latent
        "encoder": encoder.identity,
        "key": how.key,
        "pixels": list(pixels.shape[1:]),
        "dtype": str(how.dtype).removeprefix("torch."),
        "mirrored": how.mirrored,
        "moments": encoder.moments,
    }


def _folder(how: LatentCacheOptions) -> Path:
    return cache_folder() / "latents" if how.folder is None else how.folder


def _whole(path: Path, facts: Mapping[str, Any]) -> bool:
    """Return True if the file is complete and its metadata match."""
    try:
        return open_latent_file(path).metadata.get("made_from") == json.dumps(facts, sort_keys=True)
    except DataError:
        return False


def _part(path: Path, items: SourceDataset, rows: range, encoder: LatentEncoder, how: LatentCacheOptions) -> None:
    """Encodes some items into a file of their own, unless an earlier run did."""
    if path.exists():
        with suppress(SafetensorError, OSError, KeyError):
            if load_file(path)[LATENTS].shape[1] == len(rows):
                return
    there = [items[index] for index in rows]
    pixels = torch.cat([_unit(item, index, how.key) for item, index in zip(there, rows, strict=True)])
    versions = [pixels, pixels.flip(-1)] if how.mirrored else [pixels]
    latents = torch.stack([encoder.encode(version).detach().cpu().to(how.dtype) for version in versions])
    if latents.ndim != 5 or latents.shape[1] != len(rows) or latents.shape[2] % encoder.moments:
        wanted = f"({len(rows)}, {encoder.moments} * C, h, w)"
        raise ShapeError(f"the encoder makes {tuple(latents.shape[1:])} of {tuple(pixels.shape)}; must be {wanted}")
    if not bool(torch.isfinite(latents).all()):
        bad = [
            row
            for row, version in zip(rows, latents.movedim(1, 0), strict=True)
            if not bool(torch.isfinite(version).all())
        ]
        raise NonFinite(
            f"item {bad[0]}: the encoder makes NaN or infinite numbers of it, as {how.dtype}; look at the image, and "
            "at the encoder's weights"
        )
    held = {LATENTS: latents}
    if all(isinstance(item.get("label"), int) for item in there):
        held[LABELS] = torch.tensor([item["label"] for item in there])
    write_atomically(path, tensor_bytes(held))


def _join(
    path: Path,
    parts: Path,
    items: SourceDataset,
    encoder: LatentEncoder,
    how: LatentCacheOptions,
    facts: Mapping[str, Any],
) -> None:
    """Makes one file of all parts: every image as it is, then every image mirrored."""
    files = [parts / f"{first}.safetensors" for first in range(0, len(items), how.batch)]
    versions = 2 if how.mirrored else 1
    labels = [load_file(file).get(LABELS) for file in files]
    present = [values for values in labels if values is not None]
    classes = getattr(items, "classes", None)

    def chunks() -> Iterator[Tensor]:
        for version in range(versions):
            for file in files:
                yield load_file(file)[LATENTS][version]

    metadata = {
        "moments": str(encoder.moments),
        "versions": str(versions),
        "made_from": json.dumps(facts, sort_keys=True),
    }
    write_latents(
        path,
        chunks(),
        labels=torch.cat(present * versions) if len(present) == len(files) else None,
        classes=classes if len(present) == len(files) else None,
        scale=list(encoder.scale),
        shift=list(encoder.shift),
        metadata=metadata,
        force=True,  # an existing file of this name is incomplete
    )


def _versions(file: LatentFile, count: int) -> int:
    versions = int(file.metadata.get("versions", "1"))
    if file.shape[0] != versions * count:
        raise DataError(
            f"{file.path}: {file.shape[0]} latents for {count} items in {versions} versions; "
            "they are not of this data: delete the file, it is made again"
        )
    return versions


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process makes this file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise OutputError(
            f"{path.parent}: cannot be written ({problem.strerror}); set UNVEIL_CACHE to another folder"
        ) from problem
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # which also unlocks


def _unit(item: Mapping[str, Any], index: int, name: str) -> Tensor:
    """The pixels of an item, float32 (1, C, H, W) in [-1, 1]."""
    pixels = item.get(name)
    if not isinstance(pixels, Tensor) or pixels.ndim != 3:
        raise ShapeError(f"item {index}: {name!r} is not an image (C, H, W); only images are encoded")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise ShapeError(f"item {index}: {name!r} is {pixels.dtype}; must be uint8 or floats in [-1, 1]")
    return (to_unit(pixels) if pixels.dtype == torch.uint8 else pixels.float())[None]
