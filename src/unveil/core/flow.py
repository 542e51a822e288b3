"""Straight paths from data to noise, and the shift of any process towards its noisy end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.elementary import as_tensor
from unveil.core.process import Process, checked_time
from unveil.errors import RecipeError
from unveil.types import NoiseLevel


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths from data to noise: alpha = 1 - t, sigma = t.

    Args:
        index_scale: Factor of t in the network's time embedding.
        rounding: "down" gives the network whole numbers, as the published solver of Wan does.

    Source: Liu et al. 2022, eq. 1 (arXiv:2209.03003); Esser et al. 2024, eq. 13 (arXiv:2403.03206).
    """

    index_scale: float = 1000.0
    rounding: Literal["none", "down"] = "none"

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t."""
        t = checked_time(t)
        return NoiseLevel(t, 1 - t, t, torch.full_like(t, -1.0), torch.ones_like(t))

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR."""
        return elementary.sigmoid(-as_tensor(half_log_snr))

    def timestep(self, level: NoiseLevel) -> Tensor:
        """T in thousandths, the range that DDPM's time embedding was made for."""
        index = level.t * self.index_scale
        return index if self.rounding == "none" else index.floor()

    def trainable(self, u: Tensor) -> Tensor:
        """(0, 1), kept off both ends by 1e-5."""
        return 1e-5 + (1 - u) * (1 - 2e-5)

    def within(self, t: Tensor) -> Tensor:
        """(0, 1), kept off both ends by 1e-5."""
        return t.clamp(1e-5, 1 - 1e-5)

    def prior(self, level: NoiseLevel) -> Tensor:
        """The deviation of x when that of the data is 1; 1 at t = 1."""
        return elementary.sqrt(elementary.square(level.alpha) + elementary.square(level.sigma))


@dataclass(frozen=True)
class TokenFlow(RectifiedFlow):
    """Rectified flow that knows the number of tokens, for `token_times`.

    Args:
        tokens: Number of tokens of a sample; `resized` returns the process for latents of another shape.
    """

    tokens: int = 4096

    def resized(self, shape: Sequence[int]) -> TokenFlow:
        """Return the process for latents (C, H, W), of which each is a token."""
        return replace(self, tokens=math.prod(shape[1:]))


@dataclass(frozen=True)
class TimeShift:
    """Process whose time is shifted towards the noise: the level of another process at s t / (1 + (s - 1) t).

    Larger images need more noise to lose the same share of their content, because neighbouring pixels are alike. A
    shift of `resolution_shift` compensates for this. The network gets the index of the shifted time.

    Args:
        process: Process that is shifted.
        shift: Shift s; 1 changes nothing, a larger value puts more of the time into the noise.

    Raises:
        RecipeError: The shift is not above 0.

    Source: Esser et al. 2024, eq. 23 (arXiv:2403.03206).
    """

    process: Process
    shift: float

    def __post_init__(self) -> None:
        """Refuses a shift that is not above 0."""
        if not self.shift > 0:
            raise RecipeError(f"shift = {self.shift}: must be above 0; 1 changes nothing")

    def at(self, t: Tensor | float) -> NoiseLevel:
        """The level at t, with the derivatives in this t."""
        t = checked_time(t)
        level = self.process.at(self._inner(t))
        speed = elementary.divide(self.shift, elementary.square(1 + (self.shift - 1) * t))
        return NoiseLevel(t, level.alpha, level.sigma, level.dalpha * speed, level.dsigma * speed)

    def t_of(self, half_log_snr: Tensor | float) -> Tensor:
        """The time of a half log-SNR."""
        return self._outer(self.process.t_of(half_log_snr))

    def timestep(self, level: NoiseLevel) -> Tensor:
        """Index that the process without the shift gives the network."""
        return self.process.timestep(level._replace(t=self._inner(level.t)))

    def trainable(self, u: Tensor) -> Tensor:
        """Times spread as evenly in this t as the process allows."""
        return self.within(self.process.trainable(u))

    def within(self, t: Tensor) -> Tensor:
        """The nearest time, in the process's own, at which a network is trained."""
        return self._outer(self.process.within(self._inner(t)))

    def prior(self, level: NoiseLevel) -> Tensor:
        """Deviation of the process's prior."""
        return self.process.prior(level._replace(t=self._inner(level.t)))

    def _inner(self, t: Tensor) -> Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def _outer(self, t: Tensor) -> Tensor:
        return t / (self.shift - (self.shift - 1) * t)


