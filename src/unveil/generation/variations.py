"""Variations of a sample, and interpolation between two samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from unveil.conditioning.batching import build_conditions
from unveil.core.rng import Noise, SampleRNG
from unveil.core.samplers import slerp
from unveil.core.samplers.loop import SamplingRun
from unveil.errors import RecipeError, ShapeError
from unveil.generation.generate import TaskSpec
from unveil.model import Model
from unveil.types import Condition, like


def seed_variations(of: tuple[int, int], *, amount: float) -> TaskSpec:
    """Generate samples whose noise is between that of an existing sample and that of the request's seeds.

    This applies to the initial noise and to the noise that samplers add. Amount 0 gives the same image.

    Args:
        of: Seed and index of the sample.
        amount: Position between the two noises, along the sphere; in [0, 1].

    Raises:
        RecipeError: An amount outside [0, 1].
    """
    if not 0 <= amount <= 1:
        raise RecipeError(f"amount {amount}: must lie in [0, 1]; 0 is the same image, 1 another one")

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        original = _noise(run, of)
        return replace(run, noise=_mixed(original, run.noise, torch.full((len(run),), amount)))

    return TaskSpec("vary", {"amount": amount, "of": list(of)}, change)


def interpolate(
    model: Model,
    ends: tuple[tuple[int, int], tuple[int, int]],
    *,
    frames: int,
    to: Mapping[str, Sequence[Any]] | None = None,
) -> TaskSpec:
    """Interpolate between two samples: noise along the sphere, the condition along a line.

    The request has `frames` images (its `first` is the index of a frame) and the condition of the first sample. Both
    ends equal the two samples.

    Args:
        model: Model.
        ends: Seed and index of both samples.
        frames: Number of frames, at least 2.
        to: Condition of the last sample, if it has another one. The control images stay the same.

    Raises:
        RecipeError: Fewer than 2 frames.
    """
    if frames < 2:
        raise RecipeError(f"frames {frames}: at least 2, the two ends")
    controls = set() if model.controls is None else set(model.controls.conditioners)

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        weights = torch.tensor(run.streams.samples, dtype=torch.float64) / (frames - 1)
        noise = _mixed(_noise(run, ends[0]), _noise(run, ends[1]), weights)
        if not to or run.condition is None:
            return replace(run, noise=noise)
        free = {key: conditioner for key, conditioner in run.conditioners.items() if key not in controls}
        other = build_conditions(free, {key: list(values)[:1] for key, values in to.items()}, len(run))[0]
        assert other is not None  # a model that takes the one condition takes the other
        other = replace(other, control_image=run.condition.control_image)
        return replace(run, noise=noise, condition=lerp(run.condition, other, weights))

    settings = {
        "ends": [list(end) for end in ends],
        "frames": frames,
        "to": {k: list(v) for k, v in (to or {}).items()},
    }
    return TaskSpec("interpolate", settings, change)


def lerp(first: Condition, last: Condition, weights: Tensor) -> Condition:
    """Interpolate two conditions linearly, row by row: weight 0 (B,) is the first, 1 the last.

    A token counts if it counts in one of the two.

    Raises:
        ShapeError: Conditions of different routes or lengths.
    """
    mixed: dict[str, Any] = {}
    for route in fields(Condition):
        a, b = getattr(first, route.name), getattr(last, route.name)
        if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
            raise ShapeError(f"the conditions of both ends differ in their {route.name}; give others")
        if a is not None:
            mixed[route.name] = a | b if a.dtype == torch.bool else torch.lerp(a, b, _expanded(weights, a))
    return Condition(**mixed)


def _expanded(weights: Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(like(weights, x)).expand_as(x)


def _noise(run: SamplingRun, of: tuple[int, int]) -> Noise:
    """Return the noise of one sample for all rows of a batch."""
    seed, number = of
    return SampleRNG(seed, [number] * len(run), device=run.streams.device).bind(run.shape)


def _mixed(first: Noise, last: Noise, weights: Tensor) -> Noise:
    return lambda step, draw=0: slerp(first(step, draw), last(step, draw), weights)
