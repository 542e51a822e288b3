"""The published code's order of operations, for recorded runs that amplify the rounding of float32.

Eight guided steps of a network of random weights make 0.1 of a difference of 1e-7, so a float32 record of them can be
met by the same operations in the same order alone. Here stand the places where the library orders its own otherwise,
for speed: fused multiplications, fused attention, one query where one is used, samplers as tables. That both are one
mathematics is shown in float64, where nothing is lost: a case compares the library's run with this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.core import prediction as predictions
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.rng import Noise
from unveil.core.samplers import SamplerState, StepResult, draw_noise
from unveil.core.samplers.ancestral import Shift
from unveil.core.schedules import Schedule
from unveil.nn.classifier import AttentionPool
from unveil.nn.layers import SelfAttention
from unveil.nn.unet import ResBlock, Upsample
from unveil.types import Condition, NoiseLevel, like


@contextmanager
def networks() -> Iterator[None]:
    """Inside, U-Nets and noisy classifiers compute in the published order."""
    changed = {ResBlock: _res_block, Upsample: _up, SelfAttention: _self_attention, AttentionPool: _attention_pool}
    with ExitStack() as stack:
        for kind, forward in changed.items():
            stack.enter_context(patch.object(kind, "forward", forward))
        yield


def clipped(denoiser: Denoiser, condition: Condition | None) -> DenoiseFn:
    """The denoiser of eps or x0 with x0 clamped, and what eps that leaves."""

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        y, extra = denoiser.output(x, level, condition)
        if denoiser.prediction is not predictions.x0:
            y = like(1 / level.alpha, x) * x - like(level.sigma / level.alpha, x) * y
        x0 = y.clamp(-1, 1)
        return Estimate(x0, _left(x, level, x0), extra)

    return step


def shift_eps(step: DenoiseFn, shift: Shift) -> DenoiseFn:
    """eps - sigma shift, and the x0 that it leaves; sigma comes from alpha squared in x's precision."""

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = step(x, level)
        eps = estimate.eps - (1 - _squared(level, x)).sqrt() * shift(x, level)
        x0 = like(1 / level.alpha, x) * x - like(level.sigma / level.alpha, x) * eps
        return Estimate(x0, _left(x, level, x0), estimate.extra)

    return guided


class Ddim:
    """DDIM's step with coefficients worked out from alpha squared in x's precision."""

    def __init__(self, schedule: Schedule, eta: float) -> None:
        self.schedule = schedule
        self.eta = eta

    @property
    def total(self) -> int:
        """The number of steps."""
        return len(self.schedule) - 1

    def is_done(self, state: SamplerState) -> bool:
        """Whether the schedule has ended."""
        return state.number >= self.total

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """alpha x0 + direction eps + deviation z."""
        del out
        level, x = self.schedule[state.number], state.x
        estimate = step(x, level)
        here, there = _squared(level, x), _squared(self.schedule[state.number + 1], x)
        deviation = self.eta * ((1 - there) / (1 - here)).sqrt() * (1 - here / there).sqrt()
        new = estimate.x0 * there.sqrt() + (1 - there - deviation**2).sqrt() * estimate.eps
        if state.number < self.total - 1:
            new = new + deviation * draw_noise(noise, state.number).to(x)
        return StepResult(SamplerState(new, (), state.number + 1), level, estimate)


def _squared(level: NoiseLevel, x: Tensor) -> Tensor:
    return torch.as_tensor(level.alpha, dtype=torch.float64).square().to(x)


def _left(x: Tensor, level: NoiseLevel, x0: Tensor) -> Tensor:
    return (like(1 / level.alpha, x) * x - x0) / like(level.sigma / level.alpha, x)


def _res_block(self: ResBlock, x: Tensor, time: Tensor) -> Tensor:
    h = self.conv_1(self.resample(F.silu(self.norm_1(x))))
    time = self.time(time)[:, :, None, None]
    if self.modulation == "add":
        h = self.norm_2(h + time)
    else:
        scale, shift = time.chunk(2, dim=1)
        h = self.norm_2(h) * (1 + scale) + shift
    return self.skip(self.resample(x)) + self.conv_2(F.silu(h))


def _up(self: Upsample, x: Tensor, time: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    del time
    return self.conv(F.interpolate(x, size or (2 * x.shape[-2], 2 * x.shape[-1]), mode="nearest"))


def _self_attention(self: SelfAttention, x: Tensor) -> Tensor:
    positions = x.flatten(2)
    gathered = _attended(_projected(self.norm(positions), self.qkv), self.heads, self.order)
    return (positions + _projected(gathered, self.out)).reshape(x.shape)


def _attention_pool(self: AttentionPool, x: Tensor) -> Tensor:
    positions = x.flatten(2)
    positions = torch.cat([positions.mean(-1, keepdim=True), positions], dim=-1) + self.places
    return _projected(_attended(_projected(positions, self.qkv), self.heads, "qkv-first"), self.out)[:, :, 0]


def _projected(x: Tensor, linear: torch.nn.Linear) -> Tensor:
    """A linear layer over channels (B, C, N), as a convolution."""
    return F.conv1d(x, linear.weight[:, :, None], linear.bias)


def _attended(qkv: Tensor, heads: int, order: str) -> Tensor:
    """Attention of (B, 3 C, N) in two products, query and key scaled before the first."""
    batch, width, length = qkv.shape
    if order == "heads-first":
        query, key, value = qkv.reshape(batch * heads, width // heads, length).chunk(3, dim=1)
    else:
        query, key, value = (part.reshape(batch * heads, -1, length) for part in qkv.chunk(3, dim=1))
    scale = 1 / math.sqrt(math.sqrt(query.shape[1]))
    weights = torch.einsum("bct,bcs->bts", query * scale, key * scale).softmax(dim=-1)
    return torch.einsum("bts,bcs->bct", weights, value).reshape(batch, -1, length)
