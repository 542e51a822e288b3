"""Latents packed in one safetensors file: mapped into memory, read one by one, written chunk by chunk.

- `latents`: float16, bfloat16 or float32 (N, C, H, W);
- `labels`: int64 (N,), where they are known;
- metadata: `scale` and `shift`, each a number or a JSON list of one per channel, `classes`, a JSON list of names, and
  `moments`: 2 where the first half of the channels are means and the second logarithms of variances, of which the
  means are the latents; other keys are kept unchanged.

The input of a network is x0 = (latents - shift) * scale. Other tensors in the file are left alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from unveil.data.registry import data_kind
from unveil.data.tensor_dataset import Split, stable_hash
from unveil.errors import DataError, NonFinite, RecipeError, ShapeError
from unveil.errors import did_you_mean as near
from unveil.io.console import one_line
from unveil.io.files import refuse_overwrite, staged
from unveil.types import Item

LATENTS, LABELS = "latents", "labels"  # the tensors, and the first of them the item's key
# As the format names them; numpy has no bfloat16, whose bits are read as integers.
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_BITS = {"F16": "<f2", "BF16": "<i2", "F32": "<f4"}
_OURS = ("scale", "shift", "classes")  # keys of the metadata that mean something here
_MOST = 10**15  # latents that the header leaves room to count while they are written
_REMEDY = "write it again with unveil.data.write_latents"


@dataclass(frozen=True)
class LatentsConfig:
    """One safetensors file of latents, with their labels where they are known.

    path: the file; `write_latents` writes such files.
    val_fraction: the share of the latents (chosen by a hash of their place in the file) that never trains.
    """

    path: str
    val_fraction: float = 0.05
    kind: Literal["latents"] = "latents"

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise RecipeError(f"val_fraction {self.val_fraction}: a share, at least 0 and below 1")


class LatentFile(NamedTuple):
    """A file of latents by its header.

    Attributes:
        dtype: Type as named by the format.
        shape: (N, moments * C, H, W).
        start: The byte that the latents begin at, and `labels` that of the labels; None: there are none.
        others: Names of the tensors that are left alone.
    """

    path: Path
    dtype: str
    shape: tuple[int, int, int, int]
    start: int
    labels: int | None
    classes: list[str] | None
    scale: Tensor  # (C or 1, 1, 1), and the shift too
    shift: Tensor
    metadata: dict[str, str]
    others: list[str]
    moments: int

    @property
    def latent(self) -> tuple[int, int, int]:
        """The shape of one that a network sees, (C, H, W)."""
        return (self.shape[1] // self.moments, *self.shape[2:])

    def mapped(self) -> np.ndarray:
        """All latents as numbers of `_BITS`; a page is read when it is first used, and shared by all processes."""
        return np.memmap(self.path, _BITS[self.dtype], "r", self.start, self.shape)

    def mapped_labels(self) -> np.ndarray | None:
        """All labels, likewise."""
        return None if self.labels is None else np.memmap(self.path, "<i8", "r", self.labels, self.shape[:1])

    def x0(self, bits: np.ndarray) -> Tensor:
        """Return rows of `mapped` as the network sees them, float32 (..., C, H, W)."""
        x0 = self.floats(bits).narrow(-3, 0, self.latent[0])
        moved = self.shift.any() or self.scale.ne(1).any()  # each is a pass over memory, and most files need neither
        return x0.sub_(self.shift).mul_(self.scale) if moved else x0

    def floats(self, bits: np.ndarray) -> Tensor:
        """Rows of `mapped` as they were written, float32 (..., moments * C, H, W)."""
        return torch.from_numpy(np.require(bits, None, "W")).view(DTYPES[self.dtype]).float()  # the map is read-only


@data_kind("latents", LatentsConfig, has_images=False)
class Latents(Dataset[Item]):
    """Latents of one part: "latents" float32 (C, H, W), shifted and scaled, and "label" where they are known.

    Their part is a hash of their place: what is added to the end of a file moves no other.

    Attributes:
        classes: The name of each label, or None.
        metadata: Complete metadata of the file.

    Raises DataError: see `open_latent_file`; or the part would be empty.
    """

    def __init__(self, config: LatentsConfig, part: Split = "train") -> None:
        self.config = config
        self.part: Split = part
        self.packed = open_latent_file(Path(config.path).expanduser())
        self.classes = self.packed.classes
        self.metadata = self.packed.metadata
        self._latents, self._labels = self.packed.mapped(), self.packed.mapped_labels()
        out = _held_out(len(self._latents), config.val_fraction)
        self.rows = np.flatnonzero(out if part == "held-out" else ~out)
        if not len(self.rows):
            raise DataError(
                f"{config.path}: no latents for the {part} part of {len(out)} (val_fraction {config.val_fraction:g}); "
                "use more of them, or another val_fraction"
            )

    def __len__(self) -> int:
        """Number of latents."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        """One of them, and its label where there is one."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Several, which costs a tenth of asking for each of them."""
        rows = self.rows[indices]
        latents = self.packed.x0(self._latents[rows]).unbind()
        if self._labels is None:
            return [{LATENTS: latent} for latent in latents]
        return [
            {LATENTS: latent, "label": label}
            for latent, label in zip(latents, self._labels[rows].tolist(), strict=True)
        ]

    def __reduce__(self) -> tuple[type[Latents], tuple[LatentsConfig, Split]]:
        """A process that is started again maps the file itself; a pickled map would be a copy of the whole."""
        return Latents, (self.config, self.part)


