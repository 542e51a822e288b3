"""Number of network calls of a guidance. The choice changes no result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.errors import ShapeError
from unveil.types import Condition, NoiseLevel

FEW = 8  # samples up to which a CPU gains by one call

# A denoiser that takes its condition with each call
Conditioned = Callable[[Tensor, NoiseLevel, Condition], Estimate]


def memoized(step: DenoiseFn) -> DenoiseFn:
    """Return the step with its last result cached: several parts of a guidance use one call at the same x and level.

    With `step = memoized(model.denoise_fn(condition))`, `rescale(cfg(step, null, 5), step)` makes two calls instead of
    three.
    """
    seen = _Seen()
    cached: list[Estimate] = []

    def shared(x: Tensor, level: NoiseLevel) -> Estimate:
        if not seen.again(x, level):
            cached[:] = [step(x, level)]
            seen.set(x, level)
        return cached[0]

    return shared


def should_batch(device: torch.device, count: int) -> bool:
    """Return True if condition and null of `count` samples are faster in one call; `benchmarks/guidance_call.py`.

    A small batch leaves parts of a machine idle. A few samples saturate a CPU, and two calls then move less memory
    through its caches.
    """
    return device.type != "cpu" or count <= FEW


def batch_cond_uncond(denoiser: Conditioned, *conditions: Condition) -> list[DenoiseFn]:
    """Return one step per condition; they share one call of the network with a batch of all conditions.

    `cfg(*batch_cond_uncond(denoiser, condition, null), scale=4.0)` makes one call; two separate steps make two. If only
    the first step is used, it calls the network with its own rows. This is so in `cfg` with scale 1, and in `interval`
    outside of its range. Tokens of different lengths are padded, with a mask that hides the padding.

    Args:
        denoiser: Denoiser, such as `model.denoiser`.
        conditions: Conditions, each with one row per sample.

    Raises:
        ShapeError: The conditions do not use the same routes.
    """
    together = joined(conditions)
    seen = _Seen()
    estimates: list[Estimate] = []

    def all_of(x: Tensor, level: NoiseLevel) -> None:
        count = len(conditions)
        estimate = denoiser(torch.cat([x] * count), repeated(level, count, len(x)), together)
        estimates[:] = [_rows(estimate, x, slice(k * len(x), (k + 1) * len(x))) for k in range(count)]
        seen.set(x, level)

    def part(k: int) -> DenoiseFn:
        def shared(x: Tensor, level: NoiseLevel) -> Estimate:
            if not seen.again(x, level):
                if k == 0:
                    return denoiser(x, level, conditions[0])
                all_of(x, level)
            return estimates[k]

        return shared

    return [part(k) for k in range(len(conditions))]


class _Seen:
    """The x and the level of the last call. An x that was written to since counts as another one."""

    def __init__(self) -> None:
        self._x: Tensor | None = None
        self._level: NoiseLevel | None = None
        self._version: tuple[int, bool, bool] | None = None

    def again(self, x: Tensor, level: NoiseLevel) -> bool:
        """Return True if this x and level are those of the last call."""
        version = self._of(x)
        if x is not self._x or version is None or version != self._version or self._level is None:
            return False
        # a level's tensors are compared by identity: what they hold is never changed
        pairs = zip(self._level[:3], level[:3], strict=True)
        return all(a is b for a, b in pairs)

    def set(self, x: Tensor, level: NoiseLevel) -> None:
        """Record this x and level as those of the last call."""
        self._x, self._level, self._version = x, level, self._of(x)

    @staticmethod
    def _of(x: Tensor) -> tuple[int, bool, bool] | None:
        # an inference tensor does not count how often it was written to, so nothing is shared there
        return None if x.is_inference() else (x._version, torch.is_grad_enabled(), x.requires_grad)


def _rows(estimate: Estimate, x: Tensor, rows: slice) -> Estimate:
    extra = None if estimate.extra is None else estimate.extra[rows]
    if estimate.solution is not None and estimate.solution.scalars is not None:
        # with the solution itself, so that guidance can combine the raw outputs
        return Estimate.solved(estimate.solution, x, estimate._y[rows], extra)
    return Estimate(estimate.x0[rows], estimate.eps[rows], extra)


def repeated(level: NoiseLevel, count: int, size: int) -> NoiseLevel:
    """The level of a batch that contains each sample `count` times."""

    def repeat(value: Tensor) -> Tensor:
        return torch.cat([value] * count) if value.ndim > 0 and len(value) == size > 1 else value

    return NoiseLevel(*(repeat(value) for value in level))


def joined(conditions: Sequence[Condition]) -> Condition:
    """The rows of all conditions one after the other."""
    padded = _padded(conditions)
    routes: dict[str, Any] = {}
    used = [condition.routes() for condition in padded]
    for name in used[0]:
        values = [route[name] for route in used]
        unused = [value is None for value in values]
        if any(unused) and not all(unused):
            raise ShapeError(
                f"conditions differ in the route {name!r}: only {unused.count(False)} of {len(values)} use it; "
                "give each its null, as `Model.encode` returns it"
            )
        shapes = {tuple(value.shape[1:]) for value in values if value is not None}
        if len(shapes) > 1:
            raise ShapeError(f"conditions differ in the shape of {name!r}: {sorted(shapes)}; make them equal")
        routes[name] = None if any(unused) else torch.cat(values)
    return Condition(**routes)


def _padded(conditions: Sequence[Condition]) -> list[Condition]:
    """The same conditions with tokens padded to the longest one, and a mask for each that needs one."""
    lengths = {condition.tokens.shape[1] for condition in conditions if condition.tokens is not None}
    masked = [condition.mask is not None for condition in conditions]
    if len(lengths) < 2 and all(masked) == any(masked):
        return list(conditions)
    padded: list[Condition] = []
    for condition in conditions:
        if condition.tokens is None:
            padded.append(condition)
            continue
        mask = (
            condition.mask
            if condition.mask is not None
            else condition.tokens.new_ones(condition.tokens.shape[:2], dtype=torch.bool)
        )
        more = max(lengths) - condition.tokens.shape[1]
        tokens = functional.pad(condition.tokens, (0, 0, 0, more))
        padded.append(replace(condition, tokens=tokens, mask=functional.pad(mask, (0, more))))
    return padded
