"""Training a LoRA: a base that stays as it is, and additions of which alone a run's checkpoints hold the weights.

Everything else is the usual training: the average, the optimiser and the checkpoints know only what has a gradient.

Source: Hu et al. 2021 (arXiv:2106.09685), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from unveil.conditioning.text_encoder import TextEncoder
from unveil.errors import RecipeError
from unveil.model import Model
from unveil.model.config import ModelConfig, Recipe
from unveil.model.config.model import SavedSection
from unveil.model.config.text import TextSection
from unveil.model.lora_state import NAME
from unveil.nn import lora
from unveil.types import BaseModel

# What a base and a recipe have to agree on: all that the weights were trained for
SAME = ("shape", "key", "network", "process", "prediction", "variance", "condition", "autoencoder")


def setup_lora(model: Model, base: BaseModel, recipe: Recipe) -> Model:
    """The base with fresh additions on its network, of which alone the recipe trains; it is the model given.

    Args:
        model: the base, on its device.
        base: which one it is.

    Raises:
        RecipeError: no LoRA in the recipe, another model than the recipe describes, or targets that it lacks.
    """
    if recipe.lora is None:
        raise RecipeError("the recipe has no section lora, so there is nothing to train on the base; add one")
    model.config, network = model_config_on_base(model, base, recipe), model.denoiser.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        additions = lora.init_lora(network, recipe.lora.build())  # on the CPU: a seed gives the same ones anywhere
    lora.attach(network, NAME, additions)
    model.requires_grad_(False)
    lora.freeze_except(network, NAME)
    model.sampling, model.base = recipe.sample, base
    return model


def model_config_on_base(model: Model, base: BaseModel, recipe: Recipe, besides: Sequence[str] = ()) -> ModelConfig:
    """The model of a recipe, with the base's own codec where the recipe says only where it was saved.

    Args:
        besides: what need not agree.

    Raises:
        RecipeError: another model than the base.
    """
    ours = recipe.model
    if model.config is None:
        return ours
    if isinstance(ours.autoencoder, SavedSection):  # the base holds that codec, and says what it is
        ours = ours.model_copy(update={"autoencoder": model.config.autoencoder})
    for name in (name for name in SAME if name not in besides):
        theirs, mine = getattr(model.config, name), getattr(ours, name)
        if _uncached(theirs) != _uncached(mine):
            raise RecipeError(f"{name} of the base {base.path} is {theirs}, of the recipe {mine}; make them equal")
    for section in ours.condition:
        if isinstance(section, TextSection):
            cast(TextEncoder, model.conditioners[section.key]).keep(section.cache)
    return ours


def _uncached(value: Any) -> Any:
    """A part of a model, without how much memory its text encoders may take."""
    if not isinstance(value, tuple):
        return value
    parts = cast(tuple[Any, ...], value)
    return tuple(part.model_copy(update={"cache": 0}) if isinstance(part, TextSection) else part for part in parts)
