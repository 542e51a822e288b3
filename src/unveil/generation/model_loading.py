"""Opening a model for a command: found, checked, identified, on its device."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unveil.checkpoints import controlnet_loader, loader, lora
from unveil.checkpoints.lora_targets import parts_of
from unveil.checkpoints.overrides import ModelOverrides
from unveil.conditioning.controlnet import Control
from unveil.data.folder_index import IMAGE_SUFFIXES
from unveil.errors import OutOfResources, RecipeError, WeightsError, did_you_mean
from unveil.generation.generate import Source
from unveil.io.files import sha256
from unveil.model import Model, checkpoint_store, model_folder
from unveil.model.config import ModelConfig, read_yaml, validate
from unveil.model.lora_state import LORA
from unveil.types import ADDITIONS, ControlNetInfo

OPTIONS = {"lora": "lora", "control": "controlnet"}  # that put one on a model
DEVICES = ("auto", "cpu", "cuda", "mps")
OWN = "hint"  # the key of the picture that a run's own ControlNet reads: that of the data it was trained on


def device(name: str) -> torch.device:
    """The device of this name; auto is the fastest there is.

    Raises:
        RecipeError: an unknown name.
        OutOfResources: a device that this machine does not have.
    """
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (name != kind and not (number.isdecimal() and kind in ("cuda", "mps"))):
        raise RecipeError(
            f"device {name!r}: must be one of {', '.join(DEVICES)}, or cuda:0 and so on{did_you_mean(name, DEVICES)}"
        )
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        name = kind = next(k for k in ("cuda", "mps", "cpu") if there[k])
    if not there[kind]:
        raise OutOfResources(f"device {name!r}: this machine has none that torch can use; use --device cpu")
    if kind == "cuda":
        # of several processes each has its own, and not all the first
        number, count = number or os.environ.get("LOCAL_RANK", "0"), torch.cuda.device_count()
        if int(number) >= count:
            raise OutOfResources(f"device {name!r}: this machine has {count}; use cuda:0 to cuda:{count - 1}")
        return torch.device(kind, int(number)) if count > 1 else torch.device(kind)
    return torch.device(name)


def open_model(
    name: str, where: torch.device, said: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Model, Source]:
    """The model of a name, a folder or a published file of tensors, and which one it is.

    Args:
        name: a path, of a model in the models folder (see `model.model_folder`), or of a shipped one.
        said: what the keys of a published file do not say, by the names of `checkpoints.overrides.ModelOverrides`.
        dtype: what it will compute in, where the folder can be read in it at once.
    """
    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
        raise RecipeError(f"{name}: is an image where a model is expected; the model comes first: COMMAND MODEL IMAGE")
    path = model_folder.resolve_name(name, "checkpoints")
    name = str(path)
    if path.is_dir() and (folder := _of_addition(path)) is not None:
        return _with_addition(folder, name, where, said)
    overrides = validate(ModelOverrides, dict(said or {}), "file")
    model = loader.open_checkpoint(path, overrides, dtype).model.to(where)
    if path.is_file():
        return model, Source(path.name, loader.digest(path))
    entry = loader.format_of(path)
    if entry is None or entry.converts_to is None:
        return model, source(name)
    return model, Source(path.resolve().name, loader.digest(path))


def lora_file(path: Path) -> Path:
    """The file of a LoRA: itself, the one in peft's folder, or the averaged one of a run's newest checkpoint.

    What is not a path is looked up in the models folder, see `model.model_folder`.

    Raises:
        WeightsError: there is none.
    """
    path = model_folder.resolve_name(path, "loras")
    if not path.is_dir():
        return path
    if (path / lora.ADAPTER).is_file():
        return path / lora.ADAPTER
    folder = model_folder.resolve_checkpoint(path)
    for file in (folder / "ema" / LORA, folder / LORA):
        if file.is_file():
            return file
    raise WeightsError(f"{path}: neither peft's folder nor a run that trained a LoRA; it has whole weights")


def _of_addition(path: Path) -> Path | None:
    """The checkpoint of a run that trained a LoRA or a ControlNet, if this is one."""
    try:
        folder = model_folder.resolve_checkpoint(path)
    except WeightsError:  # another kind of folder
        return None
    return folder if checkpoint_store.base_of(folder) is not None else None


def _with_addition(
    folder: Path, name: str, where: torch.device, said: Mapping[str, Any] | None
) -> tuple[Model, Source]:
    """A run's LoRA or ControlNet on its base, which must be where it was."""
    told = checkpoint_store.base_of(folder)
    assert told is not None
    checkpoint_store.verify(folder)
    model, base = open_model(told.path, where, said)
    if not checkpoint_store.is_same(told.sha256, base.sha256):
        raise WeightsError(
            f"{told.path}: has changed since the {ADDITIONS[told.what]} in {name} was trained on it (sha256 "
            f"{told.sha256[:12]}..., now {base.sha256[:12]}...); use --{OPTIONS[told.what]} {name} if that is intended"
        )
    if told.what == "lora":
        file = lora_file(folder)
        lora.attach(parts_of(model), folder.name, lora.read(file))
        added = sha256(file)
    else:
        found = controlnet_loader.read(folder)
        model.with_controlnets(Control(OWN, found.network.to(where)))
        model.controlnet_infos = (ControlNetInfo(OWN, Path(name).resolve().name, found.sha256),)
        added = found.sha256
    described = read_yaml((folder / "model.yaml").read_text("utf-8"), str(folder / "model.yaml"))
    model.config = validate(ModelConfig, described, str(folder / "model.yaml"))
    model.sampling = model.config.sample
    both = hashlib.sha256(f"{told.sha256} {added}".encode()).hexdigest()
    return model, Source(_called(name, folder), both)


def source(name: str) -> Source:
    """A model's identity: its name, and one hash over the hashes of the files that make its pictures."""
    folder = model_folder.resolve_checkpoint(name)
    return Source(_called(name, folder), checkpoint_store.identity(folder))


def _called(name: str, folder: Path) -> str:
    """A name that tells a person which model it is, and nothing of where it lies."""
    if folder.parent.name == "checkpoints":
        return f"{folder.parent.parent.resolve().name} {folder.name}"
    return folder.resolve().name if Path(name).exists() else name
