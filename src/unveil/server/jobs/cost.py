"""How often a request calls the network for each sample, and how large settings of a sampler may be."""

from __future__ import annotations

import re

from unveil.core.samplers import get_sampler
from unveil.model.config import SampleConfig
from unveil.types import RecipeError

MOST = 100_000  # calls for a sample, however small it is
OPTION = 10_000  # the largest number that an option may be; above 1, eta makes adaptive samplers go on for ever
ADAPTIVE = 500  # calls of a sampler that chooses its steps: many, since nobody knows before it has run


def calls(settings: SampleConfig, length: int = 0, times: int = 1) -> float:
    """Calls of the network for each sample, not counting those of guidance.

    Args:
        settings: of sampling.
        length, times: of RePaint's jumps: so many steps back, and each stretch walked so often.

    Raises:
        RecipeError: more than a sample may take.
    """
    per_step, levels = _per_step(settings), _levels(settings)
    levels += len(range(1, levels - length + 1, length)) * (times - 1) * length if length else 0
    own = settings.options.get("calls")  # of all steps together
    found = ADAPTIVE if per_step is None else float(own) if own is not None else per_step * levels
    if max(found, levels) > MOST:
        raise RecipeError(f"sampling: {max(found, levels):.4g} calls of the network for a sample; at most {MOST:,}")
    return found


def check(settings: SampleConfig) -> None:
    """Looks at the options of the sampler, which are of their kinds.

    Raises:
        RecipeError: one with which no run would come to an end.
    """
    for name, value in settings.options.items():
        largest = 1 if name == "eta" else OPTION
        if isinstance(value, int) and not 0 <= value <= largest:
            raise RecipeError(f"sampling.options.{name} = {value}: must be a whole number from 0 to {largest:,}")
        if isinstance(value, float) and not abs(value) <= largest:
            raise RecipeError(f"sampling.options.{name} = {value}: must be a number of at most {largest:,}")


def _per_step(settings: SampleConfig) -> float | None:
    options = settings.options
    if "corrections" in options:
        return 1 + float(options["corrections"])
    usual = get_sampler(settings.sampler).calls
    several = options.get("each", options.get("orders") if usual != 1 else None)
    return usual if several is None else float(several)


def _levels(settings: SampleConfig) -> int:
    """Steps of the grid, which a list or a respacing string says by itself."""
    if not isinstance(settings.schedule, str):
        return len(settings.schedule)
    if settings.schedule[:1].isdigit() or settings.schedule.startswith(("ddim", "fast")):
        return sum(int(found) for found in re.findall(r"\d{1,9}", settings.schedule))
    return settings.steps
