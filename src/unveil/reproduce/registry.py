"""Registry of claims of `reproduce.claims` and of other installed packages.

A module of `reproduce.claims` lists its experiments as `CLAIMS`. Another package names a `Claim` as an entry point of
the group `unveil.claims`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from unveil.errors import RecipeError, did_you_mean
from unveil.reproduce import claims as claims_package
from unveil.reproduce.experiment import Claim

GROUP = "unveil.claims"


@cache
def all_claims() -> dict[str, Claim]:
    """Return every claim by name, in the order of names.

    Raises:
        RecipeError: An entry point is not a claim, or two claims share a name.
    """
    claims: list[Claim] = []
    for module in iter_modules(claims_package.__path__):
        claims += import_module(f"{claims_package.__name__}.{module.name}").CLAIMS
    for entry in entry_points(group=GROUP):
        claim = entry.load()
        if not isinstance(claim, Claim):
            raise RecipeError(f"entry point group {GROUP}: {entry.value} is not a reproduce.Claim")
        claims.append(claim)
    names = [claim.name for claim in claims]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"claim {repeated[0]!r}: two claims have this name; rename one")
    return {claim.name: claim for claim in sorted(claims, key=lambda claim: claim.name)}


def get_claim(name: str) -> Claim:
    """Return the claim of a name.

    Raises:
        RecipeError: The name is unknown; the error names the nearest.
    """
    claims = all_claims()
    if name not in claims:
        raise RecipeError(f"claim {name!r}: unknown{did_you_mean(name, list(claims))}; known: {', '.join(claims)}")
    return claims[name]
