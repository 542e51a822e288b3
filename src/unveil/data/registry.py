"""The kinds of data sets: a name, the dataclass of its settings, and the function that opens it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple, Protocol, runtime_checkable

from unveil.data.tensor_dataset import Part, check_split
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
        config: dataclass of its settings.
        open: function of (config, part) that returns the data set.
        has_images: True if items have "pixels" of single images, from which a control image can be made.
    """

    config: type[Any]
    open: Callable[[Any, Part], Any]
    has_images: bool = True


KINDS: dict[str, DataKind] = {}  # by the name in recipes
_WRAPPERS: dict[type[Any], Callable[[Any, Part], Any]] = {}


def register(name: str, config: type[Any], open: Callable[[Any, Part], Any], *, has_images: bool = True) -> None:
    """Enter a kind of data set, so that recipes and `unveil.data.open` know it."""
    KINDS[name] = DataKind(config, open, has_images)


def register_wrapper(config: type[Any], open: Callable[[Any, Part], Any]) -> None:
    """Enter a config that wraps another one; recipes name it by a key of its own."""
    _WRAPPERS[config] = open


def open(config: Any, part: Part = "train") -> Any:
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
    openers = {kind.config: kind.open for kind in KINDS.values()} | _WRAPPERS
    return openers[type(chosen)](chosen, part)


def to_config(config: Any) -> Any:
    """Return the dataclass of a recipe's data section; a registered dataclass is returned as it is.

    Raises:
        RecipeError: An unknown kind.
    """
    if type(config) in _WRAPPERS or any(type(config) is kind.config for kind in KINDS.values()):
        return config
    if config.kind not in KINDS:
        raise RecipeError(f"data kind {config.kind!r}: must be {', '.join(KINDS)}{did_you_mean(config.kind, [*KINDS])}")
    config_class = KINDS[config.kind].config
    return config_class(
        **{field.name: getattr(config, field.name) for field in fields(config_class) if hasattr(config, field.name)}
    )
