"""The registry of claims: those of `reproduce.claims`, and those that other packages install.

A module of `reproduce.claims` lists its experiments as `CLAIMS`. Another package names a `Claim` as an entry point of
the group `unveil.claims`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from unveil.errors import RecipeError, did_you_mean
from unveil.reproduce import claims as package
from unveil.reproduce.experiment import Claim

GROUP = "unveil.claims"


@cache
def all_claims() -> dict[str, Claim]:
    """Return every claim by name, in the order of names.

    Raises:
        RecipeError: An entry point is not a claim, or two claims share a name.
    """
    every: list[Claim] = []
    for module in iter_modules(package.__path__):
        every += import_module(f"{package.__name__}.{module.name}").CLAIMS
    for entry in entry_points(group=GROUP):
        claim = entry.load()
        if not isinstance(claim, Claim):
            raise RecipeError(f"entry point group {GROUP}: {entry.value} is not a reproduce.Claim")
        every.append(claim)
    names = [claim.name for claim in every]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"claim {repeated[0]!r}: two claims have this name; rename one")
    return {claim.name: claim for claim in sorted(every, key=lambda claim: claim.name)}


def get_claim(name: str) -> Claim:
    """Return the claim of a name.

    Raises:
        RecipeError: There is none; names the nearest.
    """
    claims = all_claims()
    if name not in claims:
        raise RecipeError(f"claim {name!r}: unknown{did_you_mean(name, list(claims))}; known: {', '.join(claims)}")
    return claims[name]
