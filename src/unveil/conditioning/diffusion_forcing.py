"""Loss of training on clips: the error of frames at their own levels, while others are given.

One network learns to make a clip from nothing, to go on from frames at its beginning, its end or both, to fill in
between frames anywhere, and to work on frames of unlike noise, by what it is shown: frames that are given have the
level of data and are not scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core.denoiser import Denoiser
from unveil.core.loss_weights import Weight, on_target
from unveil.core.objective import DISTANCES, NOISE, TIME, LossOutput
from unveil.core.process import Process, partly
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import SecondMoment, TimeSampler, Uniform
from unveil.errors import RecipeError
from unveil.types import Condition, NoiseLevel, like

# Draws of a training example's stream; the objective has 0 and 1, preparing a batch a few from 2 on
_WAY, _CONTEXT, _FRAMES = 64, 65, 66


@dataclass(frozen=True)
class ContextModes:
    """Shares of the ways in which frames of a clip are given; the shares are made to add up to 1.

    Args:
        none: every frame is to be made, all at one level.
        first: the first frame is given.
        prefix, suffix: from one frame to half of them are given, at the beginning or at the end.
        both_ends: up to a third of them at each end.
        random: each of them by chance, a tenth to seven tenths.
        independent: none is given, and each has its own level.

    Raises:
        RecipeError: a share below 0, or none above.
    """

    none: float = 0.45
    first: float = 0.15
    prefix: float = 0.1
    suffix: float = 0.1
    both_ends: float = 0.05
    random: float = 0.05
    independent: float = 0.1

    def __post_init__(self) -> None:
        shares = {field.name: getattr(self, field.name) for field in fields(self)}
        if min(shares.values()) < 0 or not sum(shares.values()) > 0:
            raise RecipeError(f"ways {shares}: shares are at least 0, and one is above")

    def drawn(self, u: Tensor) -> list[str]:
        """The way of each clip, of numbers in [0, 1) (B,)."""
        names = [field.name for field in fields(self)]
        shares = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64)
        ends = shares.cumsum(0) / shares.sum()
        places = torch.searchsorted(ends, u.contiguous(), right=True).clamp(max=len(names) - 1)
        return [names[place] for place in places.tolist()]


class NoisedBatch(NamedTuple):
    """Input of a network for clips x0 (B, C, T, H, W), and its target.

    x: the clips, noised. seen: the level of each frame, that of data where it is given. target: of the prediction.
    drawn: what was drawn for them. level: the process at these times, (B T,).
    """

    x: Tensor
    seen: NoiseLevel
    target: Tensor
    drawn: SampledTimes
    level: NoiseLevel


class SampledTimes(NamedTuple):
    """Times of a batch of clips of T frames.

    t: time of each frame (B, T) float64; importance: what its error is multiplied with.
    generated: (B, T), False for a frame that is given.
    """

    t: Tensor
    importance: Tensor
    generated: Tensor


@dataclass(frozen=True)
class DiffusionForcingLoss:
    """The error of a prediction over the frames that are to be made, in each clip's mean.

    Args:
        ways: how frames are given.
        distance: a name in `objective.DISTANCES`.
        weight: of the error, in x0 space; None weighs the predicted target evenly.
        time: which times are drawn, one for a clip, or one for each of its frames.

    Raises:
        RecipeError: times that learn from losses, which are of frames here.

    Source: frames that are given: Zheng et al. 2024, section 3 (arXiv:2412.20404); a level for each frame: Chen et al.
        2024, section 3.1 (arXiv:2407.01392).
    """

    ways: ContextModes = field(default_factory=ContextModes)
    distance: str = "l2"
    weight: Weight | None = None
    time: TimeSampler = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if isinstance(self.time, SecondMoment):
            raise RecipeError(
                "time: second-moment learns from losses of one level, and clips have several; take another"
            )

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, streams: SampleRNG, step: int
    ) -> LossOutput:
        """The loss of clips x0 (B, C, T, H, W), or images, at training step `step`."""
        return self.of(denoiser, x0, condition, *self.chance(denoiser.process, x0, streams, step))

    def chance(self, process: Process, x0: Tensor, streams: SampleRNG, step: int) -> tuple[SampledTimes, Tensor]:
        """All that is drawn for clips x0 at a training step: times and frames that are given, and the noise."""
        drawn = self.draw(process, x0.shape[2] if x0.ndim == 5 else 1, streams, step)
        return drawn, streams.normal(x0.shape[1:], step, NOISE).to(x0)

    def draw(self, process: Process, frames: int, streams: SampleRNG, step: int) -> SampledTimes:
        """Times of frames, and which are given."""
        u = streams.uniform(step, TIME)
        t, importance = (tensor[:, None].repeat(1, frames) for tensor in self.time.times(process, u, streams.samples))
        chosen = streams.uniforms(frames + 2, step, _CONTEXT)
        generated = torch.ones(len(u), frames, dtype=torch.bool)
        ways = self.ways.drawn(streams.uniform(step, _WAY))
        independent = torch.tensor([way == "independent" for way in ways])
        if bool(independent.any()):
            each = streams.uniforms(frames, step, _FRAMES)
            for place in range(frames):
                of_frame, weight = self.time.times(process, each[:, place], streams.samples)
                t[independent, place], importance[independent, place] = of_frame[independent], weight[independent]
        for row, way in enumerate(ways):
            generated[row] = ~context_mask(way, chosen[row].tolist())
        return SampledTimes(t, importance, generated)

    def at(self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, t: Tensor, noise: Tensor) -> LossOutput:
        """The loss of clips of which nothing is given, each at one time, t (B,) float64."""
        return self.of(denoiser, x0, condition, shared_time(x0, t), noise)

    def of(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, drawn: SampledTimes, noise: Tensor
    ) -> LossOutput:
        """The loss at given times and noise, the whole of the mathematics."""
        shown = self.shown(denoiser, x0, drawn, noise)
        return self.judged(denoiser, shown, denoiser.output(shown.x, shown.seen, condition)[0])

    def shown(self, denoiser: Denoiser, x0: Tensor, drawn: SampledTimes, noise: Tensor) -> NoisedBatch:
        """Input of the network for clips, and its target."""
        clips = (slice(None), None, slice(None), None, None) if x0.ndim == 5 else (slice(None), slice(None), None, None)
        flat = denoiser.process.at(drawn.t.flatten())
        level = NoiseLevel(*(_wide(value, drawn.t)[clips] for value in flat))
        seen = partly(level, drawn.generated[clips])
        x = like(seen.alpha, x0) * x0 + like(seen.sigma, x0) * noise
        a, b = denoiser.prediction(level)
        return NoisedBatch(x, seen, like(a, x0) * x0 + like(b, x0) * noise, drawn, flat)

    def judged(self, denoiser: Denoiser, shown: NoisedBatch, y: Tensor) -> LossOutput:
        """The loss of what the network answered."""
        drawn = shown.drawn
        error = DISTANCES[self.distance](y - shown.target)
        axes = (1, 3, 4) if y.ndim == 5 else (1, 2, 3)
        each = error.mean(axes).view(drawn.t.shape)  # (B, T)
        if self.weight is not None:
            each = each * on_target(self.weight, denoiser.prediction, shown.level).view(drawn.t.shape).to(each)
        scored = drawn.generated.to(each)
        plain = (each * scored).sum(1) / scored.sum(1)  # (B,)
        weighted = (each * scored * drawn.importance.to(each)).sum(1) / scored.sum(1)
        worst = torch.where(drawn.generated, drawn.t, 0).amax(1)
        return LossOutput(weighted.mean(), plain.detach(), worst, {"simple": plain.detach()})

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Nothing is learned of losses."""


