"""Samples near another, and the way from one sample to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from unveil.conditioning.batching import build_conditions
from unveil.core.rng import Noise, SampleRNG
from unveil.core.samplers import slerp
from unveil.core.sampling_run import SamplingRun
from unveil.errors import RecipeError, ShapeError
from unveil.generation.task_spec import TaskSpec
from unveil.model import Model
from unveil.types import Condition, like


def seed_variations(of: tuple[int, int], *, amount: float) -> TaskSpec:
    """Samples whose noise lies between that of a sample that is there and that of the request's seeds.

    All noise does: what a run starts from, and what samplers add on the way. Amount 0 gives the same picture.

    Args:
        of: the seed and the number of the sample.
        amount: of the way to the other noise, along the sphere; in [0, 1].

    Raises:
        RecipeError: an amount outside [0, 1].
    """
    if not 0 <= amount <= 1:
        raise RecipeError(f"amount {amount}: must lie in [0, 1]; 0 is the same picture, 1 another one")

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        own = _noise(course, of)
        return replace(course, noise=_mixed(own, course.noise, torch.full((len(course),), amount)))

    return TaskSpec("vary", {"amount": amount, "of": list(of)}, change)


def interpolate(
    model: Model,
    ends: tuple[tuple[int, int], tuple[int, int]],
    *,
    frames: int,
    to: Mapping[str, Sequence[Any]] | None = None,
) -> TaskSpec:
    """The way between two samples: noise along the sphere, the condition along a line.

    The request asks for `frames` pictures (its `first` is the number of a frame), with the condition of the first
    end; both ends are the two samples as they would be drawn by themselves.

    Args:
        ends: seed and number of both samples.
        frames: in all, at least 2.
        to: the condition of the other end, where it has another one. The pictures of ControlNets stay all the way.

    Raises:
        RecipeError: fewer than 2 frames.
    """
    if frames < 2:
        raise RecipeError(f"frames {frames}: at least 2, the two ends")
    controls = set() if model.controls is None else set(model.controls.conditioners)

    def change(course: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        weights = torch.tensor(course.streams.samples, dtype=torch.float64) / (frames - 1)
        noise = _mixed(_noise(course, ends[0]), _noise(course, ends[1]), weights)
        if not to or course.condition is None:
            return replace(course, noise=noise)
        free = {key: one for key, one in course.conditioners.items() if key not in controls}
        other = build_conditions(free, {key: list(values)[:1] for key, values in to.items()}, len(course))[0]
        assert other is not None  # a model that takes the one condition takes the other
        other = replace(other, hint=course.condition.hint)
        return replace(course, noise=noise, condition=lerp(course.condition, other, weights))

    settings = {
        "ends": [list(end) for end in ends],
        "frames": frames,
        "to": {k: list(v) for k, v in (to or {}).items()},
    }
    return TaskSpec("interpolate", settings, change)


def lerp(first: Condition, last: Condition, weights: Tensor) -> Condition:
    """Between two conditions along a line, row by row: weight 0 (B,) is the first, 1 the last.

    Of tokens all that count in one of the two do.

    Raises:
        ShapeError: conditions of different routes or lengths.
    """
    found: dict[str, Any] = {}
    for route in fields(Condition):
        a, b = getattr(first, route.name), getattr(last, route.name)
        if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
            raise ShapeError(f"the conditions of both ends differ in their {route.name}; give others")
        if a is not None:
            found[route.name] = a | b if a.dtype == torch.bool else torch.lerp(a, b, _expanded(weights, a))
    return Condition(**found)


def _expanded(weights: Tensor, x: Tensor) -> Tensor:
    cast = like(weights, x)
    assert isinstance(cast, Tensor)
    return cast.expand_as(x)


def _noise(course: SamplingRun, of: tuple[int, int]) -> Noise:
    """The noise of one sample for all rows of a batch."""
    seed, number = of
    return SampleRNG(seed, [number] * len(course), device=course.streams.device).bind(course.shape)


def _mixed(first: Noise, last: Noise, weights: Tensor) -> Noise:
    return lambda step, draw=0: slerp(first(step, draw), last(step, draw), weights)
