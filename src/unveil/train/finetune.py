"""Training a whole network on from given weights; its codec and its text encoder stay as they are."""

from __future__ import annotations

import torch

from unveil.config import ModelConfig, Recipe
from unveil.model import Model, build
from unveil.train.lora import described
from unveil.types import Base, RecipeError


def continued(model: Model, base: Base, recipe: Recipe) -> Model:
    """The base as the recipe describes it, ready to be trained on.

    Samples may have another size than the base's, frames among it, where the same weights are those of either.

    Args:
        model: the base, on its device; its parts become those of the result.
        base: which one it is.

    Raises:
        RecipeError: another model than the recipe describes.
    """
    resized = model.config is not None and tuple(model.config.shape) != tuple(recipe.shape)
    config = described(model, base, recipe, besides=("shape",) if resized else ())
    model = _resized(model, base, config) if resized else model
    model.config = config
    model.sampling = recipe.sample
    model.denoiser.requires_grad_(True)  # published models are read to be sampled
    return model


def _resized(model: Model, base: Base, config: ModelConfig) -> Model:
    """The base's parts as a model of the config's shape."""
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in build(config).denoiser.state_dict().items()}
    given = {key: value.shape for key, value in model.denoiser.state_dict().items()}
    if given != wanted:
        raise RecipeError(
            f"shape of the base {base.path} is {list(model.shape)}, of the recipe {list(config.shape)}: this network's "
            "weights hold for the first alone; make them equal"
        )
    other = build(config)
    other.denoiser.load_state_dict(model.denoiser.state_dict())
    other.conditioners, other.codec = model.conditioners, model.codec
    return other.to(model.device)
