"""Guidance by the difference of two estimates, and its interval within a run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from unveil.core import elementary, prediction
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance.schedule import Scale, scale_at
from unveil.core.prediction import Prediction, solve
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel, like


def cfg(conditional: DenoiseFn, null: DenoiseFn, scale: Scale, *, channels: int | None = None) -> DenoiseFn:
    """Classifier-free guidance: null + scale (conditional - null); scale 0 is the null, 1 means no guidance.

    Scales above 1 go beyond the condition, negative ones away from it. The paper's w is scale - 1. A negative prompt is
    another condition instead of null. If the scale is 1, the null step is not called.

    Args:
        conditional: Denoiser with the condition.
        null: Denoiser without the condition, or with the negative condition.
        scale: Guidance scale: a number, one per sample (B,), or a function of the level (`SCHEDULES`).
        channels: Number of the first channels (axis 1) that are guided; the rest stay conditional. DiT guides 3 of 4.

    Raises:
        RecipeError: channels is below 1.

    Source: Ho & Salimans 2022, eq. 6 (arXiv:2207.12598).
    """
    if channels is not None and channels < 1:
        raise RecipeError(f"channels = {channels}: guide at least 1, or leave it away to guide all")
    if not callable(scale):
        scale = elementary.as_tensor(scale)
        if not scale.ndim and scale == 1:
            return conditional

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        weight = scale_at(scale, level)
        if not weight.ndim:
            number = weight.item()
            if number == 1:
                return conditional(x, level)
            if number == 0 and channels is None:
                return null(x, level)
        start = null(x, level)  # first: a batched call is made for both when the null is computed
        return lerp_estimates(start, conditional(x, level), _per_channel(weight, x, channels), x)

    return guided


def multi_condition(steps: Sequence[DenoiseFn], scales: Sequence[Scale]) -> DenoiseFn:
    """Conditions added one after the other, each with its own scale: s0 + sum of scales[i] (s[i + 1] - s[i]).

    InstructPix2Pix is `multi_condition([null, image, image_and_text], [image_scale, text_scale])`. Steps whose share is
    0 are not called.

    Raises:
        RecipeError: The number of scales is not the number of steps after the first.

    Source: Brooks et al. 2023, eq. 3 (arXiv:2211.09800).
    """
    if len(scales) != len(steps) - 1:
        raise RecipeError(f"{len(steps)} steps, {len(scales)} scales: needs one for each step after the first")

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        now = [elementary.scalar(1.0), *(scale_at(scale, level) for scale in scales), elementary.scalar(0.0)]
        return _blended(steps, [mine - after for mine, after in pairwise(now)], x, level)

    return guided


def composed(null: DenoiseFn, conditionals: Sequence[DenoiseFn], scales: Sequence[Scale]) -> DenoiseFn:
    """Independent conditions at once: null + sum of scales[i] (conditionals[i] - null); a negative one is a "not".

    Raises:
        RecipeError: The number of scales is not the number of conditions.

    Source: Liu et al. 2022, eq. 11 (arXiv:2206.01714).
    """
    if len(scales) != len(conditionals):
        raise RecipeError(f"{len(conditionals)} conditional steps, {len(scales)} scales: needs one for each")

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        weights = [scale_at(scale, level) for scale in scales]
        return _blended([null, *conditionals], [1.0 - sum(weights, elementary.scalar(0.0)), *weights], x, level)

    return guided


def autoguidance(strong: DenoiseFn, weak: DenoiseFn, scale: Scale) -> DenoiseFn:
    """Guidance away from a weaker model (smaller, or trained for less time) of the same task and condition.

    Source: Karras et al. 2024, eq. 3 (arXiv:2406.02507).
    """
    return cfg(strong, weak, scale)


def interval(
    guided: DenoiseFn, plain: DenoiseFn, low: float, high: float, *, of: Literal["t", "log-snr"] = "t"
) -> DenoiseFn:
    """The guided step at levels from low to high, both included, and the plain one elsewhere.

    Args:
        guided: Denoiser with any guidance.
        plain: Denoiser without the guidance, usually the conditional step.
        low: Lower end, of t in [0, 1] or of log(alpha / sigma).
        high: Upper end, above low.
        of: Quantity of low and high.

    Raises:
        RecipeError: low is not below high, or an interval of t is outside [0, 1].

    Source: Kynkaanniemi et al. 2024, eq. 5 (arXiv:2404.07724), which counts in sigma / alpha.
    """
    if not low < high:
        raise RecipeError(f"interval {low} to {high}: must rise; give the smaller end first")
    if of == "t" and not (low >= 0 and high <= 1):
        raise RecipeError(f"interval {low} to {high}: t lies in [0, 1], 0 the data; or say of='log-snr'")

    def limited(x: Tensor, level: NoiseLevel) -> Estimate:
        place = level.t if of == "t" else level.half_log_snr
        inside = (place >= low) & (place <= high)
        if bool(inside.all()) or not bool(inside.any()):
            return guided(x, level) if bool(inside.all()) else plain(x, level)
        start = plain(x, level)
        return lerp_estimates(start, guided(x, level), inside.to(torch.float64), x)

    return limited


def rescale(
    guided: DenoiseFn, conditional: DenoiseFn, amount: float = 0.7, *, of: Prediction = prediction.v
) -> DenoiseFn:
    """The guided estimate with the deviation of the conditional one, which strong guidance overshoots.

    Args:
        guided: Guided denoiser, such as `cfg(conditional, null, 7.5)`.
        conditional: Conditional denoiser that it guides; wrap it in `once` to call the network once for both.
        amount: 0 changes nothing, 1 gives each sample exactly the conditional deviation.
        of: Quantity whose deviation is kept. The paper's is v, which has the same meaning under every process.

    Raises:
        RecipeError: amount is outside [0, 1].

    Source: Lin et al. 2023, eq. 15 and 16 (arXiv:2305.08891).
    """
    if not 0 <= amount <= 1:
        raise RecipeError(f"amount = {amount}: must lie in [0, 1], 0 none and 1 all of it")

    def rescaled(x: Tensor, level: NoiseLevel) -> Estimate:
        strong, plain = guided(x, level), conditional(x, level)
        y = target_of(of, strong, x, level)
        width, wanted = _deviation(y), _deviation(target_of(of, plain, x, level))
        factor = amount * elementary.safe_divide(wanted, width, 1.0) + (1 - amount)
        return Estimate.solved(solve(of, level), x, like(factor, x) * y, strong.extra)

    return rescaled


def keep_norm(
    guided: DenoiseFn, conditional: DenoiseFn, over: Literal["tokens", "rows"], *, of: Prediction = prediction.flow
) -> DenoiseFn:
    """The guided velocity with the norm of the conditional one, in each part of a latent image by itself.

    Args:
        guided: Guided denoiser, such as `cfg(conditional, null, 4)`.
        conditional: Conditional denoiser that it guides, see `rescale`.
        over: Parts: squares of 2 x 2 latents with all channels, the tokens of Qwen-Image; or rows of a channel, as in
            Lumina 2's pipeline.
        of: Quantity whose norm is kept.

    Raises:
        ShapeError: Tokens of latents whose sides are odd. Raised by the returned function.

    Source: Qwen team 2025 (arXiv:2508.02324) and Qin et al. 2025 (arXiv:2503.21758), published inference code.
    """

    def rescaled(x: Tensor, level: NoiseLevel) -> Estimate:
        strong, plain = guided(x, level), conditional(x, level)
        y = target_of(of, strong, x, level)
        wanted = _norm(target_of(of, plain, x, level), over)
        factor = elementary.safe_divide(wanted, _norm(y, over), 1.0)
        return Estimate.solved(solve(of, level), x, factor.to(y.dtype) * y, strong.extra)

    return rescaled


def lerp_estimates(start: Estimate, end: Estimate, weight: Tensor, x: Tensor) -> Estimate:
    """Interpolate between two estimates, by a share that may differ per sample and channel."""
    if not weight.ndim:
        return start.towards(end, weight.item())
    share = like(weight, x)
    return Estimate(torch.lerp(start.x0, end.x0, share), torch.lerp(start.eps, end.eps, share), end.extra)


def target_of(of: Prediction, estimate: Estimate, x: Tensor, level: NoiseLevel) -> Tensor:
    """The quantity a x0 + b eps of an estimate."""
    a, b = of(level)
    return like(a, x) * estimate.x0 + like(b, x) * estimate.eps


def _per_channel(weight: Tensor, x: Tensor, channels: int | None) -> Tensor:
    if channels is None:
        return weight
    if x.ndim < 2 or channels > x.shape[1]:
        raise ShapeError(f"channels = {channels}: x is {tuple(x.shape)}; leave it away to guide all")
    guided = torch.arange(x.shape[1]) < channels
    per_sample = weight[:, None] if weight.ndim == 1 else weight
    return torch.where(guided, per_sample, 1.0).to(torch.float64).reshape(-1, x.shape[1])


def _blended(steps: Sequence[DenoiseFn], weights: Sequence[Tensor], x: Tensor, level: NoiseLevel) -> Estimate:
    """Weighted sum of estimates; the weights sum to 1, so that x = alpha x0 + sigma eps remains true."""
    used = [(step, w) for step, w in zip(steps, weights, strict=True) if w.ndim or w != 0]
    if len(used) == 1:
        return used[0][0](x, level)
    x0, eps, extra = torch.zeros_like(x), torch.zeros_like(x), None
    for step, weight in reversed(used):  # the first step of a batch is called last: the others make the call for all
        estimate = step(x, level)
        share = like(weight, x)
        x0, eps = x0 + share * estimate.x0, eps + share * estimate.eps
        extra = estimate.extra if extra is None else extra  # that of the last condition
    return Estimate(x0, eps, extra)


def _deviation(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1).std(dim=1, correction=0)


def _norm(y: Tensor, over: Literal["tokens", "rows"]) -> Tensor:
    """The norm of the part of y that each number belongs to, broadcastable to y."""
    if over == "rows":
        return torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    if y.ndim != 4 or y.shape[-2] % 2 or y.shape[-1] % 2:
        raise ShapeError(f"x {tuple(y.shape)}: tokens of 2 x 2 latents need (B, C, H, W) with even sides")
    squares = functional.pixel_unshuffle(y, 2)
    norms = torch.linalg.vector_norm(squares, dim=1, keepdim=True)
    return functional.interpolate(norms, scale_factor=2.0, mode="nearest")
