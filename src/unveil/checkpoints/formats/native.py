"""The native format `ours`: folders of saved models, checkpoints and runs, which `unveil.model` reads and writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints.format import Format, LoadedCheckpoint, SavedCheckpoint
from unveil.io.files import read_header
from unveil.model import Model, checkpoint_store, model_folder
from unveil.model.checkpoint_store import base_of
from unveil.model.config import read_yaml
from unveil.types import ADDITIONS


def is_folder(path: Path) -> bool:
    """Return whether a folder is a saved model, a checkpoint or a run."""
    return (path / checkpoint_store.MANIFEST).is_file() or (path / "checkpoints").is_dir()


def load_folder(path: Path, dtype: torch.dtype) -> LoadedCheckpoint:
    """Load the model of a folder; the type is applied by the caller."""
    del dtype
    model = model_folder.load_model(path)
    return LoadedCheckpoint(model, len(model.state_dict()))


def save(model: Model, path: Path) -> SavedCheckpoint:
    """Write a model's folder."""
    checkpoint_store.save_model(model, path, force=True)
    return SavedCheckpoint(len(model.state_dict()))


def save_int8(model: Model, path: Path) -> SavedCheckpoint:
    """Write a model's folder with int8 weights."""
    checkpoint_store.save_model(model, path, force=True, small=True)
    return SavedCheckpoint(len(model.state_dict()))


def inspect_folder(path: Path) -> dict[str, Any]:
    """Describe a saved model, a checkpoint or a run by its headers and its settings."""
    folder = model_folder.resolve_checkpoint(path)
    manifest = checkpoint_store.read_manifest(folder)
    headers = {name: read_header(folder / name) for name in manifest.files if name.endswith(".safetensors")}
    title = "a saved model" if manifest.kind == "model" else f"a training checkpoint at step {manifest.step}"
    facts: dict[str, Any] = {"path": str(path), "what": title}
    facts |= {"folder": str(folder), "step": manifest.step, "versions": dict(manifest.versions)}
    if (base := base_of(folder)) is not None:
        facts["what"] += f", of a {ADDITIONS[base.what]} on {base.name} (sha256 {base.sha256[:12]})"
        facts["base"] = base._asdict()
    if (folder / "model.yaml").is_file():
        facts["model"] = read_yaml((folder / "model.yaml").read_text("utf-8"), str(folder / "model.yaml"))
    return facts | model_folder.summary(headers)


FORMATS = (
    Format(
        name="ours",
        is_folder=is_folder,
        load_folder=load_folder,
        save=save,
        save_int8=save_int8,
        describe=lambda path: "a model or a run of unveil",
        inspect_folder=inspect_folder,
        digest=lambda path: checkpoint_store.identity(model_folder.resolve_checkpoint(path)),
        converts_to=None,
        cannot_hold="networks of diffusers, and modules that were not built from a recipe",
    ),
)
