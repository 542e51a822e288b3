"""The models folder: what is dropped into it is found by its name wherever a model, a LoRA or a ControlNet is named.

It is $UNVEIL_MODELS, or ./models, and has three parts: checkpoints/ with files and folders of models, loras/ with files
of LoRAs and folders of peft, controlnets/ with files and folders of ControlNets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from unveil.errors import WeightsError, did_you_mean

VARIABLE, HERE = "UNVEIL_MODELS", "models"
Drawer = Literal["checkpoints", "loras", "controlnets"]
DRAWERS: tuple[Drawer, ...] = ("checkpoints", "loras", "controlnets")
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
# What a folder that is one model has, as this library, diffusers, peft and a run of training write it
MARKS = ("manifest.json", "model_index.json", "config.json", "adapter_config.json", "checkpoints")


class ModelFile(NamedTuple):
    """What lies in the models folder: its name without a suffix, its place, and the part of the folder."""

    name: str
    path: Path
    drawer: Drawer


def models_dir() -> Path:
    """The models folder, which need not be there."""
    return Path(os.environ.get(VARIABLE) or HERE)


def entries(drawer: Drawer | None = None) -> list[ModelFile]:
    """Everything in the models folder, or in one part of it, by name; folders inside are looked through."""
    found: list[ModelFile] = []
    for one in DRAWERS if drawer is None else (drawer,):
        top = models_dir() / one
        for path in sorted(_models(top)):
            inside = path.relative_to(top)
            name = inside.with_suffix("") if path.is_file() else inside
            found.append(ModelFile(name.as_posix(), path, one))
    return found


def resolve(name: str | Path, drawer: Drawer) -> Path:
    """Where a model of this name is: the path itself where there is something, else its place in the models folder.

    A name may leave the suffix away, and the folders inside the part of the models folder. Of a name that is nowhere
    the path is returned as it was given.

    Raises:
        WeightsError: several have this name; they are listed.
    """
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    every = [one for one in entries(drawer) if _is(one, path.as_posix())]
    if len(every) > 1:
        listed = ", ".join(str(one.path) for one in every)
        raise WeightsError(f"{name}: {len(every)} have this name: {listed}; give one of them as a path")
    return every[0].path if every else path


def not_found_message(name: str | Path, drawer: Drawer) -> str:
    """What to tell of a name that is neither a path nor in its part of the models folder, with the nearest there."""
    names = [one.name for one in entries(drawer)]
    there = models_dir() / drawer
    return f"{name}: no such file or folder, and nothing of this name in {there}{did_you_mean(str(name), names)}"


def _is(entry: ModelFile, name: str) -> bool:
    whole = entry.name + (entry.path.suffix if entry.path.is_file() else "")
    return name in (entry.name, whole, entry.name.rpartition("/")[2], whole.rpartition("/")[2])


def _models(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file() and path.suffix.lower() in FILES:
            yield path
        elif path.is_dir():
            yield from [path] if any((path / mark).exists() for mark in MARKS) else _models(path)
