"""`unveil convert`: published weights to our folder and back, and from one published layout to another."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.checkpoints import (
    controlnet_loader,
    ddpm,
    dit,
    dit_pipeline,
    edm,
    hf,
    openai,
    openai_models,
    score_sde,
    single_file,
    text_encoder_export,
)
from unveil.checkpoints.hf import stable_diffusion
from unveil.checkpoints.key_mapping import abbreviate
from unveil.checkpoints.overrides import shapes_of
from unveil.cli import convert_controlnet
from unveil.cli.convert_controlnet import ONE_FILE
from unveil.cli.recipe_kind import diffusion
from unveil.cli.safe_unpickle import tensors_of
from unveil.conditioning.text_encoder import TextEncoder
from unveil.errors import RecipeError, WeightsError, did_you_mean
from unveil.generation.generate import DTYPES
from unveil.io.console import Console
from unveil.io.files import refuse_overwrite, staged
from unveil.io.safetensors_io import read_tensors, write_tensors
from unveil.model import Model, build, model_dir, model_folder, model_saving
from unveil.model.config import load_recipe, override, validate
from unveil.nn.unet import UNet

# edm and score-sde are only read.
LAYOUTS = ("openai", "ddpm", "edm", "score-sde", "dit", "diffusers", "ldm", "ours")
SMALL = "int8"  # of our own folders alone, with the step of each row
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
            raise RecipeError(
                f"layout {self.name!r}: must be one of {', '.join(LAYOUTS)}{did_you_mean(self.name, LAYOUTS)}"
            )
        known = [*DTYPES, SMALL]
        if self.dtype not in known:
            raise RecipeError(
                f"dtype {self.dtype!r}: must be one of {', '.join(known)}{did_you_mean(self.dtype, known)}"
            )
        if self.name != "ours":
            self.refuse_small(f"the layout {self.name}")

    def refuse_small(self, what: str) -> None:
        """Refuses eight bits where they cannot be held.

        Raises:
            RecipeError: they are asked for.
        """
        if self.dtype == SMALL:
            raise RecipeError(f"dtype {SMALL}: {what} cannot be written so; choose {', '.join(DTYPES)}")


def convert(source: Path, out: Path, layout: Layout, force: bool, console: Console) -> None:
    """Converts in the direction that the source asks for, and tells what was matched."""
    refuse_overwrite(out, force)
    for drawer in ("checkpoints", "controlnets"):
        source = model_dir.resolve(source, drawer)
    if source.is_dir() and controlnet_loader.is_folder(source):
        layout.refuse_small("a ControlNet")
        facts: dict[str, Any] = convert_controlnet.of_folder(source, out, layout.name, layout.dtype)
    elif layout.name == "ours":
        facts = _copy(source, out, layout, force)
    elif dit_pipeline.is_folder(source):
        model = dit_pipeline.read_folder(source).to(DTYPES[layout.dtype])
        model.save(out, force=force)
        facts = {"part": "its transformer and scheduler", "matched": len(model.state_dict()), "unmatched": 0}
    elif hf.is_folder(source):
        facts = _of_folder(source, out, layout, force)
    elif source.is_dir():
        facts = _to_theirs(source, out, layout)
    else:
        facts = _to_ours(source, out, layout, force)
    keys = [str(key) for key in facts.get("unmatched_keys", [])]
    facts = {"source": str(source), "out": str(out), "layout": layout.name, **facts}
    rest = f": {abbreviate(keys, 4)}" if keys else ""
    text = f"{out}: {facts['matched']} tensors matched, {facts['unmatched']} unmatched, from {facts['part']}{rest}"
    console.result(facts, "\n".join([text, *facts.get("notes", [])]))


def _copy(source: Path, out: Path, layout: Layout, force: bool) -> dict[str, Any]:
    """A model of its own from a run: the averaged weights, without what only training needs."""
    small = layout.dtype == SMALL
    model = model_folder.load_model(source).to(torch.float32 if small else DTYPES[layout.dtype])
    model_saving.save_model(model, out, force=force, small=small)
    return {"part": str(model_folder.resolve_checkpoint(source)), "matched": len(model.state_dict()), "unmatched": 0}


def _to_ours(source: Path, out: Path, layout: Layout, force: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        part, theirs = _read(source, Path(scratch))
        try:
            return {"part": part} | _from_theirs(theirs, out, layout, force)
        except WeightsError as problem:
            raise WeightsError(f"{source}: {problem}") from problem


def _from_theirs(theirs: Mapping[str, Tensor], out: Path, layout: Layout, force: bool) -> dict[str, Any]:
    """Writes what published tensors are; tells how many of them it holds."""
    if layout.recipe is None and convert_controlnet.is_file(theirs):
        return convert_controlnet.of_file(theirs, _said(layout), out, layout.name, layout.dtype)
    if layout.recipe is None and openai_models.is_latent(shapes_of(theirs)):
        return _written(single_file.read(theirs, _said(layout)), out, layout, force)
    if layout.recipe is None:
        model = _recognised(theirs, layout)
    else:
        model = build(diffusion(load_recipe(layout.recipe, layout.overrides), "unveil convert").model)
        if dit.layout_of(shapes_of(theirs)) is not None:
            dit_pipeline.fill(model, theirs)
        else:
            _fill(model, theirs, layout.name)
    model.to(DTYPES[layout.dtype]).save(out, force=force)
    return {"matched": len(theirs), "unmatched": 0}


def _recognised(theirs: Mapping[str, Tensor], layout: Layout) -> Model:
    """The model of a file that is known by its keys."""
    known = _said(layout)
    try:
        return openai_models.model_of(theirs, known)
    except WeightsError as problem:
        raise WeightsError(
            f"{problem}; or give --recipe: that of the model in the file, such as iddpm-cifar10"
        ) from problem


def _said(layout: Layout) -> openai_models.ModelOverrides:
    """What keys do not say, given as file.KEY=VALUE."""
    said: dict[str, Any] = {}
    for change in layout.overrides:
        override(said, change)
    known = validate(openai_models.ModelOverrides, said.pop("file", {}), "file")
    if said:
        raise RecipeError(f"{next(iter(said))}: a change of a recipe; give --recipe, or say file.KEY=VALUE")
    return known


def _of_folder(source: Path, out: Path, layout: Layout, force: bool) -> dict[str, Any]:
    """From a folder of diffusers: of Stable Diffusion 1 or 2, whose parts are ours."""
    folder = hf.PipelineFolder(source)
    if folder.kind not in stable_diffusion.CLASSES:
        known = ", ".join(stable_diffusion.CLASSES)
        raise RecipeError(
            f"{source}: a {folder.kind}, which runs from its folder as it is and is not converted; {known} are"
        )
    return {"part": str(source)} | _written(stable_diffusion.read(folder), out, layout, force)


def _written(read: single_file.LoadedCheckpoint, out: Path, layout: Layout, force: bool) -> dict[str, Any]:
    """Writes a latent diffusion model as diffusers' folder, as one file, or as a model of ours; tells how it was read.

    One file is meant by --format ldm, or by a name that ends in .safetensors.
    """
    model = read.model.to(DTYPES[layout.dtype])
    if layout.name == "diffusers":
        stable_diffusion.write(model, out)
    elif layout.name == "ldm" or out.suffix == ONE_FILE:
        _one_file(model, out)
    else:
        model.save(out, force=force)
    found = {"matched": read.matched, "unmatched": len(read.unused), "unmatched_keys": list(read.unused)}
    return found | _noted(model, layout.name if layout.name == "diffusers" or out.suffix != ONE_FILE else "ldm")


def _noted(model: Model, layout: str) -> dict[str, Any]:
    """What a layout does not hold of a model, or holds beyond it; nothing that is drawn depends on either."""
    notes: list[str] = []
    for one in model.conditioners.values():
        if not isinstance(one, TextEncoder):
            continue
        if layout == "diffusers" and (left := text_encoder_export.left_out(one)):
            notes.append(
                f"left out: {len(left)} tensors of the text encoder's last block, which nothing reads and diffusers' "
                "folders do not hold; one file of such a folder has a copy of the block before in its place"
            )
        if layout == "ldm" and (added := single_file.duplicated_block(one)):
            notes.append(
                f"added: {len(added)} tensors of a last block of the text encoder, which nothing reads and such files "
                "have; it is a copy of the block before"
            )
    return {"notes": notes} if notes else {}


def _one_file(model: Model, out: Path) -> int:
    """Writes a latent diffusion model as one file; returns how many tensors it holds."""
    if out.suffix != ONE_FILE:
        raise RecipeError(f"{out}: the layout ldm is one file; end its name in {ONE_FILE}")
    theirs = single_file.tensors_of(model)
    _write(out, theirs)
    return len(theirs)


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
    folder = model_folder.resolve_checkpoint(source)
    model = model_folder.load_model(folder)
    if layout.name == "ldm":
        matched = _one_file(model.to(DTYPES[layout.dtype]), out)
        return {"part": str(folder), "matched": matched, "unmatched": 0} | _noted(model, "ldm")
    if layout.name == "diffusers":
        matched = _write_folder(model.to(DTYPES[layout.dtype]), out)
        return {"part": str(folder), "matched": matched, "unmatched": 0} | _noted(model, "diffusers")
    endings = (".safetensors", ".pt") if layout.name == "dit" else (".safetensors",)
    if out.suffix not in endings:
        raise RecipeError(f"{out}: published layouts are written as one file; end its name in {' or '.join(endings)}")
    theirs = dit_pipeline.tensors_of(model) if layout.name == "dit" else _of_unet(model, layout)
    _write(out, {key: tensor.to(DTYPES[layout.dtype]) for key, tensor in theirs.items()})
    return {"part": str(folder), "matched": len(theirs), "unmatched": 0}


def _of_unet(model: Model, layout: Layout) -> dict[str, Tensor]:
    network: Any = model.denoiser.network
    _check_network(network, layout.name)
    if layout.name not in ("openai", "ddpm"):
        raise RecipeError(f"layout {layout.name!r} is only read; written are openai, ddpm, dit, diffusers and ldm")
    if layout.name == "ddpm":
        return ddpm.dump(network.state_dict(), network.config)
    conditioner = dict(model.conditioners.items()).get("label")
    label = None if conditioner is None else _without_null(conditioner)
    return openai.dump(network.state_dict(), network.config, label)


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


def _write_folder(model: Model, out: Path) -> int:
    """A folder of diffusers, whole or not at all; returns how many tensors it holds."""
    if isinstance(model.denoiser.network, UNet):
        return stable_diffusion.write(model, out)
    with staged(out) as temporary:
        temporary.mkdir()
        dit_pipeline.write_folder(model, temporary)
    return len(dit_pipeline.tensors_of(model, "diffusers"))


def _write(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file, whole or not at all: safetensors, or what `torch.save` makes of tensors where the name ends in .pt."""
    with staged(out) as temporary, torch.no_grad():
        if out.suffix == ".pt":
            torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, temporary)
        else:
            write_tensors(temporary, tensors)
