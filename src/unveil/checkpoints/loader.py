"""`unveil.load`: the model of a name, a folder or a file, of whichever format it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints import registry
from unveil.checkpoints.format import Detected, Format, LoadedCheckpoint, StateDict
from unveil.checkpoints.formats import native
from unveil.checkpoints.hub import table
from unveil.checkpoints.overrides import ModelOverrides
from unveil.errors import RecipeError, UnsupportedFormat, WeightsError
from unveil.io.files import read_state, sha256
from unveil.model import Model, model_folder
from unveil.model.config import validate


def load(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, overrides: Mapping[str, Any] | None = None
) -> Model:
    """Load a bundled model by its name, the model of a folder, or that of a published file, in evaluation mode.

    Args:
        name_or_path: Name of a bundled model or of a model in the models folder (also the short name by which it was
            downloaded), path of a folder (a saved model, a
            checkpoint, a run, a diffusers folder), or path of a published file of tensors.
        dtype: Type that the model computes in; see `Model.to_inference_dtype`. Tensors of a diffusers
            folder are copied only if they have another type.
        overrides: Settings that the keys and shapes of a published file do not determine, by the names of
            `ModelOverrides`, such as {"heads": 8}.

    Raises:
        WeightsError: The model does not exist, is damaged, has no known format, or needs a setting that is missing.
    """
    path = model_folder.resolve_name(name_or_path, "checkpoints")
    if not path.exists() and str(name_or_path) not in model_folder.bundled_models():
        path = table.resolve(name_or_path)
    settings = validate(ModelOverrides, dict(overrides or {}), "overrides")
    return open_checkpoint(path, settings, dtype).model.to_inference_dtype(dtype).eval()


def open_checkpoint(
    path: Path, overrides: ModelOverrides | None = None, dtype: torch.dtype = torch.float32
) -> LoadedCheckpoint:
    """Load the model at a path, or the bundled one of this name.

    Args:
        path: File, folder or name.
        overrides: Settings that a file's keys do not determine.
        dtype: Type of the matrices, where a folder can be read in it; other models are float32.

    Raises:
        WeightsError: As `load`.
        RecipeError: Overrides of a folder, which determines them itself.
    """
    if path.is_file():
        try:
            return load_state(read_state(path), overrides)
        except WeightsError as problem:
            raise type(problem)(f"{path}: {problem}") from problem
    if overrides is not None and overrides.model_fields_set:
        name = min(overrides.model_fields_set)
        raise RecipeError(f"file.{name}: {path} is not a file of another project; a model's folder determines it")
    entry = format_of(path)
    if entry is None or entry.kind != "model" or entry.load_folder is None:
        model = model_folder.load_model(path)
        return LoadedCheckpoint(model, len(model.state_dict()))
    return entry.load_folder(path, dtype)


def load_state(tensors: StateDict, overrides: ModelOverrides | None = None) -> LoadedCheckpoint:
    """Load the model of a published file's tensors.

    Raises:
        UnsupportedFormat: The format is not known, not read, or holds no model.
        WeightsError: It needs a setting that is missing.
    """
    detected = registry.detect(tensors)
    if detected is None:
        raise UnsupportedFormat(registry.explain_unknown(tensors))
    if detected.signature.instead or detected.format.kind != "model":
        raise UnsupportedFormat(f"{detected.signature.title}: {detected.signature.instead}")
    return load_detected(detected, tensors, overrides)


def load_detected(detected: Detected, tensors: StateDict, overrides: ModelOverrides | None = None) -> LoadedCheckpoint:
    """Load a file whose format is known.

    Raises:
        WeightsError: The format cannot be loaded, or determines one of the overrides itself.
    """
    entry, signature = detected
    if entry.load is None:
        raise UnsupportedFormat(f"{signature.title}: {signature.instead or 'files of this format are not read'}")
    overrides = overrides or ModelOverrides()
    overrides.only(entry.overrides, f"files of {signature.title}")
    return entry.load(tensors, overrides)


def format_of(path: Path) -> Format | None:
    """Return the format of a folder; None: a native one, or a name."""
    if not path.is_dir() or native.is_folder(path):
        return None
    return registry.detect_folder(path)


def digest(path: Path) -> str:
    """Return the hash that identifies a published file or folder.

    Raises:
        WeightsError: A folder of no known format.
    """
    if path.is_file():
        return sha256(path)
    entry = registry.detect_folder(path)
    if entry is None or entry.digest is None:
        raise WeightsError(f"{path}: a folder of no known format; give a model's folder")
    return entry.digest(path)
