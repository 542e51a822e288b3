"""Training a whole network on from given weights; its codec and its text encoder stay as they are."""

from __future__ import annotations

from unveil.config import Recipe
from unveil.model import Model
from unveil.train.lora import described
from unveil.types import Base


def continued(model: Model, base: Base, recipe: Recipe) -> Model:
    """The base as the recipe describes it, ready to be trained on; it is the model given.

    Args:
        model: the base, on its device.
        base: which one it is.

    Raises:
        RecipeError: another model than the recipe describes.
    """
    model.config = described(model, base, recipe)
    model.sampling = recipe.sample
    model.denoiser.requires_grad_(True)  # published models are read to be sampled
    return model
