"""Number of network evaluations (NFE) per sample, and limits of the sampler options."""

from __future__ import annotations

import re

from unveil.core.samplers import get_sampler
from unveil.errors import RecipeError
from unveil.model.config import SampleConfig

MAX_NFE = 100_000  # per sample, whatever its size
MAX_OPTION = 10_000  # largest value of a sampler option; adaptive samplers never end with eta > 1
ADAPTIVE_NFE = 500  # estimate for samplers that choose their own steps; deliberately high


def count_nfe(settings: SampleConfig, length: int = 0, times: int = 1) -> float:
    """Count the network evaluations per sample, without those of guidance.

    Args:
        settings: Sampling settings.
        length: Jump length of RePaint, in steps; 0 for none.
        times: Number of times that RePaint resamples each stretch.

    Raises:
        RecipeError: More evaluations than a sample may take.
    """
    per_step, levels = _nfe_per_step(settings), _num_steps(settings)
    levels += len(range(1, levels - length + 1, length)) * (times - 1) * length if length else 0
    declared = settings.options.get("calls")  # total over all steps
    nfe = ADAPTIVE_NFE if per_step is None else float(declared) if declared is not None else per_step * levels
    if max(nfe, levels) > MAX_NFE:
        raise RecipeError(f"sampling: {max(nfe, levels):.4g} network evaluations per sample; at most {MAX_NFE:,}")
    return nfe


def check_sampler_options(settings: SampleConfig) -> None:
    """Check the ranges of the sampler's options, whose types were checked before.

    Raises:
        RecipeError: An option with which sampling would never end.
    """
    for name, value in settings.options.items():
        largest = 1 if name == "eta" else MAX_OPTION
        if isinstance(value, int) and not 0 <= value <= largest:
            raise RecipeError(f"sampling.options.{name} = {value}: must be a whole number from 0 to {largest:,}")
        if isinstance(value, float) and not abs(value) <= largest:
            raise RecipeError(f"sampling.options.{name} = {value}: must be a number of at most {largest:,}")


def _nfe_per_step(settings: SampleConfig) -> float | None:
    options = settings.options
    if "corrections" in options:
        return 1 + float(options["corrections"])
    default = get_sampler(settings.sampler).calls
    per_option = options.get("each", options.get("orders") if default != 1 else None)
    return default if per_option is None else float(per_option)


def _num_steps(settings: SampleConfig) -> int:
    """Return the number of steps; a list or a respacing string states its own."""
    if not isinstance(settings.schedule, str):
        return len(settings.schedule)
    if settings.schedule[:1].isdigit() or settings.schedule.startswith(("ddim", "fast")):
        return sum(int(number) for number in re.findall(r"\d{1,9}", settings.schedule))
    return settings.steps
