"""Conversion of weights between formats: a published file or folder to the native one, and back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.checkpoints import loader, registry, safe_unpickle
from unveil.checkpoints.format import Format, LoadedCheckpoint
from unveil.checkpoints.overrides import ModelOverrides
from unveil.errors import RecipeError, UnsupportedFormat, WeightsError
from unveil.io import staging
from unveil.io.files import read_tensors
from unveil.model import build, model_folder
from unveil.model.config import ModelConfig

NATIVE = "ours"  # name of the native format
PICKLES = (b"PK\x03\x04", b"\x80")  # first bytes of files written by `torch.save`


class Conversion(NamedTuple):
    """Result of a conversion.

    Attributes:
        part: Part of the source that was converted.
        matched: Number of tensors that are in the result.
        unused: Keys of tensors that are not.
        notes: What the target format left out or added.
    """

    part: str
    matched: int
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Source(NamedTuple):
    """The weights that are converted, their format, and the part of the source that they are."""

    format: Format
    loaded: LoadedCheckpoint
    part: str


def convert(
    source: Path,
    out: Path,
    name: str = NATIVE,
    *,
    config: ModelConfig | None = None,
    overrides: ModelOverrides | None = None,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
) -> Conversion:
    """Convert weights from one format to another.

    A native model is written in the named format. A published one becomes native, unless its format and the named one
    hold the same parts.

    Args:
        source: Published file or folder, native folder, or name of a bundled model.
        out: File or folder to write.
        name: Name of the format that is not native, see `registry.format_names`.
        config: Configuration of a published file's model; None: the file's keys determine it.
        overrides: Settings that a file's keys do not determine.
        dtype: Type of the written weights.
        int8: Write int8 weights, with the scale of each row.

    Raises:
        WeightsError: The source is missing, damaged, of no known format, or a setting is missing.
        RecipeError: No format of this name, or one that cannot hold the model.
        OutputError: The place cannot be written.
    """
    named = registry.get_format(name)  # an unknown name is answered before anything is read
    if int8 and named.save_int8 is None:
        raise RecipeError(f"dtype int8: the layout {name} cannot be written so; choose float32, bfloat16 or float16")
    staging.recover(source)
    if not source.is_file():
        return _write(_open_folder(source), out, name, dtype, int8)
    with tempfile.TemporaryDirectory() as scratch:
        part, tensors = _read(source, Path(scratch))
        try:
            opened = _open_file(part, tensors, name, config, overrides)
        except WeightsError as problem:
            raise type(problem)(f"{source}: {problem}") from problem
        return _write(opened, out, name, dtype, int8)


def _open_folder(source: Path) -> _Source:
    entry = registry.detect_folder(source) if source.is_dir() else None
    if entry is None or entry.load_folder is None:
        entry = registry.get_format(NATIVE)
    if entry.unsupported is not None and (why := entry.unsupported(source)):
        raise UnsupportedFormat(f"{source}: {why}")
    if not entry.in_native_parts:
        title = entry.name if entry.describe is None else entry.describe(source)
        raise RecipeError(f"{source}: {title}, which runs from its folder as it is and is not converted")
    assert entry.load_folder is not None
    opened = entry.load_folder(source, torch.float32)
    native_model = entry.name == NATIVE and entry.kind == "model"
    return _Source(entry, opened, str(model_folder.resolve_checkpoint(source) if native_model else source))


def _open_file(
    part: str,
    tensors: Mapping[str, Tensor],
    name: str,
    config: ModelConfig | None,
    overrides: ModelOverrides | None,
) -> _Source:
    detected = registry.detect(tensors)
    if config is not None:
        entry = detected.format if detected is not None and detected.format.fill else registry.get_format(name)
        if entry.fill is None:
            raise RecipeError(f"format {entry.name!r}: needs no recipe; leave --recipe out")
        model = build(config)
        entry.fill(model, tensors)
        return _Source(entry, LoadedCheckpoint(model, len(tensors)), part)
    if detected is not None and detected.format.kind == "ControlNet":
        return _Source(detected.format, loader.load_detected(detected, tensors, overrides), part)
    try:
        loaded = loader.load_state(tensors, overrides)
    except WeightsError as problem:
        if detected is None or (detected.format.fill is not None and not detected.signature.instead):
            hint = "; or give --recipe: that of the model in the file, such as iddpm-cifar10"
            raise type(problem)(f"{problem}{hint}") from problem
        raise
    assert detected is not None  # as it was loaded
    return _Source(detected.format, loaded, part)


def _write(source: _Source, out: Path, name: str, dtype: torch.dtype, int8: bool) -> Conversion:
    target = _target(source.format, name, out)
    _check_target(target, out)
    model = source.loaded.model.to(torch.float32 if int8 else dtype)
    save = target.save_int8 if int8 and target.save_int8 is not None else target.save
    assert save is not None  # as checked
    try:
        saved = save(model, out)
    except RecipeError as problem:
        if not target.cannot_hold:
            raise
        raise RecipeError(f"{problem}; the format {target.name} cannot hold {target.cannot_hold}") from problem
    exported = source.format.converts_to is None and target.name != NATIVE
    matched = saved.tensors if exported else source.loaded.matched
    return Conversion(source.part, matched, source.loaded.unused, saved.notes)


def _target(source: Format, name: str, out: Path) -> Format:
    """Return the format to write: the named one if it holds the source's parts, that of the file's ending, or ours."""
    if source.converts_to is None:
        return registry.get_format(name)
    targets = [registry.get_format(target, source.kind) for target in source.converts_to]
    chosen = [target for target in targets if target.name == name]
    chosen += [target for target in targets if out.suffix and out.suffix in target.endings]
    return chosen[0] if chosen else registry.get_format(NATIVE, source.kind)


def _check_target(target: Format, out: Path) -> None:
    """Check that a format can be written to a path.

    Raises:
        RecipeError: It is only read, or has other endings.
    """
    if target.save is None:
        written = [entry.name for entry in registry.formats() if entry.kind == target.kind and entry.save is not None]
        reason = f"layout {target.name!r} is only read; written are {', '.join(sorted(written))}"
        raise RecipeError(f"{out}: {target.read_only or reason}")
    if target.endings and out.suffix not in target.endings:
        raise RecipeError(f"{out}: the layout {target.name} is one file; end its name in {' or '.join(target.endings)}")


def _read(source: Path, scratch: Path) -> tuple[str, dict[str, Tensor]]:
    """Return which part of a file is read, and its tensors; a pickle is read in a separate process."""
    try:
        with open(source, "rb") as file:
            start = file.read(9)
    except OSError as problem:
        raise WeightsError(f"{source}: cannot be read ({problem.strerror}); check the path") from problem
    if start[8:] == b"{" or not start.startswith(PICKLES):  # the length of a safetensors header may begin as a pickle
        return "the file", read_tensors(source)
    inside = scratch / "tensors.safetensors"
    part = safe_unpickle.tensors_of(source, inside)
    return part, read_tensors(inside)
