"""Likelihood of the probability-flow ODE, from the change of the density of x on the deterministic path to noise.

With h^2 = alpha^2 + sigma^2, c = alpha / h, s = sigma / h and u = log(sigma / alpha), the path of y = x / h is

    dy/du = s c (c eps - s x0),

the same under every process, and flat at both ends. Along it log p(y) falls by the trace of the right side's
Jacobian, which random probes v estimate: E[v^T J v] = tr J for E[v v^T] = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.core import elementary
from unveil.core.denoiser import DenoiseFn
from unveil.core.process import Process
from unveil.core.rng import Noise
from unveil.errors import NonFinite, RecipeError
from unveil.types import NoiseLevel, like

BIN = 2 / 255  # between neighbours of 256 whole values scaled to [-1, 1]
MOST_STEPS = 10_000

# (u (B,) float64, y) -> dy/du and the rates (B, K) of what is summed up beside it
Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class LogDensity(NamedTuple):
    """log p of each sample in nats, (B,) float64, and its standard error over the probes (NaN with one).

    latent: x at the noisy end, (B, ...). calls: of the network, for the whole batch together.
    """

    value: Tensor
    error: Tensor
    latent: Tensor
    calls: int


class OdeBitsPerDim(NamedTuple):
    """Bits per dimension of each sample, (B,) float64, with the standard error over the probes, and network calls."""

    value: Tensor
    error: Tensor
    calls: int


def ode_bits(
    step: DenoiseFn,
    process: Process,
    x0: Tensor,
    *,
    noise: Noise,
    probes: int = 1,
    width: float = BIN,
    tolerance: float = 1e-5,
) -> OdeBitsPerDim:
    """Bits/dim of whole values under the probability-flow ODE, an upper bound because of the dequantisation.

    Args:
        step: Denoiser with its condition bound.
        process: Process of the step.
        x0: (B, ...), whole values scaled so that neighbours are `width` apart.
        noise: Noise source. Draw 0 of step 0 dequantises; steps 1 to `probes` are probes (their signs).
        probes: Number of probes, at least 1; two or more give an error bar.
        width: Distance between neighbouring values.
        tolerance: Relative and absolute tolerance of the ODE.

    Source: Song et al. 2021, appendix D.2 (arXiv:2011.13456); uniform dequantisation: Theis et al. 2015, section 3.1.
    """
    x = dequantised(x0, noise(0).to(x0), width)
    signs = rademacher(lambda k: noise(k + 1))
    density = log_density(step, process, x, probes=signs, count=probes, rtol=tolerance, atol=tolerance)
    size = x0[0].numel()
    return OdeBitsPerDim(bits_per_dim(density.value, size, width), density.error / (size * math.log(2)), density.calls)


def log_density(
    step: DenoiseFn,
    process: Process,
    x: Tensor,
    *,
    probes: Noise,
    count: int = 1,
    ends: tuple[NoiseLevel, NoiseLevel] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> LogDensity:
    """Log p(x) at a level, by the path from there to the noise.

    Every sample takes its own steps, so that its value does not depend on the others in the batch.

    Args:
        step: Denoiser with its condition bound; it is differentiated in x.
        process: Process of the step.
        x: (B, ...) at the first of `ends`.
        probes: probes(k) is like x, with E[v v^T] = 1: `rademacher(noise)`, or Gaussian noise itself.
        count: Number of probes; their mean is the value. The path is the same. Each costs a backward pass.
        ends: Levels between which the path is followed. None: the cleanest one trained at, and t = 1 or the noisiest
            one trained at. At the second, x is assumed to be normal with deviation `process.prior`.
        rtol: Tolerance relative to the state and to the sum of the trace.
        atol: Absolute tolerance per element of y, which has about unit variance.

    Raises:
        RecipeError: The number of probes is 0, or the log-SNR of an end is infinite.
        NonFinite: The estimate is not finite, or no step is small enough.

    Source: Song et al. 2021, eq. 39 and 40 (arXiv:2011.13456); Hutchinson 1990.
    """
    if count < 1:
        raise RecipeError(f"count = {count}: at least 1 probe")
    first, last = _trained_ends(process) if ends is None else ends
    directions = [probes(k).to(x) for k in range(count)]
    path = _Path(step, process, (first, last))
    y, traces, calls = _solved(
        lambda u, y: path.rates(u, y, directions), x / _width(first), path.ends, count, (rtol, atol)
    )
    latent, size = y * _width(last), x[0].numel()
    prior = float(process.prior(last))
    square = (latent / prior).flatten(1).square().sum(1).cpu().double()
    # log p(x) = log p(y) - size log h at either end
    moved = size * (math.log(_width(last)) - math.log(_width(first)))
    at_end = -0.5 * square - size * math.log(prior * math.sqrt(2 * math.pi))
    each = at_end[:, None] + moved + traces
    error = each.std(1) / math.sqrt(count) if count > 1 else torch.full_like(at_end, math.nan)
    return LogDensity(each.mean(1), error, latent, calls)


def probability_flow(
    step: DenoiseFn,
    process: Process,
    x: Tensor,
    ends: tuple[NoiseLevel, NoiseLevel],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """Return x (B, ...) moved along the deterministic path from one level to another, in either direction.

    Arguments and errors are those of `log_density`. Source: Song et al. 2021, eq. 13 (arXiv:2011.13456).
    """
    path = _Path(step, process, ends)
    y, _, _ = _solved(lambda u, y: path.rates(u, y, ()), x / _width(ends[0]), path.ends, 0, (rtol, atol))
    return y * _width(ends[1])


def bits_per_dim(log_density: Tensor, size: int, width: float = BIN) -> Tensor:
    """Bits/dim of the values in bins of this width, from the log density (B,) of `size` numbers in nats.

    Data in [-1, 1] of 256 bins of 1/128 adds the published 7 bits.
    """
    return -log_density / (size * math.log(2)) - math.log2(width)


def dequantised(x: Tensor, noise: Tensor, width: float = BIN) -> Tensor:
    """Return x with uniform noise within the bin of each value; the normal distribution function makes it uniform."""
    return x + width * (torch.special.ndtr(noise) - 0.5)


def rademacher(noise: Noise) -> Noise:
    """Probes of entries 1 and -1, the signs of normal noise: of all probes those whose trace varies least."""

    def signs(step: int, draw: int = 0) -> Tensor:
        drawn = noise(step) if draw == 0 else noise(step, draw)
        return torch.where(drawn < 0, -1.0, 1.0).to(drawn)

    return signs


def axes(x: Tensor) -> Noise:
    """Probes along the axes, as many as a sample has numbers: the exact trace, for few dimensions."""

    def axis(step: int, draw: int = 0) -> Tensor:
        del draw
        probe = torch.zeros_like(x)
        probe.flatten(1)[:, step] = math.sqrt(x[0].numel())
        return probe

    return axis


# ---------------------------------------------------------------------- the path


class _Path:
    """The right side of dy/du, and its trace, between two levels."""

    def __init__(self, step: DenoiseFn, process: Process, ends: tuple[NoiseLevel, NoiseLevel]) -> None:
        places = [-float(level.half_log_snr) for level in ends]
        if not all(math.isfinite(place) for place in places):
            raise RecipeError(
                f"the path from t = {ends[0].t} to t = {ends[1].t} needs a finite log-SNR at both ends: move the end "
                "with alpha = 0 or sigma = 0 inwards"
            )
        self.step = step
        self.process = process
        self.ends = places[0], places[1]
        self._times = sorted(float(level.t) for level in ends)

    def rates(self, u: Tensor, y: Tensor, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """dy/du, and v^T J v of every probe, (B, K) float64."""
        level = self.process.at(self.process.t_of(-u).clamp(*self._times))
        whole = elementary.sqrt(elementary.square(level.alpha) + elementary.square(level.sigma))
        c, s = level.alpha / whole, level.sigma / whole
        with torch.set_grad_enabled(bool(probes)):
            y = y.detach().requires_grad_(bool(probes))
            estimate = self.step(like(whole, y) * y, level)
            speed = like(s * c * c, y) * estimate.eps - like(s * s * c, y) * estimate.x0
            traces = [_trace(speed, y, v, keep=k + 1 < len(probes)) for k, v in enumerate(probes)]
        divergence = torch.stack(traces, 1) if traces else torch.zeros(len(y), 0, dtype=torch.float64)
        return speed.detach(), divergence


def _trace(speed: Tensor, y: Tensor, probe: Tensor, *, keep: bool) -> Tensor:
    (slope,) = torch.autograd.grad((speed * probe).sum(), y, retain_graph=keep)
    return (slope * probe).flatten(1).sum(1).cpu().double()


def _trained_ends(process: Process) -> tuple[NoiseLevel, NoiseLevel]:
    clean, noisy = process.within(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    last = process.at(1.0)
    return process.at(clean), last if last.alpha > 0 else process.at(noisy)


def _width(level: NoiseLevel) -> float:
    """Deviation of x, for data of unit variance."""
    return math.hypot(float(level.alpha), float(level.sigma))


# ---------------------------------------------------------------------- the solver

# Dormand & Prince 1980, table 2: nodes, rows of weights (the last one is the step), and the error's weights
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _solved(
    field: Field, y: Tensor, ends: tuple[float, float], beside: int, tolerance: tuple[float, float]
) -> tuple[Tensor, Tensor, int]:
    """Return y and the sums (B, K) at the end, and the number of calls; each sample has its own steps."""
    start, end = ends
    u = torch.full((len(y),), start, dtype=torch.float64)
    width = torch.full_like(u, math.copysign(min(0.1, abs(end - start)), end - start))
    sums = torch.zeros(len(y), beside, dtype=torch.float64)
    slopes = [field(u, y)]
    for taken in range(1, MOST_STEPS + 1):
        left = end - u
        width = torch.where(width.abs() < left.abs(), width, left)
        there, sums_there = y, sums
        for node, row in zip(_NODES[1:], _ROWS, strict=True):
            there, sums_there = _moved(y, sums, slopes, row, width)
            slopes.append(field(u + node * width, there))
        error = _error(y, sums, (there, sums_there), slopes, width, tolerance)
        if not bool(torch.isfinite(error).all()):
            raise NonFinite(f"the probability-flow ODE left the finite numbers near log(sigma / alpha) = {u.max():.3g}")
        good = error <= 1
        y, sums = _chosen(good, (there, sums_there), (y, sums))
        slopes = [_chosen(good, slopes[-1], slopes[0])]  # a rejected step begins again where it was
        arrived = good & (width == left)
        u = torch.where(arrived, end, torch.where(good, u + width, u))
        if bool((u == end).all()):
            return y, sums, 1 + 6 * taken
        width = width * (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
    raise NonFinite(f"the probability-flow ODE needs more than {MOST_STEPS} steps; raise the tolerance")


def _moved(
    y: Tensor, sums: Tensor, slopes: Sequence[tuple[Tensor, Tensor]], row: Sequence[float], width: Tensor
) -> tuple[Tensor, Tensor]:
    """Both states after a step of these weights."""
    used = [(weight, rate) for weight, rate in zip(row, slopes, strict=False) if weight != 0]
    on_y = sum((weight * rate[0] for weight, rate in used), torch.zeros_like(y))
    on_sums = sum((weight * rate[1] for weight, rate in used), torch.zeros_like(sums))
    return y + like(width, y) * on_y, sums + width[:, None] * on_sums


def _chosen(good: Tensor, new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The new pair for the samples whose step is good."""
    rows = good.reshape(-1, *(1,) * (new[0].ndim - 1)).to(new[0].device)
    return torch.where(rows, new[0], old[0]), torch.where(good[:, None], new[1], old[1])


def _error(
    y: Tensor,
    sums: Tensor,
    new: tuple[Tensor, Tensor],
    slopes: Sequence[tuple[Tensor, Tensor]],
    width: Tensor,
    tolerance: tuple[float, float],
) -> Tensor:
    """The step's error against the tolerance, (B,) float64: root mean square over a sample, and that of the sums."""
    rtol, atol = tolerance
    off_y, off_sums = _moved(torch.zeros_like(y), torch.zeros_like(sums), slopes, _ERROR, width)
    scale = atol + rtol * torch.maximum(y.abs(), new[0].abs())
    of_state = (off_y / scale).flatten(1).square().mean(1).sqrt().cpu().double()
    if not sums.shape[1]:
        return of_state
    summed = torch.maximum(sums.abs(), new[1].abs()).mean(1)
    return torch.maximum(of_state, off_sums.mean(1).abs() / (atol * y[0].numel() + rtol * summed))
