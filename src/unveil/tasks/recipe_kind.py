"""Check that a recipe is one of a diffusion model, for commands that serve no other kind."""

from __future__ import annotations

from unveil.errors import RecipeError
from unveil.model.config import AnyRecipe, Recipe

# What to use instead, by kind
_INSTEAD = {
    "classifier": "the card that training writes says how well a classifier reads, and `unveil evaluate MODEL "
    "--feature-weights CARD` compares images by its features",
    "autoencoder": "`unveil evaluate RUN` says what an autoencoder keeps, and a diffusion model's recipe names it as "
    "autoencoder: {kind: saved, path: RUN}",
    "captioner": "`unveil evaluate RUN` says what a captioner tells right, and `unveil caption` lets it write",
    "sequence": "the card that training writes says what a sequence model writes exactly, and `unveil translate` "
    "lets it write",
}


def require_diffusion_recipe(recipe: AnyRecipe, command: str) -> Recipe:
    """Return the recipe, if it is one of a diffusion model.

    Args:
        recipe: Recipe of any kind.
        command: Command as typed, such as `unveil evaluate`.

    Raises:
        RecipeError: The recipe is of another kind; the message names what to use instead.
    """
    if isinstance(recipe, Recipe):
        return recipe
    raise RecipeError(
        f"{recipe.name}: a recipe of kind {recipe.kind}, and `{command}` is for diffusion models; "
        f"{_INSTEAD[recipe.kind]}"
    )
