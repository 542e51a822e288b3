"""The registry of published formats: those of `checkpoints.formats`, and those that other packages install.

A module of `checkpoints.formats` lists its records as `FORMATS`. Another package names a `Format` as an entry point of
the group `unveil.formats`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import iter_modules

from unveil.checkpoints import formats as package
from unveil.checkpoints.format import Detected, Format, Keys, Kind
from unveil.checkpoints.key_mapping import abbreviate
from unveil.errors import RecipeError, did_you_mean

GROUP = "unveil.formats"


@cache
def formats() -> tuple[Format, ...]:
    """Return every format, in the order in which they are tried.

    Raises:
        RecipeError: An entry point is not a format, or two formats of one kind share a name.
    """
    bundled: list[Format] = []
    for module in iter_modules(package.__path__):
        bundled += import_module(f"{package.__name__}.{module.name}").FORMATS
    installed = [entry.load() for entry in entry_points(group=GROUP)]
    if wrong := [entry for entry in installed if not isinstance(entry, Format)]:
        raise RecipeError(f"entry point group {GROUP}: {wrong[0]!r} is not a checkpoints.format.Format")
    # installed formats first: they may be more specific than a bundled one, which is as old as this package
    every = sorted([*installed, *bundled], key=lambda entry: -entry.priority)
    names = [(entry.kind, entry.name) for entry in every]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"format {repeated[0][1]!r}: two formats of a {repeated[0][0]} have this name; rename one")
    return tuple(every)


def format_names(kind: Kind = "model") -> list[str]:
    """Return the names of the formats whose files are read or written, for a kind of weights."""
    return sorted(entry.name for entry in formats() if entry.kind == kind and (entry.load or entry.fill or entry.save))


def get_format(name: str, kind: Kind = "model") -> Format:
    """Return the format of a name.

    Raises:
        RecipeError: There is none; names the nearest.
    """
    for entry in formats():
        if (entry.kind, entry.name) == (kind, name):
            return entry
    choices = format_names(kind)
    raise RecipeError(f"format {name!r}: must be one of {', '.join(choices)}{did_you_mean(name, choices)}")


def detect(keys: Keys) -> Detected | None:
    """Return the format of a file with these keys; None: it has no known format."""
    for entry in formats():
        if (signature := entry.signature_of(keys)) is not None:
            return Detected(entry, signature)
    return None


def detect_folder(path: Path) -> Format | None:
    """Return the format of a folder; None: it has no known format."""
    return next((entry for entry in formats() if entry.is_folder is not None and entry.is_folder(path)), None)


def explain_unknown(keys: Keys) -> str:
    """Return what to answer for a file of no known format: the closest one, and what the file lacks of it."""
    shown = abbreviate(sorted(keys), 3)
    signatures = [signature for entry in formats() for signature in entry.signatures]
    closest = max((signature for signature in signatures if signature.keys), key=lambda entry: entry.resemblance(keys))
    if not any(closest.resemblance(keys)):
        titles = ", ".join(dict.fromkeys(signature.title for signature in signatures))
        return f"no known layout, and none that its keys resemble: {shown}; known are {titles}"
    missing = ", ".join(closest.missing(keys))
    return f"no known layout, by its keys: {shown}; the closest is {closest.title}, of which is missing: {missing}"
