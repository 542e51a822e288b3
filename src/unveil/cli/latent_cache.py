"""`unveil data cache-latents`: the latents of a recipe's images, written before or at the start of training."""

from __future__ import annotations

from typing import Any

from unveil import data
from unveil.cli.recipe_kind import diffusion
from unveil.cli.train import encode_missing, fresh, held_out_of
from unveil.data.latent_cache import LatentCacheOptions
from unveil.generation.model_loading import resolve_device as pick
from unveil.io.console import Console, size
from unveil.model.config import load_recipe
from unveil.train.batch_preparation import encoder_of


def write(name: str, overrides: tuple[str, ...], batch: int, device: str, console: Console) -> None:
    """Writes the files of both parts, or finds them, and tells where they are."""
    recipe = diffusion(load_recipe(name, overrides), "unveil data cache-latents")
    how = LatentCacheOptions(mirrored=recipe.train.random_flip, batch=batch)
    model = fresh(recipe).to(pick(device))
    encoder_of(model)  # without a codec nothing is read
    parts = {"train": data.open(recipe.data.build()), "held-out": held_out_of(recipe)}
    found: list[dict[str, Any]] = []
    for part, items in parts.items():
        if items is None:
            continue
        cached, there = encode_missing(model, items, how, console)
        facts = {"part": part, "path": str(cached.path), "items": len(cached), "there": there}
        facts |= {"shape": list(cached.packed.latent), "versions": cached.versions}
        found.append(facts | {"bytes": cached.path.stat().st_size})
    lines = [
        f"{one['part']}: {one['items']} x {one['versions']} of shape {tuple(one['shape'])}, {size(one['bytes'])}, "
        f"{'already in' if one['there'] else 'in'} {one['path']}"
        for one in found
    ]
    console.result({"latents": found}, "\n".join(lines))
