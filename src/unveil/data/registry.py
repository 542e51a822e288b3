"""Kinds of data sets: a name, the dataclass of its settings, and the function or class that opens it.

`data_kind` decorates what opens a kind. Another package names its module, or what it decorates there, as an entry point
of the group `unveil.data`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from unveil.data.tensor_dataset import Split, check_split
from unveil.errors import RecipeError, did_you_mean


@runtime_checkable
class MapDataset(Protocol):
    """A map-style data set, as torch's DataLoader reads it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class DataSection(Protocol):
    """The data section of a recipe: `kind`, and fields of the config of that kind."""

    @property
    def kind(self) -> str:
        """The name of a registered kind."""
        ...


class DataKind(NamedTuple):
    """A kind of data set.

    Attributes:
        config: Dataclass of its settings.
        open: Function of (config, part) that returns the data set.
        has_images: True if items have "pixels" of single images, from which a control image can be made.
    """

    config: type[Any]
    open: Callable[[Any, Split], Any]
    has_images: bool = True


GROUP = "unveil.data"
OpenT = TypeVar("OpenT", bound=Callable[..., Any])
_KINDS: dict[str, DataKind] = {}  # by the name in recipes
_WRAPPERS: dict[type[Any], Callable[[Any, Split], Any]] = {}


def data_kind(name: str, config: type[Any], *, has_images: bool = True) -> Callable[[OpenT], OpenT]:
    """Decorate what opens a kind of data set, a function or class of (config, part).

    Args:
        name: Name in recipes: `data: {kind: NAME}`.
        config: Frozen dataclass; its fields are the keys of the recipe.
        has_images: See `DataKind`.

    Raises:
        RecipeError: Another kind has this name.
    """
    if name in _KINDS:
        raise RecipeError(f"data kind {name!r}: two kinds of data have this name; rename one")

    def register(open: OpenT) -> OpenT:
        _KINDS[name] = DataKind(config, open, has_images)
        return open

    return register


def data_wrapper(config: type[Any]) -> Callable[[OpenT], OpenT]:
    """Register a function that opens a config which wraps another one; recipes name it by its own key."""

    def register(open: OpenT) -> OpenT:
        _WRAPPERS[config] = open
        return open

    return register


def data_kinds() -> Mapping[str, DataKind]:
    """Return every kind of data set by name, in the order of names."""
    _import_kinds()
    return dict(sorted(_KINDS.items()))


@cache
def _import_kinds() -> None:
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
    for entry in entry_points(group=GROUP):
        entry.load()


def open(config: Any, part: Split = "train") -> Any:
    """Open the data set that a config, or the data section of a recipe, describes.

    Args:
        config: One of the registered dataclasses, or an object with `kind` and fields of the same names.
        part: "train", or "held-out" for what training never sees.

    Returns:
        A map-style data set whose items are dicts.

    Raises:
        RecipeError: An unknown kind or part.
        DataError: The data are not there, or too much of them is damaged.
    """
    part = check_split(part)
    chosen = to_config(config)
    openers = {kind.config: kind.open for kind in _KINDS.values()} | _WRAPPERS
    return openers[type(chosen)](chosen, part)


def to_config(config: Any) -> Any:
    """Return the dataclass of a recipe's data section; a registered dataclass is returned as it is.

    Raises:
        RecipeError: An unknown kind.
    """
    if type(config) in _WRAPPERS or any(type(config) is kind.config for kind in _KINDS.values()):
        return config
    kinds = data_kinds()
    if config.kind not in kinds:
        raise RecipeError(f"data kind {config.kind!r}: must be {', '.join(kinds)}{did_you_mean(config.kind, [*kinds])}")
    config_class = kinds[config.kind].config
    return config_class(
        **{field.name: getattr(config, field.name) for field in fields(config_class) if hasattr(config, field.name)}
    )
