"""Functions and starting noise of the caller in a prepared sampling run: a sampler, a schedule, a guidance, latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance import memoized
from unveil.core.process import Process
from unveil.core.rng import START, Noise
from unveil.core.samplers import Plan
from unveil.core.samplers.loop import SamplingRun
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel

# schedule -> steps of the run
SamplerFunction = Callable[[Schedule], Plan]
# process of the model, number of steps -> noise levels, the noisiest first
ScheduleFunction = Callable[[Process, int], Schedule]
# denoiser with the condition, denoiser without it -> guided denoiser
GuidanceFunction = Callable[[DenoiseFn, DenoiseFn], DenoiseFn]
# The same, for a model that may have no null condition
Guide = Callable[[DenoiseFn, DenoiseFn | None], DenoiseFn]


def customized(
    run: SamplingRun, options: Mapping[str, Any], rows: slice, count: int, steps: int, guided: Callable[..., DenoiseFn]
) -> SamplingRun:
    """Return the run of a batch with the caller's functions and noise in place of those of the settings.

    Args:
        run: Prepared run.
        options: Keywords of `Model.generate`, of which `sampler`, `schedule` and `guidance` may be functions.
        rows: Rows of the batch in the set of samples.
        count: Number of samples of the set.
        steps: Number of steps, for a schedule function.
        guided: Function (condition, null, guide=...) that binds the conditions of the batch.

    Raises:
        RecipeError: A function returned something else than it must.
        ShapeError: The latents do not have the shape (count, *run.shape).
    """
    if callable(schedule := options.get("schedule")):
        run = replace(run, schedule=_checked("schedule", schedule(run.schedule.process, steps), Schedule))
    if callable(sampler := options.get("sampler")):
        run = replace(run, make_plan=lambda schedule: _plan(sampler(schedule)))
    if (guidance := options.get("guidance")) is not None:
        run = replace(
            run, make_guided_denoiser=lambda condition, null: guided(condition, null, guide=partial(_guide, guidance))
        )
    if (latents := options.get("latents")) is not None:
        run = replace(run, noise=_starting_with(_latents(latents, (count, *run.shape))[rows], run.noise))
    return run


def _plan(plan: Any) -> Plan:
    if not all(hasattr(plan, name) for name in ("total", "is_done", "advance")):
        raise RecipeError(
            f"sampler: the function returned {type(plan).__name__}; it must return the steps of a schedule: a "
            "samplers.CoefficientTable, or an object with total, is_done and advance (samplers.Plan)"
        )
    return plan


def _checked(name: str, result: Any, kind: type[Schedule]) -> Schedule:
    if not isinstance(result, kind):
        raise RecipeError(
            f"{name}: the function returned {type(result).__name__}; it must return a schedules.Schedule, such as "
            "schedules.from_times(process, [1.0, 0.5, 0.0])"
        )
    return result


def _guide(
    guidance: Callable[[DenoiseFn, DenoiseFn], Any], conditional: DenoiseFn, null: DenoiseFn | None
) -> DenoiseFn:
    """Return the caller's guidance of a pair of denoisers, whose results are checked."""
    guided = guidance(memoized(conditional), null or _no_null)
    if not callable(guided):
        raise RecipeError(
            f"guidance: the function returned {type(guided).__name__}; it must return a denoiser, a function (x, level)"
        )

    def checked(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = guided(x, level)
        if not isinstance(estimate, Estimate):
            raise RecipeError(
                f"guidance: the denoiser returned {type(estimate).__name__}; it must return an Estimate, such as "
                "Estimate.of_x0(x0, x, level)"
            )
        return estimate

    return checked


def _no_null(x: Tensor, level: NoiseLevel) -> NoReturn:
    del x, level
    raise RecipeError(
        "guidance: the model has no null condition, because it was trained without condition dropout (drop_prob 0) or "
        "takes no condition; use only `conditional`, or give a negative condition"
    )


def _latents(latents: Any, shape: tuple[int, ...]) -> Tensor:
    noise = torch.as_tensor(latents)
    if tuple(noise.shape) != shape:
        raise ShapeError(f"latents {tuple(noise.shape)}: must be {shape}, standard normal noise for each sample")
    return noise


def _starting_with(latents: Tensor, noise: Noise) -> Noise:
    def drawn(step: int, draw: int = 0) -> Tensor:
        if (step, draw) != (START, 0):
            return noise(step, draw)
        return latents.to(noise(step, draw))

    return drawn
