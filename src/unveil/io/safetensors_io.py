"""Reading and writing safetensors files: what a file is, is decided by its content and never by its name."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from unveil.errors import NonFinite, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 8  # keys that an error lists
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_BITS |= {"U16": 16, "U32": 32, "U64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8}


class TensorEntry(NamedTuple):
    """One tensor as the header describes it: type ("F32"), shape, and where its bytes lie after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Header(NamedTuple):
    """A safetensors file without its numbers."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a safetensors file; no tensor is read, whatever the file's size.

    Raises:
        WeightsError: missing, truncated, or something else under this name (a pickle is named and not opened).
    """
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(MAX_HEADER, total - 8):
                raise WeightsError(_not_safetensors(path, start, total))
            text = file.read(length)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    try:
        raw = json.loads(text)
        metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
        tensors = {name: _stored(entry) for name, entry in raw.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise WeightsError(_not_safetensors(path, start + text[:8], total)) from problem
    needed = 8 + length + max((t.stop for t in tensors.values()), default=0)
    if needed != total:
        raise WeightsError(
            f"{path}: {total} bytes, its header asks for {needed}; the file is damaged or was cut short: copy it again"
        )
    return Header(tensors, metadata)


def read_tensors(path: Path, apart: Collection[str] = ()) -> dict[str, Tensor]:
    """Every tensor of the file, mapped into memory: a page is read when it is first used.

    Writing into one of them does not change the file.

    Args:
        apart: keys of those that are only read and not kept: they lie in a mapping of their own, so that their pages
            are given back with the last of them.

    Raises:
        WeightsError: missing, truncated, or not safetensors; nothing in the file is ever executed.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    read_header(path)  # its messages are better than the library's
    try:
        tensors = load_file(path)
        if passing := [key for key in apart if key in tensors]:
            with safe_open(path, "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in passing}
        return tensors
    except (SafetensorError, OSError) as problem:
        raise WeightsError(f"{path}: damaged safetensors file ({problem}); copy it again") from problem


def read_state(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a file of tensors only: safetensors, or a dict written by `torch.save`.

    Nothing in the file is executed: what is not a plain tensor is refused.

    Raises:
        WeightsError: missing, damaged, or a file that holds more than a dict of tensors.
    """
    import torch

    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read ({problem.strerror}); name a file of weights") from problem
    if start != b"PK\x03\x04":
        return read_tensors(path)  # which names an old pickle as what it is
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # whatever the unpickler met
        raise WeightsError(
            f"{path}: a pickle of more than tensors, or damaged, so it was not opened; `unveil convert` reads "
            f"its tensors in its own process: unveil convert {path} OUT"
        ) from problem
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; use `unveil convert`")
    state = cast(dict[object, object], content)
    others = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise WeightsError(
            f"{path}: holds {', '.join(others[:3])} beside tensors; `unveil convert` finds the weights inside: "
            f"unveil convert {path} OUT"
        )
    return {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the tensors as they are, from any device; two names of one tensor become two copies.

    Args:
        metadata: Additional metadata of the header.

    Raises:
        OSError: with the system's own error number, which distinguishes a full disk from a forbidden one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    ready: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        if place in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # the format has no views
        seen.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    try:
        path.touch()
        mode = path.stat().st_mode  # as the user's umask has it; save_file makes files that only the owner reads
        save_file(ready, path, metadata={"format": "pt", "made_by": "unveil", **(metadata or {})})
        path.chmod(mode)
    except SafetensorError as problem:
        number = re.search(r"os error (\d+)", str(problem))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from problem


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Checks a state before it is published.

    Raises:
        NonFinite: names the tensors that hold NaN or infinity.
    """
    bad = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise NonFinite(
            f"{what} holds numbers that are not finite ({', '.join(bad[:SHOWN])}{more}) and is not saved; "
            "go on from the checkpoint before, with a lower learning rate"
        )


def _stored(entry: Mapping[str, object]) -> TensorEntry:
    dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[misc, arg-type]
    stored = TensorEntry(dtype, shape, start, stop)
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
        raise ValueError(f"{entry}: not a shape")
    if dtype in _BITS and stored.size * _BITS[dtype] != 8 * (stop - start):
        raise ValueError(f"{entry}: shape and bytes disagree")
    return stored


def _not_safetensors(path: Path, start: bytes, total: int) -> str:
    if total == 0:
        return f"{path}: an empty file; a safetensors file is needed: copy it again"
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return (
            f"{path}: a pickle (what torch.save writes), whatever its name says; it can run code and was not opened."
            " Convert it with `unveil convert`, or ask for a safetensors file"
        )
    return f"{path}: not a safetensors file, or one whose header is damaged; nothing was read: copy it again"


def _finite(tensor: Tensor) -> bool:
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach().float() if tensor.element_size() == 1 else tensor.detach())
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
