"""Checkpoints as folders that are whole or absent.

A folder is written beside its final place under a temporary name: every file, `manifest.json` with the size and sha256
of each last, then one rename (`unveil.io.staging`). What is there under its own name was complete; what a crash left
behind is under another name and is swept by the next writer. Weights, optimiser and counters are safetensors, YAML and
JSON: nothing here can run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.conditioning.text_encoder import TextEncoder
from unveil.errors import OutputError, RecipeError, WeightsError
from unveil.io import staging
from unveil.io.files import refuse_foreign, require_content, require_finite, sha256, staged, write_tensors
from unveil.model.config import dump
from unveil.model.model_card import card
from unveil.types import ADDITIONS, BaseModel

if TYPE_CHECKING:
    from unveil.model.model import Model


FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST = 10_000_000  # bytes

# What a file of a checkpoint holds: text; plain values for .json; tensors by name for .safetensors.
Content = str | Mapping[str, Any]

_STEP = re.compile(r"step_(\d+)")
_log = logging.getLogger(__name__)


class ManifestEntry(NamedTuple):
    """Entry of a file in the manifest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Manifest of a folder. It is written last, so that its presence shows that the other files are complete.

    Attributes:
        kind: Kind of the folder, "model" or "training".
        step: Number of optimiser steps of the training.
        files: Size and hash of each file, by name inside the folder.
        versions: Versions of the libraries that wrote the folder.
        former_sha256: Former values of `identity` for the same tensors, before keys in model.yaml were renamed.
    """

    kind: str
    step: int
    files: Mapping[str, ManifestEntry]
    versions: Mapping[str, str]
    format: int = FORMAT
    former_sha256: Sequence[str] = ()


def step_name(step: int) -> str:
    """Name of the folder of a training checkpoint, such as step_000500."""
    return f"step_{step:06d}"


# ---------------------------------------------------------------------- writing


def save(
    folder: Path, files: Mapping[str, Content], *, kind: str = "model", step: int = 0, replace: bool = False
) -> Manifest:
    """Publish files as one folder, completely or not at all.

    Args:
        folder: Final path; missing parents are created.
        files: Content by name inside the folder, such as "ema/denoiser.safetensors"; the suffix determines the format.
        kind: Kind of the folder for the manifest.
        step: Number of optimiser steps for the manifest.
        replace: True if an existing folder is replaced.

    Raises:
        OutputError: The folder exists already, or it cannot be written.
        OutOfResources: The disk is full; nothing changed.
    """
    staging.recover(folder)
    if not replace and (folder.exists() or folder.is_symlink()):
        raise OutputError(f"{folder}: exists already and is not overwritten; choose another name or pass force")
    with staged(folder) as temporary:
        temporary.mkdir()
        entries = {name: _write(temporary, name, content) for name, content in files.items()}
        manifest = Manifest(kind, step, entries, versions())
        text = asdict(manifest) | {"files": {name: entry._asdict() for name, entry in entries.items()}}
        del text["former_sha256"]  # a new folder has no former identity
        _write(temporary, MANIFEST, text)
    return manifest


def prune(parent: Path, keep: int, spare: Path | None = None) -> None:
    """Delete all training checkpoints except the newest `keep`; call it after the newest is published.

    Args:
        spare: Checkpoint that is kept too.
    """
    for folder in checkpoints(parent)[max(keep, 1) :]:
        if folder != spare:
            with suppress(OSError):
                staging.discard(folder)


def versions() -> dict[str, str]:
    """Versions of the libraries that may matter when a checkpoint is read later."""
    import safetensors
    import torch

    import unveil

    return {
        "unveil": unveil.__version__,
        "torch": str(torch.__version__),
        "safetensors": safetensors.__version__,
        "python": platform.python_version(),
    }


# ---------------------------------------------------------------------- reading


def checkpoints(parent: Path) -> list[Path]:
    """Return the training checkpoints in a folder, newest first, without verifying them."""
    if not parent.is_dir():
        return []
    numbered = [(int(match[1]), path) for path in parent.iterdir() if (match := _STEP.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder, without checking the files that it names.

    Raises:
        WeightsError: The manifest is missing, damaged or of a later format.
    """
    staging.recover(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise WeightsError(
            f"{folder}: no {MANIFEST}, so this is not a saved model, or its writing never ended; choose another"
        )
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise ValueError("too large")
        raw = json.loads(path.read_bytes())
        if not isinstance(raw["format"], int) or raw["format"] > FORMAT:
            raise WeightsError(f"{path}: format {raw['format']!r}; this version reads up to {FORMAT}: update unveil")
        files = {str(name): ManifestEntry(int(e["size"]), str(e["sha256"])) for name, e in raw["files"].items()}
        former = tuple(map(str, raw.get("former_sha256", ())))
        manifest = Manifest(str(raw["kind"]), int(raw["step"]), files, dict(raw["versions"]), raw["format"], former)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        if isinstance(problem, WeightsError):
            raise
        raise WeightsError(
            f"{path}: damaged ({type(problem).__name__}: {problem}); use another checkpoint"
        ) from problem
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name:
            raise WeightsError(
                f"{path}: names the file {name!r}, which lies outside the folder; do not use this checkpoint"
            )
    return manifest


def verify(folder: Path) -> Manifest:
    """Read the manifest of a folder, and check the size and sha256 of every file.

    Raises:
        WeightsError: A file is missing or differs; there is a line for each, with the expected and the actual value.
    """
    manifest = read_manifest(folder)
    faults: list[str] = []
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.size:
                require_content(path)
                faults.append(f"{path}: {size} bytes, {entry.size} were written")
            elif (digest := sha256(path)) != entry.sha256:
                faults.append(f"{path}: sha256 {digest[:16]}..., {entry.sha256[:16]}... was written")
        except OSError as problem:
            faults.append(f"{path}: cannot be read ({problem.strerror})")
    if faults:
        raise WeightsError("\n".join(faults) + "\nthe checkpoint is damaged: copy it again, or use an earlier one")
    return manifest


def latest_valid(parent: Path, on_invalid: Callable[[Path, WeightsError], None] | None = None) -> Path | None:
    """Return the newest valid training checkpoint in `parent`, or None.

    Args:
        on_invalid: Function (folder, error) called for each newer checkpoint that is skipped; None: a warning is
            logged.
    """
    for folder in checkpoints(parent):
        try:
            verify(folder)
        except WeightsError as problem:
            if on_invalid is None:
                _log.warning("checkpoint passed over: %s", problem)
            else:
                on_invalid(folder, problem)
        else:
            return folder
    return None


def read_json(path: Path) -> Any:
    """Read the values of a JSON file of a checkpoint.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as problem:
        raise WeightsError(f"{path}: cannot be read ({problem}); use another checkpoint") from problem


# ---------------------------------------------------------------------- details


def _write(parent: Path, name: str, content: Content) -> ManifestEntry:
    path = parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        assert not isinstance(content, str)
        write_tensors(path, content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return ManifestEntry(path.stat().st_size, sha256(path))


BASE = "base.json"


def base_of(folder: Path) -> BaseModel | None:
    """Return the base model of the LoRA or ControlNet in a folder; None for a folder of whole weights.

    Raises:
        WeightsError: The file that names the base model is damaged.
    """
    if not (folder / BASE).is_file():
        return None
    try:
        base = BaseModel(**{name: str(value) for name, value in read_json(folder / BASE).items()})
        if base.what not in ADDITIONS:
            raise TypeError(f"what = {base.what!r}")
        return base
    except (TypeError, AttributeError) as problem:
        raise WeightsError(f"{folder / BASE}: damaged ({problem}); use another checkpoint") from problem


def identity(folder: Path) -> str:
    """SHA-256 of the hashes of model.yaml and of the tensors; EMA weights take the place of trained ones.

    Raises:
        WeightsError: The folder has no readable manifest.
    """
    files = read_manifest(folder).files
    averaged = {file for file in files if file.startswith("ema/")}
    used = sorted(
        file
        for file in files
        if file == "model.yaml"
        or (file.endswith(".safetensors") and "train_state" not in file and f"ema/{file}" not in averaged)
    )
    text = "".join(f"{file.removeprefix('ema/')} {files[file].sha256}\n" for file in used)
    return hashlib.sha256(text.encode()).hexdigest()


def is_same(stated: str, current: str) -> bool:
    """Return True if an identity stated by an image, LoRA or ControlNet is the present or a former one of a model."""
    return stated == current or stated in _former_identities().get(current, ())


@cache
def _former_identities() -> dict[str, tuple[str, ...]]:
    """Return the former identities of each bundled model: same tensors, other keys in model.yaml."""
    bundled = Path(str(resources.files("unveil"))) / "assets" / "models"
    folders = [folder for folder in bundled.iterdir() if (folder / MANIFEST).is_file()]
    return {identity(folder): tuple(read_manifest(folder).former_sha256) for folder in folders}


# ---------------------------------------------------------------------- models

AUTOENCODER = "autoencoder.safetensors"


def weight_files(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each part that has some, by file name."""
    return {name: dict(part.state_dict()) for name, part in parts_of(model)}


def model_files(model: Model, *, about: str = "", small: bool = False) -> dict[str, Content]:
    """Return the files of a saved model's folder, except the manifest.

    Args:
        about: Markdown for the end of the card, about the training and the evaluation.
        small: True if weights are stored as int8, see `quantize`.
    """
    if model.base is not None:
        what = ADDITIONS[model.base.what]
        on = f"These are only the weights of a {what} on `{model.base.name}` (sha256 {model.base.sha256[:12]})."
        about = f"{on}\n\n{about}"
    weights = {name: quantize(part) if small else part for name, part in weight_files(model).items()}
    files: dict[str, Content] = {**weights, "card.md": card(model, about)}
    for name, part in texts_of(model):
        files |= {f"{name}.{end}": content for end, content in part.files().items()}
    if model.config is not None:
        files["model.yaml"] = dump(model.config)
    if model.base is not None:
        files[BASE] = model.base._asdict()
    return files


def save_model(model: Model, folder: Path, *, force: bool = False, about: str = "", small: bool = False) -> Path:
    """Write the model's folder, completely or not at all, and return it.

    Args:
        force: True if an existing folder is replaced.
        about, small: Arguments of `model_files`.

    Raises:
        RecipeError: The model was not built from a config, so it could not be built again from the folder.
        NonFinite: A weight is not finite.
        OutputError: The folder exists already, or it cannot be written.
    """
    if model.source_folder is not None:
        raise RecipeError(
            f"this model is saved already: the folder {model.source_folder} itself is the model; copy that"
        )
    if model.config is None:
        raise RecipeError(
            "this model's network was not built from a recipe, so its folder could not be loaded by itself; "
            "keep its run folder, and load it with model_folder.load_weights into a model you build"
        )
    require_finite(dict(model.named_parameters()), "the model")
    if force:
        refuse_foreign(folder)
    save(folder, model_files(model, about=about, small=small), replace=force)
    return folder


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the file name and module of every part with tensors; a module without `parts` is an autoencoder."""
    parts = getattr(model, "parts", None)
    if parts is None:
        yield AUTOENCODER, model
    else:
        yield from parts()


def texts_of(model: Model) -> Iterator[tuple[str, TextEncoder | LearnedTextEncoder]]:
    """Yield the name and module of every conditioner that may need a file beside its weights."""
    yield from (
        (name, part) for name, part in model.conditioners.items() if isinstance(part, TextEncoder | LearnedTextEncoder)
    )


# ---------------------------------------------------------------------- int8 weights

# A row is the weights of one output. The scale of a row is 1/127 of its largest weight. The rounding error is about
# 0.7 % of the spread of normal weights (bfloat16: 0.2 %), in half of the memory of bfloat16.
SCALE_SUFFIX = ".step"  # after a tensor's name: the scale of each row
MIN_QUANTIZED_SIZE = 4096  # smaller tensors, such as biases and gains, stay as they are
_INT8_MAX = 127


def quantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert every large tensor to int8, with the scale of each row as another tensor (name + ".step", float32).

    Args:
        tensors: Finite tensors of any shape; rows are along the first dimension.
    """
    quantized: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() < MIN_QUANTIZED_SIZE:
            quantized[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(dim=1) / _INT8_MAX
        integers = (rows / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        integers = integers.clamp(-_INT8_MAX, _INT8_MAX).to(torch.int8)
        quantized |= {name: integers.view(tensor.shape), name + SCALE_SUFFIX: scale}
    return quantized


def is_scale(name: str, others: Collection[str]) -> bool:
    """Return True if the tensor of this name is the scale of another one."""
    return name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in others


def dequantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert int8 tensors that have a scale to float32; others stay as they are."""
    return {
        name: _rescaled(tensor, tensors[name + SCALE_SUFFIX]) if name + SCALE_SUFFIX in tensors else tensor
        for name, tensor in tensors.items()
        if not is_scale(name, tensors)
    }


def _rescaled(integers: Tensor, scale: Tensor) -> Tensor:
    """Multiply a tensor by its scale; with a scale of another shape return no rows, which the network refuses."""
    if scale.shape != integers.shape[:1]:
        return integers[:0]
    return integers.float() * scale.float().view(-1, *[1] * (integers.ndim - 1))
