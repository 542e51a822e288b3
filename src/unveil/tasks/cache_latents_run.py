"""The work of `tasks.data_show.CacheLatents`: the latents of a recipe's images, written before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unveil import data
from unveil.data.latent_cache import LatentCacheOptions
from unveil.generation.model_loading import config_of, resolve_device
from unveil.io.console import size
from unveil.model.config import load_recipe
from unveil.tasks.recipe_kind import require_diffusion_recipe
from unveil.tasks.task import TaskContext, TaskResult
from unveil.tasks.train_run import encode_missing, initial_model, validation_set
from unveil.train.batch_preparation import encoder_of

if TYPE_CHECKING:
    from unveil.tasks.data_show import CacheLatents


def write_latents(task: CacheLatents, context: TaskContext) -> TaskResult:
    """Write the latents of both splits, or find them, and report where they are."""
    recipe = require_diffusion_recipe(
        load_recipe(task.recipe, task.settings, config_of=config_of), "unveil data cache-latents"
    )
    options = LatentCacheOptions(mirrored=recipe.train.random_flip, batch=task.batch_size)
    model = initial_model(recipe, resolve_device(context.device))  # with the autoencoder of a base, if there is one
    encoder_of(model)  # raises an error without an autoencoder, before data are read
    parts = {"train": data.open(recipe.data.build()), "held-out": validation_set(recipe)}
    reports: list[dict[str, Any]] = []
    for part, items in parts.items():
        if items is None:
            continue
        cached, there = encode_missing(model, items, options, context.console)
        facts = {"part": part, "path": str(cached.path), "items": len(cached), "there": there}
        facts |= {"shape": list(cached.packed.latent), "versions": cached.versions}
        reports.append(facts | {"bytes": cached.path.stat().st_size})
    lines = [
        f"{report['part']}: {report['items']} x {report['versions']} of shape {tuple(report['shape'])}, "
        f"{size(report['bytes'])}, {'already in' if report['there'] else 'in'} {report['path']}"
        for report in reports
    ]
    return TaskResult({"latents": reports}, "\n".join(lines))