@dataclass(frozen=True)
class DynamicShift(TimeShift):
    """Shift that depends on the number of tokens: its logarithm, or the shift itself, is linear in that number.

    `resized` returns the process for latents of another shape, with their shift.

    Args:
        process: Process that is shifted.
        shift: Shift of the latents of the present shape.
        low, high: Two points of the line, each a number of tokens and the value there.
        patch: Side of the square of latents that is one token.
        exponential: True if the line is that of log(shift).

    Source: FLUX.1's published inference code (github.com/black-forest-labs/flux), with its numbers.
    """

    low: tuple[int, float] = (256, 0.5)
    high: tuple[int, float] = (4096, 1.15)
    patch: int = 2
    exponential: bool = True

    def resized(self, shape: Sequence[int]) -> DynamicShift:
        """Return the process for latents (C, H, W) of images or (C, T, H, W) of videos, whose frames count as well."""
        tokens = math.prod(shape[1:-2]) * (shape[-2] // self.patch) * (shape[-1] // self.patch)
        slope = (self.high[1] - self.low[1]) / (self.high[0] - self.low[0])
        value = self.low[1] + slope * (tokens - self.low[0])
        return replace(self, shift=math.exp(value) if self.exponential else value)


@dataclass(frozen=True)
class SqrtSizeShift(TimeShift):
    """Shift proportional to the root of the size, so that every size has the same uncertainty.

    `resized` returns the process for samples of another shape, both in training and in sampling.

    Args:
        process: Process that is shifted.
        shift: Shift of samples with `places` positions.
        places: Number of pixels or latents of a sample, over all frames and in one channel; the number of tokens is
            proportional to it.

    Source: Esser et al. 2024, section 5.3.2 (arXiv:2403.03206).
    """

    places: int

    def resized(self, shape: Sequence[int]) -> SqrtSizeShift:
        """Return the process for samples (C, H, W) or (C, T, H, W)."""
        places = math.prod(shape[1:])
        return replace(self, shift=self.shift * resolution_shift(places, self.places), places=places)


def resolution_shift(tokens: int, trained_tokens: int) -> float:
    """The shift that keeps the uncertainty of a process made for `trained_tokens`: sqrt(tokens / trained_tokens).

    Source: Esser et al. 2024, section 5.3.2 (arXiv:2403.03206).
    """
    return math.sqrt(tokens / trained_tokens)


def token_times(process: Process, steps: int) -> list[float]:
    """Times of FLUX.2's schedule: even ones, shifted by a number that follows from the tokens and the steps.

    The logarithm of the shift is linear in the number of steps, through its values at 10 and 200.

    Args:
        process: A `TokenFlow`.
        steps: Number of network calls.

    Raises:
        RecipeError: Another process, or steps is below 1.

    Source: FLUX.2's published inference code (github.com/black-forest-labs/flux2), with its numbers.
    """
    if not isinstance(process, TokenFlow) or steps < 1:
        raise RecipeError(f"schedule 'size-and-steps' with {type(process).__name__}: needs FLUX.2's process, 1 step")
    exponent = 0.00016927 * process.tokens + 0.45666666  # at 200 steps
    if process.tokens <= 4300:
        exponent += (200 - steps) / 190 * (8.73809524e-05 * process.tokens + 1.89833333 - exponent)  # at 10 steps
    shift = math.exp(exponent)
    return [1.0, *(shift / (shift + steps / (steps - i) - 1) for i in range(1, steps))]
