"""Diffusion forcing: the training loss of videos with a noise level per frame and with conditioning frames.

One network learns text-to-video, extension in both directions, interpolation between frames, and denoising of frames
with different noise levels. Conditioning frames have noise level 0 in the input and are left out of the loss.
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

# Draw numbers in the random stream of a training example. The loss has 0 and 1, batch preparation a few from 2 on.
_MODE, _CONTEXT, _FRAMES = 64, 65, 66


@dataclass(frozen=True)
class ContextModes:
    """Shares of the context modes, that is, of the choices of conditioning frames. They are normalised to sum 1.

    Args:
        none: No conditioning frames; all frames have one noise level.
        first: The first frame.
        prefix, suffix: One frame to half of the frames, at the start or at the end.
        both_ends: Up to a third of the frames at each end.
        random: Each frame with a probability between 0.1 and 0.7.
        independent: No conditioning frames; each frame has its own noise level.

    Raises:
        RecipeError: A share is negative, or all are 0.
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
            raise RecipeError(f"context_modes {shares}: shares must be at least 0, and one above 0")

    def sample_modes(self, u: Tensor) -> list[str]:
        """Return the mode of each video, for uniform random numbers u in [0, 1), (B,)."""
        names = [field.name for field in fields(self)]
        shares = torch.tensor([getattr(self, name) for name in names], dtype=torch.float64)
        ends = shares.cumsum(0) / shares.sum()
        places = torch.searchsorted(ends, u.contiguous(), right=True).clamp(max=len(names) - 1)
        return [names[place] for place in places.tolist()]


class NoisedBatch(NamedTuple):
    """Network input and target for videos x0 (B, C, T, H, W).

    Attributes:
        x: Noised videos.
        input_level: Noise level of each frame; that of data for conditioning frames.
        target: Target of the prediction.
        times: Sampled times.
        level: Noise levels of the process at these times, (B T,).
    """

    x: Tensor
    input_level: NoiseLevel
    target: Tensor
    times: SampledTimes
    level: NoiseLevel


class SampledTimes(NamedTuple):
    """Sampled times of a batch of videos of T frames.

    Attributes:
        t: Time of each frame, (B, T) float64.
        importance: Importance weight of the error of each frame, (B, T).
        generated: False for conditioning frames, (B, T).
    """

    t: Tensor
    importance: Tensor
    generated: Tensor


