"""Variations of a sample, and interpolation between two samples or two images."""

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
from unveil.generation.generate import Request, TaskSpec, input_to_unit
from unveil.generation.invert import invert
from unveil.model import Model
from unveil.model.shapes import check_size
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
    check_frames(frames)

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        weights = _weights(run, frames)
        noise = _mixed(_noise(run, ends[0]), _noise(run, ends[1]), weights)
        return _towards(model, replace(run, noise=noise), to, weights)

    settings = {
        "ends": [list(end) for end in ends],
        "frames": frames,
        "to": {k: list(v) for k, v in (to or {}).items()},
    }
    return TaskSpec("interpolate", settings, change)


def interpolate_images(
    model: Model,
    first: Tensor,
    last: Tensor,
    request: Request,
    *,
    frames: int,
    to: Mapping[str, Sequence[Any]] | None = None,
) -> TaskSpec:
    """Interpolate between two images: the noise of each by DDIM inversion, and that of the frames along the sphere.

    The request of the frames has `frames` images, the condition of the first image and `inversion_settings`. Its ends
    are the reconstructions of both images.

    Args:
        model: Model.
        first, last: The images (N, C, H, W), uint8 or in [-1, 1]; of several equal ones, as a batch has, the first.
        request: Condition of the first image, negative condition and settings, as of `invert`.
        frames: Number of frames, at least 2.
        to: Condition of the last image, if it has another one. The control images stay the same.

    Raises:
        RecipeError: Fewer than 2 frames, or a size that the network does not take.
        ShapeError: Images of two sizes, or with another number of channels than the model's.

    Source: Song et al. 2020, sections 4.3 and 5.3 (arXiv:2010.02502).
    """
    check_frames(frames)
    if first.shape[1:] != last.shape[1:]:
        raise ShapeError(f"images {tuple(first.shape[1:])} and {tuple(last.shape[1:])}: must have one size")
    size = (first.shape[2], first.shape[3])
    check_size(model, size)
    input_to_unit(first, model.shape[0])
    noises: list[Tensor] = []  # the noise of both, when the first batch needs it

    def change(run: SamplingRun, rows: slice) -> SamplingRun:
        del rows
        if not noises:
            of_last = replace(request, cond={**request.cond, **(to or {})})
            ends = ((first, request), (last, of_last))
            noises.extend(invert(model, image[:1], replace(each, batch=1)).noise for image, each in ends)
        weights = _weights(run, frames)
        a, b = (noise.to(run.streams.device).expand(len(run), *noise.shape[1:]) for noise in noises)
        start = replace(run, x=run.schedule.start(slerp(a, b, weights)))
        return _towards(model, start, to, weights)

    return TaskSpec("interpolate", {"frames": frames}, change, size=size)


def check_frames(frames: int) -> None:
    """Raise RecipeError for fewer than 2 frames of an interpolation."""
    if frames < 2:
        raise RecipeError(f"frames {frames}: at least 2, the two ends")


def _weights(run: SamplingRun, frames: int) -> Tensor:
    """Return the position of every row between both ends, in [0, 1]."""
    return torch.tensor(run.streams.samples, dtype=torch.float64) / (frames - 1)


def _towards(model: Model, run: SamplingRun, to: Mapping[str, Sequence[Any]] | None, weights: Tensor) -> SamplingRun:
    """Return the run with its condition interpolated towards that of the last frame."""
    if not to or run.condition is None:
        return run
    controls = set() if model.controls is None else set(model.controls.conditioners)
    free = {key: conditioner for key, conditioner in run.conditioners.items() if key not in controls}
    other = build_conditions(free, {key: list(values)[:1] for key, values in to.items()}, len(run))[0]
    assert other is not None  # a model that takes the one condition takes the other
    other = replace(other, control_image=run.condition.control_image)
    return replace(run, condition=lerp(run.condition, other, weights))


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