# ---------------------------------------------------------------------- reading


def open_latent_file(path: Path) -> LatentFile:
    """Open a file of latents; of its tensors, only the labels are read.

    Raises:
        DataError: No such file, cut short, no safetensors; no latents; a wrong type, rank or number; labels that are
            none of the classes; metadata that mean nothing. The file and what to do are named.
    """
    _check_there(path)
    try:
        with safe_open(path, "np") as file:  # checks the header against the file's length, and reads no tensor
            metadata = dict(file.metadata() or {})
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            tensors: dict[str, Any] = json.loads(file.read(start - 8))
    except (SafetensorError, ValueError) as problem:
        raise DataError(
            f"{path}: not a whole safetensors file ({problem}); it was cut short, or is something else: "
            f"copy it again, or {_REMEDY}"
        ) from problem
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror or problem}); check its permissions") from problem
    tensors.pop("__metadata__", None)
    if LATENTS not in tensors:
        held = ", ".join(tensors) or "nothing"
        raise DataError(f"{path}: holds {held}, and no tensor {LATENTS!r}{near(LATENTS, [*tensors])}; {_REMEDY}")
    dtype, shape = tensors[LATENTS]["dtype"], tuple(tensors[LATENTS]["shape"])
    if dtype not in DTYPES or len(shape) != 4 or 0 in shape:
        raise DataError(
            f"{path}: {LATENTS} of {dtype} {shape}; must be {', '.join(DTYPES)} (N, C, H, W), none of them 0: {_REMEDY}"
        )
    moments = _moments(path, metadata, shape[1])
    opened = LatentFile(
        path,
        dtype,
        shape,
        start + tensors[LATENTS]["data_offsets"][0],
        start + tensors[LABELS]["data_offsets"][0] if LABELS in tensors else None,
        _classes(path, metadata),
        _numbers(path, metadata, "scale", shape[1] // moments),
        _numbers(path, metadata, "shift", shape[1] // moments),
        metadata,
        [name for name in tensors if name not in (LATENTS, LABELS)],
        moments,
    )
    _check_labels(opened, tensors.get(LABELS))
    return opened


def _check_there(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: a folder; give the safetensors file that holds the latents (in a recipe: data.path)")
    if not path.exists():
        beside = (
            [sibling.name for sibling in path.parent.iterdir() if sibling.is_file()] if path.parent.is_dir() else []
        )
        raise DataError(
            f"{path}: no such file{near(path.name, beside)}; give a safetensors file of latents, or {_REMEDY}"
        )


def _check_labels(opened: LatentFile, tensor: Mapping[str, Any] | None) -> None:
    if tensor is None:
        return
    count, classes = opened.shape[0], opened.classes
    if tensor["dtype"] != "I64" or tensor["shape"] != [count]:
        raise DataError(
            f"{opened.path}: {LABELS} of {tensor['dtype']} {tuple(tensor['shape'])}; must be I64 ({count},), one for "
            f"each of the {LATENTS}: {_REMEDY}"
        )
    labels = opened.mapped_labels()
    assert labels is not None
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= len(classes)):
        allowed = "0 and up" if classes is None else f"0 to {len(classes) - 1}, as there are classes"
        raise DataError(f"{opened.path}: {LABELS} {low} to {high}; must be {allowed}: {_REMEDY}")


def _classes(path: Path, metadata: Mapping[str, str]) -> list[str] | None:
    if "classes" not in metadata:
        return None
    names = _json(metadata["classes"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: metadata classes = {_short(metadata['classes'])}; must be a JSON list: {_REMEDY}")
    return names


def _moments(path: Path, metadata: Mapping[str, str], channels: int) -> int:
    """Return the numbers stored per latent value: 1, or 2 for mean and log-variance."""
    stated = metadata.get("moments", "1")
    if stated not in ("1", "2") or channels % int(stated):
        allowed = "must be 1, or 2 where the channels are even in number"
        raise DataError(f"{path}: metadata moments = {_short(stated)} of {channels} channels; {allowed}: {_REMEDY}")
    return int(stated)


def _numbers(path: Path, metadata: Mapping[str, str], key: str, channels: int) -> Tensor:
    """The scale or the shift, (1, 1, 1) or (C, 1, 1), to be multiplied with latents (..., C, H, W)."""
    if key not in metadata:
        return torch.full((1, 1, 1), 1.0 if key == "scale" else 0.0)
    stated = _json(metadata[key])
    values = stated if isinstance(stated, list) else [stated]
    whole = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    if not whole or len(values) not in (1, channels) or (key == "scale" and 0 in values):
        raise DataError(
            f"{path}: metadata {key} = {_short(metadata[key])}; must be a number, or a JSON list of one for each of "
            f"the {channels} channels{', none of them 0' if key == 'scale' else ''}: {_REMEDY}"
        )
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)


@lru_cache(maxsize=4)  # both splits need it, and a million hashes take a second
def _held_out(count: int, share: float) -> np.ndarray:
    """Return the mask of held-out latents, (N,); at least one, if share > 0 and there are two."""
    if not share:
        return np.zeros(count, bool)
    ranked = np.fromiter((stable_hash(f"{LATENTS} {row}") for row in range(count)), np.uint64, count)
    chosen = ranked < np.uint64(share * 2**64)
    if not chosen.any() and count > 1:
        chosen[ranked.argmin()] = True
    return chosen


def _json(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


# ---------------------------------------------------------------------- writing


def write_latents(
    path: str | os.PathLike[str],
    chunks: Iterable[Tensor],
    *,
    labels: Tensor | None = None,
    classes: Sequence[str] | None = None,
    scale: float | Sequence[float] = 1.0,
    shift: float | Sequence[float] = 0.0,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
) -> Path:
    """Writes latents to one file as they come, whole or not at all; no more than a chunk is in memory.

    Args:
        chunks: (n, C, H, W) each, all of one type (float16, bfloat16 or float32) and one (C, H, W).
        labels: int64 (N,), of all latents.
        classes: The name of each label.
        scale, shift: x0 = (latents - shift) * scale has about unit variance; one number, or one per channel.
        metadata: Other metadata, such as the encoder's hash; kept unchanged.

    Raises:
        ShapeError: Chunks differ or are not latents, or the numbers of labels and latents differ.
        DataError: A scale or a shift that is neither a number nor one per channel, or a scale of 0.
        NonFinite: NaN or infinite latents; the chunk is named.
        RecipeError: Metadata under a key that has a meaning, or labels beyond the classes.
        OutputError: A file of that name is there and `force` is not set, or the place cannot be written.
        OutOfResources: The disk is full.
    """
    path = refuse_overwrite(path, force)
    entries = _metadata(labels, classes, scale, shift, metadata or {})
    with staged(path) as temporary:
        with open(temporary, "xb") as file:
            _stream(file, chunks, labels, entries, path)
        refuse_overwrite(path, force)  # encoding may have taken hours
    return path


def _metadata(
    labels: Tensor | None,
    classes: Sequence[str] | None,
    scale: float | Sequence[float],
    shift: float | Sequence[float],
    others: Mapping[str, str],
) -> dict[str, str]:
    for key, value in others.items():
        if key in _OURS:
            raise RecipeError(f"metadata {key} = {value!r}: give it as the argument {key}; other keys are free")
    if labels is not None and (labels.dtype != torch.int64 or labels.ndim != 1 or not len(labels)):
        raise ShapeError(f"labels {labels.dtype} {tuple(labels.shape)}: must be torch.int64 (N,), at least one")
    if labels is not None and (int(labels.min()) < 0 or (classes and int(labels.max()) >= len(classes))):
        allowed = f"0 to {len(classes) - 1}, as there are classes" if classes else "0 and up"
        raise RecipeError(f"labels {int(labels.min())} to {int(labels.max())}: must be {allowed}")
    entries = dict(others)
    for key, stated, usual in (("scale", scale, 1.0), ("shift", shift, 0.0)):
        if stated != usual:
            entries[key] = json.dumps(list(stated) if isinstance(stated, Sequence) else float(stated))
    return entries if classes is None else entries | {"classes": json.dumps(list(classes))}


def _stream(
    file: BinaryIO, chunks: Iterable[Tensor], labels: Tensor | None, metadata: Mapping[str, str], path: Path
) -> None:
    """Writes the header's room, the labels, the latents, and then the header, which counts them."""
    count, first, room = 0, torch.empty(0), 0
    for number, chunk in enumerate(chunks):
        first = chunk[:0] if number == 0 else first
        _check_chunk(number, chunk, first)
        if number == 0:
            width = chunk.shape[1] // _moments(path, metadata, chunk.shape[1])
            for key in ("scale", "shift"):
                _numbers(path, metadata, key, width)
            room = len(_header(chunk, _MOST, 0 if labels is None else _MOST, metadata)) + 7 & ~7
            file.write(bytes(8 + room))
            file.write(b"" if labels is None else labels.cpu().contiguous().numpy().astype("<i8").tobytes())
        plain = chunk.detach().cpu().contiguous()
        file.write((plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain).numpy().tobytes())
        count += len(chunk)
    if not count:
        raise ShapeError("no latents: at least one is needed")
    if labels is not None and len(labels) != count:
        raise ShapeError(f"{len(labels)} labels for {count} latents: must be as many")
    file.seek(0)
    header = _header(first, count, 0 if labels is None else count, metadata)
    file.write(room.to_bytes(8, "little") + header.ljust(room))


def _check_chunk(number: int, chunk: Tensor, first: Tensor) -> None:
    if chunk.ndim != 4 or chunk.dtype not in DTYPES.values() or 0 in chunk.shape[1:]:
        allowed = ", ".join(map(str, DTYPES.values()))
        raise ShapeError(f"chunk {number}: {chunk.dtype} {tuple(chunk.shape)}; must be (n, C, H, W) of {allowed}")
    if chunk.dtype != first.dtype or chunk.shape[1:] != first.shape[1:]:
        raise ShapeError(
            f"chunk {number}: {chunk.dtype} {tuple(chunk.shape[1:])}, the first {first.dtype} "
            f"{tuple(first.shape[1:])}; all must be alike"
        )
    if not bool(torch.isfinite(chunk).all()):
        raise NonFinite(f"chunk {number}: holds NaN or infinite latents; encode these images in float32")


def _header(like: Tensor, count: int, labels: int, metadata: Mapping[str, str]) -> bytes:
    """The header of that many latents like these behind that many labels: 8 bytes each."""
    dtype = {torch_dtype: name for name, torch_dtype in DTYPES.items()}[like.dtype]
    shape = [count, *like.shape[1:]]
    stop = 8 * labels + math.prod(shape) * like.element_size()
    tensors: dict[str, Any] = {"__metadata__": dict(metadata)}
    if labels:
        tensors[LABELS] = {"dtype": "I64", "shape": [labels], "data_offsets": [0, 8 * labels]}
    tensors[LATENTS] = {"dtype": dtype, "shape": shape, "data_offsets": [8 * labels, stop]}
    return json.dumps(tensors).encode()


_CHUNK = 1024  # latents read at once
_NAMED = 20  # classes, and bad latents, that the text names
_LOW, _HIGH = 0.5, 2.0  # deviations of x0 that a process, made for about 1, bears


@dataclass(frozen=True)
class LatentsReport:
    """Result of checking a file of latents.

    Attributes:
        shape: Shape of one latent, (C, H, W), as the network gets it.
        classes: Number of latents by class name or number; empty without labels.
        mean, deviation: Mean and standard deviation of each channel, shifted and scaled.
        nonfinite: Places of latents with NaN or infinite numbers, which are left out of both.
        others: Tensors of the file that are not read.
    """

    path: str
    count: int
    dtype: str
    shape: tuple[int, ...]
    classes: dict[str, int]
    mean: list[float]
    deviation: list[float]
    nonfinite: list[int]
    metadata: dict[str, str]
    others: list[str]

    @property
    def total_std(self) -> float:
        """Standard deviation over all channels, about 1 where scale and shift fit; NaN where nothing is finite."""
        return math.sqrt(sum(deviation**2 for deviation in self.deviation) / len(self.deviation))

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON; a value that is not finite is null."""
        numbers = {name: [_plain(number) for number in getattr(self, name)] for name in ("mean", "deviation")}
        return {**asdict(self), **numbers, "spread": _plain(self.total_std)}

    def to_text(self) -> str:
        """For a person."""
        counted = [f"{one_line(name)} {count}" for name, count in self.classes.items()]
        more = f", and {len(counted) - _NAMED} more" if len(counted) > _NAMED else ""
        lines = [
            f"{one_line(self.path)}: {self.count} latents of shape {self.shape}, {self.dtype}",
            "classes      " + (", ".join(counted[:_NAMED]) + more if counted else "no labels"),
            "mean         " + ", ".join(f"{number:.3f}" for number in self.mean),
            "deviation    " + ", ".join(f"{number:.3f}" for number in self.deviation),
            *(f"metadata     {one_line(key)}: {one_line(text[:80])}" for key, text in self.metadata.items()),
        ]
        if self.others:
            lines.append("not read     " + ", ".join(map(one_line, self.others)))
        if self.nonfinite:
            places = ", ".join(map(str, self.nonfinite[:_NAMED]))
            lines.append(f"cannot be used: {len(self.nonfinite)} hold NaN or infinite numbers, such as {places}")
        if self.count > len(self.nonfinite) and not _LOW <= self.total_std <= _HIGH:
            lines.append(f"deviation {self.total_std:.3g}: a process is made for about 1; write the file with a scale")
        return "\n".join(lines)


def check_latents(path: Path, progress: Callable[[int, int], None] | None = None) -> LatentsReport:
    """Reads a file of latents from end to end. Changes nothing in it.

    Args:
        progress: Called as progress(done, total), now and then.

    Raises:
        DataError: See `latents.open_latent_file`.
    """
    file = open_latent_file(path.expanduser())
    latents, labels = file.mapped(), file.mapped_labels()
    count, channels = len(latents), file.latent[0]
    bad: list[int] = []
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for begin in range(0, count, _CHUNK):
        x0 = file.x0(latents[begin : begin + _CHUNK]).double()
        finite = torch.isfinite(x0).flatten(1).all(1)
        bad += (begin + (~finite).nonzero().flatten()).tolist()
        sums += torch.stack([x0[finite].sum((0, 2, 3)), x0[finite].square().sum((0, 2, 3))])
        if progress:
            progress(min(begin + _CHUNK, count), count)
    used = (count - len(bad)) * math.prod(file.latent[1:])
    mean, square = sums / used if used else torch.full_like(sums, math.nan)
    names = file.classes or []
    counts = np.bincount(labels, minlength=len(names)) if labels is not None else np.zeros(0, np.int64)
    return LatentsReport(
        path=str(path),
        count=count,
        dtype=file.dtype,
        shape=file.latent,
        classes={names[i] if names else str(i): int(count_of_class) for i, count_of_class in enumerate(counts)},
        mean=mean.tolist(),
        deviation=(square - mean.square()).clamp(min=0).sqrt().tolist(),
        nonfinite=bad,
        metadata=file.metadata,
        others=file.others,
    )


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
