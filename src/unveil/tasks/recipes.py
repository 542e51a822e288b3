"""The bundled recipes: a list, their texts and their sources."""

from __future__ import annotations

from typing import Annotated, ClassVar

from unveil.tasks.fields import RecipeName, info
from unveil.tasks.task import Task, TaskContext, TaskResult

Recipe = Annotated[RecipeName, info("Bundled recipe, YAML file or run folder.", metavar="RECIPE")]


class RecipesList(Task):
    """List every bundled recipe with its claim.

    Example: unveil recipes list
    """

    name: ClassVar[str] = "recipes-list"
    section: ClassVar[str] = "Train"
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"

    def run(self, context: TaskContext) -> TaskResult:
        """List the recipes."""
        from unveil.tasks.recipes_run import list_recipes

        del context
        return list_recipes()


class RecipesShow(Task):
    """Print a recipe as it is written.

    Example: unveil recipes show ddpm-digits
    """

    name: ClassVar[str] = "recipes-show"
    section: ClassVar[str] = "Train"
    arguments: ClassVar[tuple[str, ...]] = ("recipe",)
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    group: ClassVar[str] = "Recipe"

    recipe: Recipe

    def run(self, context: TaskContext) -> TaskResult:
        """Read the recipe."""
        from unveil.tasks.recipes_run import show_recipe

        del context
        return show_recipe(self.recipe)


class RecipesCite(Task):
    """Print the sources of the parts that a recipe uses.

    Example: unveil recipes cite iddpm-fashion
    """

    name: ClassVar[str] = "recipes-cite"
    section: ClassVar[str] = "Train"
    arguments: ClassVar[tuple[str, ...]] = ("recipe",)
    common: ClassVar[tuple[str, ...]] = ()
    makes: ClassVar[str] = "text"
    group: ClassVar[str] = "Recipe"

    recipe: Recipe

    def run(self, context: TaskContext) -> TaskResult:
        """Collect the sources."""
        from unveil.tasks.recipes_run import cite_recipe

        del context
        return cite_recipe(self.recipe)
