"""Files that are either whole or not there: every small output of the package is written through here."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from unveil.errors import AlreadyExists, Error, NonFinite, OutOfResources, OutputError, WeightsError
from unveil.io import staging

if TYPE_CHECKING:
    from torch import Tensor


_JUNK = (".DS_Store", "Thumbs.db")  # of systems that show folders
_FRAME = re.compile(r"frame_\d+\.png")
_SAYS = ("model_index.json", "adapter_config.json", "config.json")  # what a folder is, in the layouts of others
_PARTS = {".json", ".safetensors", ".txt", ".model", ".md", ".yaml"}  # that it then may hold
_LEGAL = ("LICENSE", "NOTICE")
# The disk's own limits, as opposed to a path that was never going to work.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL = "the disk is full"  # the wording of every message
_LFS = b"version https://git-lfs"  # how the file begins that Git puts in the place of a large one
LFS_POINTER = (
    "a pointer of Git LFS, not the file itself; run `git lfs pull` in its repository, or download the file again"
)


def refuse_overwrite(path: str | os.PathLike[str], force: bool = False) -> Path:
    """Check that a path may be written, before the work whose result goes there.

    Raises:
        OutputError: Something is there and `force` is not set, or `force` would delete what no command wrote; a parent
            folder is a regular file, or the path has no last part.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise OutputError(f"{path}: names no file or folder; add a name")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise OutputError(f"{path}: {parent} is a file, not a folder; choose another place")
            break
    staging.recover(path)
    if not force and (path.is_symlink() or path.exists()):
        raise AlreadyExists(f"{path}: exists already and is not overwritten; choose another name or pass --force")
    refuse_foreign(path)
    return path