def shared_time(x0: Tensor, t: Tensor) -> SampledTimes:
    """Times of clips of which nothing is given, each at one time, t (B,) float64."""
    each = t[:, None].repeat(1, x0.shape[2] if x0.ndim == 5 else 1)
    return SampledTimes(each, torch.ones_like(each), torch.ones_like(each, dtype=torch.bool))


def context_mask(way: str, u: Sequence[float]) -> Tensor:
    """Mask of the frames of a clip that are given in this way, (T,); at least one is left to be made.

    Args:
        way: a field of `ContextModes`.
        u: T + 2 numbers in [0, 1).
    """
    count = len(u) - 2
    context = torch.zeros(count, dtype=torch.bool)
    if count < 2 or way in ("none", "independent"):
        return context
    half, third = count // 2, max(1, count // 3)
    if way == "first":
        context[0] = True
    elif way == "prefix":
        context[: 1 + int(u[0] * half)] = True
    elif way == "suffix":
        context[count - 1 - int(u[0] * half) :] = True
    elif way == "both_ends":
        context[: 1 + int(u[0] * third)] = True
        context[count - 1 - int(u[1] * third) :] = True
    else:
        context = torch.tensor(u[2:]) < 0.1 + 0.6 * u[0]
    if bool(context.all()):
        context[int(u[1] * count)] = False
    return context


def _wide(value: object, t: Tensor) -> Tensor:
    """A field of a level of (B T,) as (B, T)."""
    return torch.as_tensor(value, dtype=torch.float64).expand(t.numel()).view(t.shape)
