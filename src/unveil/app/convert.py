"""`unveil convert`: published weights to our folder and back."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.app.console import Console
from unveil.app.unpickle import tensors_of
from unveil.checkpoints import ddpm, edm, openai, ours, score_sde
from unveil.checkpoints.tensors import read_tensors, write_tensors
from unveil.config import Recipe, load_recipe
from unveil.files import refuse_overwrite
from unveil.model import Model, build
from unveil.tasks.generate import DTYPES
from unveil.types import NotWritable, RecipeError, WeightsError, nearest

# Those that are read; openai and ddpm are written too.
LAYOUTS = ("openai", "ddpm", "edm", "score-sde", "ours")
PICKLES = (b"PK\x03\x04", b"\x80")


@dataclass(frozen=True)
class Layout:
    """The other side: its layout, the recipe of the model that a published file holds, the type that is written."""

    name: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.name not in LAYOUTS:
            raise RecipeError(f"layout {self.name!r}: must be one of {', '.join(LAYOUTS)}{nearest(self.name, LAYOUTS)}")
        if self.dtype not in DTYPES:
            raise RecipeError(
                f"dtype {self.dtype!r}: must be one of {', '.join(DTYPES)}{nearest(self.dtype, [*DTYPES])}"
            )


def convert(source: Path, out: Path, layout: Layout, force: bool, console: Console) -> None:
    """Converts in the direction that the source asks for, and tells what was matched."""
    refuse_overwrite(out, force)
    if layout.name == "ours":
        facts = _copy(source, out, layout, force)
    elif source.is_dir():
        facts = _to_theirs(source, out, layout)
    else:
        facts = _to_ours(source, out, layout, force)
    facts = {"source": str(source), "out": str(out), "layout": layout.name, **facts}
    console.result(facts, f"{out}: {facts['matched']} tensors matched, 0 unmatched, from {facts['part']}")


def _copy(source: Path, out: Path, layout: Layout, force: bool) -> dict[str, Any]:
    """A model of its own from a run: the averaged weights, without what only training needs."""
    model = ours.load_model(source).to(DTYPES[layout.dtype])
    model.save(out, force=force)
    return {"part": str(ours.find(source)), "matched": len(model.state_dict()), "unmatched": 0}


def _to_ours(source: Path, out: Path, layout: Layout, force: bool) -> dict[str, Any]:
    if layout.recipe is None:
        raise RecipeError("convert needs --recipe: the recipe of the model that the file holds, such as iddpm-cifar10")
    recipe = load_recipe(layout.recipe, layout.overrides)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{layout.recipe}: the recipe of a classifier; convert knows diffusion models")
    with tempfile.TemporaryDirectory() as scratch:
        part, theirs = _read(source, Path(scratch))
        model = build(recipe.model)
        _fill(model, theirs, layout.name)
        model.to(DTYPES[layout.dtype]).save(out, force=force)
    return {"part": part, "matched": len(theirs), "unmatched": 0}


def _read(source: Path, scratch: Path) -> tuple[str, dict[str, Tensor]]:
    """Which part of the file, and its tensors."""
    try:
        with open(source, "rb") as file:
            start = file.read(4)
    except OSError as problem:
        raise WeightsError(f"{source}: cannot be read ({problem.strerror}); check the path") from problem
    if not start.startswith(PICKLES):
        return "the file", read_tensors(source)
    inside = scratch / "tensors.safetensors"
    part = tensors_of(source, inside)
    return part, read_tensors(inside)


def _fill(model: Model, theirs: Mapping[str, Tensor], layout: str) -> None:
    network: Any = model.denoiser.network
    _check_network(network, layout)
    state, label = _parts(model, theirs, layout)
    network.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    conditioner = dict(model.conditioners.items()).get("label")
    if (label is None) != (conditioner is None):
        has, lacks = ("file", "recipe") if label is not None else ("recipe", "file")
        raise WeightsError(f"the {has} has class labels and the {lacks} has none; change the recipe's condition")
    if conditioner is not None and label is not None:
        rows = conditioner.state_dict()["table.weight"]
        if rows.shape != label["table.weight"].shape:
            theirs_shape = tuple(label["table.weight"].shape)
            raise WeightsError(
                f"label_emb.weight: {theirs_shape} in the file, {tuple(rows.shape)} in the recipe; "
                "set its classes, and drop = 0: published tables have no row for no label"
            )
        conditioner.load_state_dict({key: tensor.float() for key, tensor in label.items()})


def _parts(
    model: Model, theirs: Mapping[str, Tensor], layout: str
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Our state dicts of the network and of the labels, if the file has some."""
    network: Any = model.denoiser.network
    match layout:
        case "openai":
            found = openai.load(theirs, network.config)
            return found.network, found.label
        case "edm":
            state, label = edm.load(theirs, network.config)
            if label is not None and type(network).__name__ == "SongUNet" and not _drops(model):
                label = {key: rows[:-1] for key, rows in label.items()}  # without the row of no label
            return state, label
        case "score-sde":
            return score_sde.load(theirs, network.config), None
        case _:
            return ddpm.load(theirs, network.config), None


def _to_theirs(source: Path, out: Path, layout: Layout) -> dict[str, Any]:
    if out.suffix != ".safetensors":
        raise RecipeError(f"{out}: published layouts are written as one file; end its name in .safetensors")
    folder = ours.find(source)
    model = ours.load_model(folder)
    network: Any = model.denoiser.network
    _check_network(network, layout.name)
    if layout.name not in ("openai", "ddpm"):
        raise RecipeError(f"layout {layout.name!r} is only read; written are openai and ddpm")
    if layout.name == "openai":
        conditioner = dict(model.conditioners.items()).get("label")
        label = None if conditioner is None else _without_null(conditioner)
        theirs = openai.dump(network.state_dict(), network.config, label)
    else:
        theirs = ddpm.dump(network.state_dict(), network.config)
    _write(out, {key: tensor.to(DTYPES[layout.dtype]) for key, tensor in theirs.items()})
    return {"part": str(folder), "matched": len(theirs), "unmatched": 0}


def _check_network(network: Any, layout: str) -> None:
    """Raises RecipeError when a layout is not one of this network."""
    kinds = {"edm": ("SongUNet", "DhariwalUNet"), "score-sde": ("SongUNet",)}.get(layout, ("UNet",))
    if (found := type(network).__name__) not in kinds:
        raise RecipeError(
            f"a {found}, but {layout} is a layout of a {' or '.join(kinds)}; give another layout or recipe"
        )


def _drops(model: Model) -> bool:
    """Whether the model's labels have a row for none."""
    return any(getattr(one, "drop", 0) > 0 for one in model.conditioners.values())


def _without_null(conditioner: Any) -> dict[str, Tensor]:
    table = conditioner.state_dict()["table.weight"]
    if len(table) != conditioner.classes:
        raise WeightsError(
            "the label table has a row for no label, which the published layout does not know; "
            "only models trained with drop = 0 can be written in it"
        )
    return {"table.weight": table}


def _write(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, whole or not at all."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad():
            write_tensors(temporary, tensors)
        os.replace(temporary, out)
    except OSError as problem:
        raise NotWritable(
            f"{out}: cannot be written ({problem.strerror or problem}); choose another place"
        ) from problem
    finally:
        temporary.unlink(missing_ok=True)