@dataclass(frozen=True)
class DiffusionForcingLoss:
    """Mean error of the prediction over the generated frames of each video.

    Args:
        context_modes: Shares of the context modes.
        distance: Name in `objective.DISTANCES`.
        weight: Loss weight in x0 space; None: no weight on the predicted target.
        time: Timestep sampling, one time per video or, in the mode `independent`, one per frame.

    Raises:
        RecipeError: The timestep sampling learns from losses of one noise level per sample.

    Source: conditioning frames: Zheng et al. 2024, section 3 (arXiv:2412.20404); a noise level per frame: Chen et al.
        2024, section 3.1 (arXiv:2407.01392).
    """

    context_modes: ContextModes = field(default_factory=ContextModes)
    distance: str = "l2"
    weight: Weight | None = None
    time: TimeSampler = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if isinstance(self.time, SecondMoment):
            raise RecipeError(
                "time: second-moment learns from losses of one noise level, and videos have several; choose another"
            )

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, streams: SampleRNG, step: int
    ) -> LossOutput:
        """Return the loss of videos x0 (B, C, T, H, W), or of images, at training step `step`."""
        return self.loss_of(denoiser, x0, condition, *self.sample(denoiser.process, x0, streams, step))

    def sample(self, process: Process, x0: Tensor, streams: SampleRNG, step: int) -> tuple[SampledTimes, Tensor]:
        """Sample the times, the conditioning frames and the noise of videos x0 at a training step."""
        times = self.sample_times(process, x0.shape[2] if x0.ndim == 5 else 1, streams, step)
        return times, streams.normal(x0.shape[1:], step, NOISE).to(x0)

    def sample_times(self, process: Process, frames: int, streams: SampleRNG, step: int) -> SampledTimes:
        """Sample the times of frames, and which of them are conditioning frames."""
        u = streams.uniform(step, TIME)
        t, importance = (tensor[:, None].repeat(1, frames) for tensor in self.time.times(process, u, streams.samples))
        u_context = streams.uniforms(frames + 2, step, _CONTEXT)
        generated = torch.ones(len(u), frames, dtype=torch.bool)
        modes = self.context_modes.sample_modes(streams.uniform(step, _MODE))
        independent = torch.tensor([mode == "independent" for mode in modes])
        if bool(independent.any()):
            u_frames = streams.uniforms(frames, step, _FRAMES)
            for frame in range(frames):
                t_frame, weight = self.time.times(process, u_frames[:, frame], streams.samples)
                t[independent, frame], importance[independent, frame] = t_frame[independent], weight[independent]
        for row, mode in enumerate(modes):
            generated[row] = ~context_mask(mode, u_context[row].tolist())
        return SampledTimes(t, importance, generated)

    def at(self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, t: Tensor, noise: Tensor) -> LossOutput:
        """Return the loss without conditioning frames, with one time per video, t (B,) float64."""
        return self.loss_of(denoiser, x0, condition, shared_time(x0, t), noise)

    def loss_of(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, times: SampledTimes, noise: Tensor
    ) -> LossOutput:
        """Return the loss for sampled times and noise."""
        batch = self.noised(denoiser, x0, times, noise)
        return self.loss_of_prediction(denoiser, batch, denoiser.output(batch.x, batch.input_level, condition)[0])

    def noised(self, denoiser: Denoiser, x0: Tensor, times: SampledTimes, noise: Tensor) -> NoisedBatch:
        """Return the network input and the target for videos."""
        per_frame = (slice(None), None, slice(None), None, None)
        axes = per_frame if x0.ndim == 5 else (slice(None), slice(None), None, None)
        flat = denoiser.process.at(times.t.flatten())
        level = NoiseLevel(*(_per_frame(value, times.t)[axes] for value in flat))
        input_level = partly(level, times.generated[axes])
        x = like(input_level.alpha, x0) * x0 + like(input_level.sigma, x0) * noise
        a, b = denoiser.prediction(level)
        return NoisedBatch(x, input_level, like(a, x0) * x0 + like(b, x0) * noise, times, flat)

    def loss_of_prediction(self, denoiser: Denoiser, batch: NoisedBatch, y: Tensor) -> LossOutput:
        """Return the loss of a network output y."""
        times = batch.times
        error = DISTANCES[self.distance](y - batch.target)
        axes = (1, 3, 4) if y.ndim == 5 else (1, 2, 3)
        per_frame = error.mean(axes).view(times.t.shape)  # (B, T)
        if self.weight is not None:
            weight = on_target(self.weight, denoiser.prediction, batch.level)
            per_frame = per_frame * weight.view(times.t.shape).to(per_frame)
        generated = times.generated.to(per_frame)
        per_sample = (per_frame * generated).sum(1) / generated.sum(1)  # (B,)
        weighted = (per_frame * generated * times.importance.to(per_frame)).sum(1) / generated.sum(1)
        t_max = torch.where(times.generated, times.t, 0).amax(1)
        return LossOutput(weighted.mean(), per_sample.detach(), t_max, {"simple": per_sample.detach()})

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Do nothing: the timestep sampling does not learn from losses."""


def shared_time(x0: Tensor, t: Tensor) -> SampledTimes:
    """Return sampled times without conditioning frames, with one time per video, t (B,) float64."""
    times = t[:, None].repeat(1, x0.shape[2] if x0.ndim == 5 else 1)
    return SampledTimes(times, torch.ones_like(times), torch.ones_like(times, dtype=torch.bool))


def context_mask(mode: str, u: Sequence[float]) -> Tensor:
    """Return the mask of the conditioning frames of a video, (T,); at least one frame is generated.

    Args:
        mode: Context mode, a field of `ContextModes`.
        u: T + 2 uniform random numbers in [0, 1).
    """
    count = len(u) - 2
    context = torch.zeros(count, dtype=torch.bool)
    if count < 2 or mode in ("none", "independent"):
        return context
    half, third = count // 2, max(1, count // 3)
    if mode == "first":
        context[0] = True
    elif mode == "prefix":
        context[: 1 + int(u[0] * half)] = True
    elif mode == "suffix":
        context[count - 1 - int(u[0] * half) :] = True
    elif mode == "both_ends":
        context[: 1 + int(u[0] * third)] = True
        context[count - 1 - int(u[1] * third) :] = True
    else:
        context = torch.tensor(u[2:]) < 0.1 + 0.6 * u[0]
    if bool(context.all()):
        context[int(u[1] * count)] = False
    return context


def _per_frame(value: object, t: Tensor) -> Tensor:
    """Return a field of a noise level of shape (B T,) in the shape (B, T) of t."""
    return torch.as_tensor(value, dtype=torch.float64).expand(t.numel()).view(t.shape)
