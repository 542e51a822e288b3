"""Values of tasks that a server refuses: paths of its machine, and changes of a recipe that take one."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

from unveil.errors import RecipeError, did_you_mean
from unveil.model.config import recipe_names
from unveil.tasks.fields import NEW, CatalogName, LocalPath, RecipeKeys
from unveil.tasks.task import Task, field_mark, find_mark

NEW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_CHANGES = 50  # of a recipe
_KEY = re.compile(
    r"(?:train|network|objective|data|process|sample|condition|autoencoder|lengths|evaluate|loss)(?:\.[a-z_0-9]+){1,4}"
)
_PATH_KEY = re.compile(r"(?:path|file|folder|base|weights|captions|encoder|model|network)$")
_WORD = re.compile(r"[A-Za-z0-9 _+-]{0,100}")


def check_server_values(task: Task) -> None:
    """Check the values of a task that differ between a server and a command line.

    Raises:
        RecipeError: A path of the server's machine, a recipe that is not bundled, or a missing or impossible name.
    """
    for name, field in type(task).model_fields.items():
        value, mark = getattr(task, name), field_mark(field)
        if find_mark(field, LocalPath) is not None and value is not None:
            raise RecipeError(f"request: {name}: a path of the server's machine; leave it out")
        if find_mark(field, RecipeKeys) is not None:
            _check_changes(name, value or {})
        if isinstance(mark, CatalogName) and mark.kind in NEW and (value is None or not NEW_NAME.fullmatch(value)):
            raise RecipeError(
                f"request: {name} = {str(value)[:80]!r}: must be a name of letters, digits, - and _, at most 64"
            )
        if isinstance(mark, CatalogName) and mark.kind == "recipe" and value is not None:
            check_recipe_name(value)


def check_recipe_name(name: str) -> None:
    """Check that a recipe is bundled.

    Raises:
        RecipeError: It is not.
    """
    if name not in recipe_names():
        raise RecipeError(f"request: recipe {name[:100]!r}: not a bundled recipe{did_you_mean(name, recipe_names())}")


def _check_changes(name: str, changes: dict[str, Any]) -> None:
    if len(changes) > MAX_CHANGES:
        raise RecipeError(f"request: {name}: {len(changes)} keys; at most {MAX_CHANGES}")
    for key, value in changes.items():
        if not _KEY.fullmatch(key) or _PATH_KEY.search(key):
            raise RecipeError(f"request: {name}.{key[:100]}: may not be set here; name files by their catalog names")
        fits = isinstance(value, bool | int | None) or (isinstance(value, float) and isfinite(value))
        if not fits and not (isinstance(value, str) and _WORD.fullmatch(value)):
            shown = str(value)[:80]
            raise RecipeError(f"request: {name}.{key} = {shown!r}: must be a number, true, false or a word")