def refuse_foreign(folder: Path, verb: str = "replaced") -> None:
    """Refuses to replace a folder that holds more than the frames of a video, or the files of a model.

    Args:
        folder: The folder.
        verb: What would be done to it, for the error.

    Raises:
        OutputError: Names what else there is.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    every = (path for path in folder.rglob("*") if not path.is_dir() and path.name not in _JUNK)
    held = sorted(path.relative_to(folder).as_posix() for path in every)
    if (folder / "manifest.json").is_file():
        with suppress(OSError, ValueError, KeyError, TypeError):
            ours = {"manifest.json", "recipe.yaml", *json.loads((folder / "manifest.json").read_bytes())["files"]}
            held = [name for name in held if name not in ours]
    elif any((folder / name).is_file() for name in _SAYS):
        held = [name for name in held if Path(name).suffix not in _PARTS and Path(name).name not in _LEGAL]
    else:
        held = [name for name in held if not _FRAME.fullmatch(name)]
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise OutputError(f"{folder}: would be {verb}, and holds {held[0]}{more}; choose another name")


@contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name beside `path` to write a file or a folder under; it takes the place of `path` when all went well.

    A reader, or a crash, finds the old content or the new one, never a part. Missing parent folders are created. A
    file or folder of this path is removed afterwards, and what killed processes have left in the parent folder before.

    Raises:
        OutputError: The place cannot be written.
        OutOfResources: The disk is full; what was there before is untouched.
    """
    path = Path(path)
    temporary = staging.temporary_path(path)
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        staging.recover(path)
        staging.sweep_sometimes(path.parent)
        yield temporary
        staging.publish(temporary, path)
    except OSError as problem:
        if isinstance(problem, Error):
            raise
        raise explained(path, problem) from problem
    finally:
        staging.remove(temporary)


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Writes the file whole: a reader, or a crash, finds the old content or the new one, never a part.

    Missing parent folders are made. Text is written as UTF-8.

    Raises:
        OutputError: The place cannot be written.
        OutOfResources: The disk is full; what was there before is untouched.
    """
    with staged(path) as temporary, open(temporary, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_lfs_pointer(start: bytes) -> bool:
    """Return True if a file begins as a pointer of Git LFS, of at least 23 bytes (Git LFS specification, version 1)."""
    return start.startswith(_LFS)


def require_content(path: Path) -> None:
    """Refuse a pointer of Git LFS in the place of a file; a file that is missing or cannot be read is left to others.

    Raises:
        WeightsError: The file is such a pointer.
    """
    with suppress(OSError), open(path, "rb") as file:
        if is_lfs_pointer(file.read(len(_LFS))):
            raise WeightsError(f"{path}: {LFS_POINTER}")


def explained(path: Path, problem: OSError) -> OutputError | OutOfResources:
    """Return the error for a path that could not be written, with its remedy."""
    if problem.errno in _FULL:
        return OutOfResources(f"{path}: {FULL} ({problem.strerror}); free some space, or write elsewhere")
    return OutputError(f"{path}: cannot be written ({problem.strerror or problem}); choose another place")


SHOWN = 8  # keys that an error lists
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors format
MAX_PICKLE = 1 << 24  # bytes of the pickle of a file of torch.save, which has names and shapes only
MAX_TENSORS = 100_000  # of a file; the largest published models have about 10,000
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
_BITS |= {"U16": 16, "U32": 32, "U64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8}
_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


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
        WeightsError: Missing, truncated, or something else under this name (a pickle is named and not opened).
    """
    try:
        with open(path, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= length <= min(MAX_HEADER, total - 8):
                raise WeightsError(_not_safetensors(path, start + file.read(len(_LFS)), total))
            text = file.read(length)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read ({problem.strerror}); check the path") from problem
    try:
        raw = json.loads(text)
        if isinstance(raw, dict) and len(raw) > MAX_TENSORS:
            raise WeightsError(f"{path}: {len(raw):,} tensors: the limit is {MAX_TENSORS:,}; do not use this file")
        metadata = {str(k): str(v) for k, v in raw.pop("__metadata__", {}).items()}
        tensors = {name: _stored(entry) for name, entry in raw.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        if isinstance(problem, WeightsError):
            raise
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
        apart: Keys of those that are only read and not kept: they lie in a mapping of their own, so that their pages
            are given back with the last of them.

    Raises:
        WeightsError: Missing, truncated, or not safetensors; nothing in the file is ever executed.
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
        WeightsError: Missing, damaged, or a file that holds more than a dict of tensors.
    """
    import torch

    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read ({problem.strerror}); name a file of weights") from problem
    if start != b"PK\x03\x04":
        return read_tensors(path)  # which names an old pickle as what it is
    require_stored(path)
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
    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    require_whole(path, tensors)
    return tensors


def require_stored(path: Path) -> None:
    """Check the members of a file of `torch.save` before they are read: it stores them, without compression.

    Raises:
        WeightsError: A member is compressed and could unpack to any size, members overlap, the pickle of the names is
            too large, or the file is not a zip archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise WeightsError(f"{path}: damaged ({problem}); copy it again") from problem
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise WeightsError(
                f"{path}: {member.filename} is compressed, {member.compress_size:,} bytes for {member.file_size:,}; "
                "torch.save never compresses, so the file was not read: ask for a safetensors file"
            )
        if member.filename.endswith("data.pkl") and member.file_size > MAX_PICKLE:
            raise WeightsError(
                f"{path}: {member.filename} has {member.file_size:,} bytes, without a tensor: the limit is "
                f"{MAX_PICKLE:,}; ask for a safetensors file"
            )
    if len(members) > MAX_TENSORS or sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError(f"{path}: its members overlap, or are more than {MAX_TENSORS:,}; ask for a safetensors file")


def require_whole(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that no tensor has more elements than are stored: one number with stride 0 can have any shape.

    Raises:
        WeightsError: Names the tensor, its shape and the stored bytes.
    """
    for name, tensor in tensors.items():
        needed = tensor.numel() * tensor.element_size()
        stored = tensor.untyped_storage().nbytes() if str(tensor.layout) == "torch.strided" else 0
        if needed > stored:
            raise WeightsError(
                f"{path}: the tensor {name!r} of shape {tuple(tensor.shape)} has {needed:,} bytes, of which {stored:,} "
                "are stored; ask for a safetensors file"
            )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file of tensors from any device; two names of one tensor become two copies.

    Equal tensors and metadata give equal bytes.

    Args:
        metadata: Additional metadata of the header.

    Raises:
        OSError: With the system's own error number, which distinguishes a full disk from a forbidden one.
        WeightsError: A tensor of a type that the format does not have.
    """
    with open(path, "wb") as file:
        for block in tensor_blocks(tensors, metadata):
            file.write(block)


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of the file of `write_tensors`."""
    return b"".join(tensor_blocks(tensors, metadata))


def tensor_blocks(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Iterator[memoryview]:
    """Yield the header of a safetensors file, and then the bytes of each tensor.

    Larger types come first, then names in order: every tensor is aligned to its type. The library of the format writes
    `__metadata__` in random order; here it is sorted.
    """
    import torch

    types = {getattr(torch, name): code for code, name in _TORCH_NAMES.items() if hasattr(torch, name)}
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    texts = {"format": "pt", "made_by": "unveil", **(metadata or {})}
    header: dict[str, object] = {"__metadata__": dict(sorted(texts.items()))}
    start = 0
    for name, tensor in ordered:
        if tensor.dtype not in types:
            raise WeightsError(f"{name}: {tensor.dtype} is not a type of safetensors; convert it to float32")
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": types[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(len(text) + 7 & ~7)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for _, tensor in ordered:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if plain.numel():
            yield plain.reshape(-1).view(torch.uint8).numpy().data


def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Checks a state before it is published.

    Raises:
        NonFinite: Names the tensors that hold NaN or infinity.
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
    if is_lfs_pointer(start):
        return f"{path}: {LFS_POINTER}"
    return f"{path}: not a safetensors file, or one whose header is damaged; nothing was read: copy it again"


def _finite(tensor: Tensor) -> bool:
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach().float() if tensor.element_size() == 1 else tensor.detach())
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
