"""Recipes on a base: what a recipe leaves out comes from the base, and what it states has to fit the weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from unveil.io.validation import short
from unveil.model.config.model import ModelConfig, SavedSection, UNetSection
from unveil.model.config.text import TextSection

# Parts of a model that its weights were trained for
PARTS = ("shape", "key", "network", "process", "prediction", "variance", "condition", "autoencoder")
# Settings of a frozen text encoder that its weights do not depend on
FREE = ("cache", "drop_prob", "weights")
SHOWN = 6  # differences in a message


def needs_base(raw: Mapping[str, Any]) -> bool:
    """Return whether plain values are those of a recipe that leaves parts of its model to its base."""
    parts = [raw.get(name) for name in ("shape", "network", "process")]
    stated = all(part is not None and not (isinstance(part, Mapping) and "kind" not in part) for part in parts)
    return raw.get("kind", "diffusion") == "diffusion" and raw.get("base") is not None and not stated


def complete(raw: Mapping[str, Any], base: ModelConfig) -> dict[str, Any]:
    """Return the plain values of a recipe with the parts of its base.

    A part that is left out is the base's. One without `kind` changes settings of the base's; so does `condition` as a
    map from the place of a condition to its changes.
    """
    theirs = base.model_dump(mode="json")
    return {**raw, **{name: _merged(theirs[name], raw.get(name)) for name in (*PARTS, "sample")}}


def differences(base: ModelConfig, recipe: ModelConfig, besides: Collection[str] = ()) -> list[str]:
    """Return the fields in which a recipe describes another model than the base's weights are, with both values.

    Left out are settings without an effect on the weights: the rate of dropped texts, a cache, the order of the rows
    of a self-attention that the network does not have. An autoencoder that the recipe names by its folder is the
    base's own.

    Args:
        besides: Parts that may differ.
    """
    lines: list[str] = []
    for name in PARTS:
        if name not in besides and not isinstance(getattr(recipe, name), SavedSection):
            lines += _different(name, _of_weights(base, name), _of_weights(recipe, name))
    return lines[:SHOWN] + ([f"{len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def _merged(theirs: Any, mine: Any) -> Any:
    if mine is None:
        return theirs
    if not isinstance(mine, Mapping) or "kind" in mine:
        return mine
    changes = cast(Mapping[str, Any], mine)
    if isinstance(theirs, list):
        parts = cast(list[Any], theirs)
        return [_merged(part, changes.get(str(place))) for place, part in enumerate(parts)]
    if not isinstance(theirs, Mapping):
        return mine
    settings = cast(Mapping[str, Any], theirs)
    return {**settings, **{key: _merged(settings.get(key), value) for key, value in changes.items()}}


def _of_weights(config: ModelConfig, name: str) -> Any:
    """Return the plain values of a part, without settings that the weights do not depend on."""
    plain = config.model_dump(mode="json", include={name})[name]
    if isinstance(config.network, UNetSection) and name == "network":
        depths = plain["transformer_depth"]
        if depths and all(depths):  # transformers at each place of an attention
            del plain["attention_order"]
    if name == "condition":
        for part, section in zip(plain, config.condition, strict=True):
            for free in FREE if isinstance(section, TextSection) else ():
                del part[free]
    return plain


def _different(path: str, theirs: Any, mine: Any) -> list[str]:
    if theirs == mine:
        return []
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        ours, other = cast(Mapping[str, Any], mine), cast(Mapping[str, Any], theirs)
        if other.get("kind") == ours.get("kind"):
            return [
                line for key in {**other, **ours} for line in _different(f"{path}.{key}", other.get(key), ours.get(key))
            ]
        path, theirs, mine = f"{path}.kind", other.get("kind"), ours.get("kind")
    if isinstance(theirs, list) and isinstance(mine, list):
        both = list(zip(cast(list[Any], theirs), cast(list[Any], mine), strict=False))
        if len(theirs) == len(mine) and all(isinstance(part, Mapping) for pair in both for part in pair):
            return [line for place, pair in enumerate(both) for line in _different(f"{path}.{place}", *pair)]
    return [f"{path} is {short(theirs)} in the base and {short(mine)} in the recipe"]
