"""Measures of claims and studies: bits per dimension, Frechet and energy distances, gradient noise, correlations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.guidance import clip_static
from unveil.core.likelihood import bound, bound_term, prior_term
from unveil.core.objective import DiffusionLoss
from unveil.core.prediction import VarianceRule
from unveil.core.rng import START, SampleRNG
from unveil.core.samplers import Plan, run
from unveil.core.transition import Chain, chain_of
from unveil.errors import NonFinite, RecipeError
from unveil.evaluate import features, fid
from unveil.io.images import to_pixels
from unveil.types import NoiseLevel, like

SHAPE = (1, 8, 8)
FEATURES = ("pixels", "digits")
_CHUNK = 512


def bits(denoiser: Denoiser, rule: VarianceRule, x0: Tensor, *, every: int = 20, dense: int = 10) -> float:
    """The variational bound of the full chain in bits/dim, with x0 clipped as published.

    Each image is scored at the `dense` last steps, those next to the data, and at every `every`-th of the others,
    beginning at step i for image i, so that all images together cover the chain. Two networks of one chain are scored
    on the same images with the same noise.

    Args:
        denoiser: Denoiser of a discrete chain.
        rule: Variance of the reverse transitions.
        x0: Images (B, ...) in [-1, 1], at least `every`.
        every: Distance of the scored steps.
        dense: Number of last steps that are scored for every image.
    """
    chain, step = chain_of(denoiser.process), clip_static(denoiser)
    places, rows, noises = [], [], []
    for k in range(len(chain)):
        chosen = [i for i in range(len(x0)) if k >= len(chain) - dense or (i - k) % every == 0]
        places += [k] * len(chosen)
        rows += chosen
        noises.append(SampleRNG(0, chosen).normal(x0.shape[1:], k))
    place, row, noise = torch.tensor(places), torch.tensor(rows), torch.cat(noises)
    t = torch.tensor([float(move.t.t) for move in chain], dtype=torch.float64)[place]
    terms = []
    with torch.no_grad():
        for part in torch.arange(len(row)).split(_CHUNK):
            level, clean = denoiser.process.at(t[part]), x0[row[part]]
            x = like(level.alpha, clean) * clean + like(level.sigma, clean) * noise[part]
            estimate, move = step(x, level), chain.of(level)
            log_variance = rule(move, estimate.extra).log
            terms.append(bound_term(move, clean, x, move.mean(estimate.x0, x), log_variance).double())
    sums = torch.zeros(len(chain), dtype=torch.float64).index_add_(0, place, torch.cat(terms))
    means = sums / torch.bincount(place, minlength=len(chain))
    return float(means.sum() + prior_term(chain[0].t, x0).double().mean())


def respaced_vlb(denoiser: Denoiser, rules: Sequence[VarianceRule], x0: Tensor, steps: int) -> list[float]:
    """The variational bound in bits/dim of the chain respaced to a few steps, for several variances."""
    chain = Chain(schedules.respaced(denoiser.process, str(steps)))
    step = memoized_features(clip_static(denoiser))
    noise = SampleRNG(0, range(len(x0))).bind(x0.shape[1:])
    return [float(bound(step, chain, x0, rule, noise=noise).total.double().mean()) for rule in rules]


def memoized_features(step: DenoiseFn) -> DenoiseFn:
    """A denoiser that is called once for each noise level, for runs in which x depends on the level only."""
    cache: dict[NoiseLevel, Estimate] = {}

    def estimate(x: Tensor, level: NoiseLevel) -> Estimate:
        if level not in cache:
            cache[level] = step(x, level)
        return cache[level]

    return estimate


def sample(plan: Plan, step: DenoiseFn, count: int, seed: int, *, batch: int = 450) -> Tensor:
    """Samples (count, 1, 8, 8) of a plan over a variance-preserving process."""
    parts = []
    for start in range(0, count, batch):
        streams = SampleRNG(seed, range(start, min(start + batch, count)))
        parts.append(run(plan, step, streams.normal(SHAPE, START), noise=streams.bind(SHAPE)))
    return torch.cat(parts)


def frechet(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Frechet distances between samples in [-1, 1] and uint8 images, by the names in `FEATURES`."""
    pixels = to_pixels(samples)
    networks = {name: features.load(name, shape=SHAPE if name == "pixels" else None) for name in FEATURES}
    return {name: fid(net.features(pixels), net.features(reference)) for name, net in networks.items()}


def rms(difference: Tensor) -> Tensor:
    """Root mean square of each sample, (B,)."""
    return difference.flatten(1).square().mean(1).sqrt()


def gradient_noise(
    denoiser: Denoiser,
    objective: DiffusionLoss,
    batch_of: Callable[[int], Tensor],
    *,
    batches: int,
    batch: int,
    seed: int,
    on_step: Callable[[], object] = lambda: None,
) -> float:
    """Trace of the covariance of one example's gradient, from the variance of the gradients of many batches.

    Args:
        denoiser: Network whose gradients are measured.
        objective: Training loss.
        batch_of: Returns the images of a batch by its number.
        batches: Number of batches.
        batch: Images of each batch.
        seed: Seed of times and noise.
        on_step: Called after each batch.

    Source: McCandlish et al. 2018, section 2.2 (arXiv:1812.06162); the trace without its division by |G|^2, which
    is equal for arms that differ only in the sampling of times.
    """
    weights = list(denoiser.requires_grad_(True).parameters())
    total = torch.zeros(sum(p.numel() for p in weights), dtype=torch.float64)
    squares = 0.0
    for number in range(batches):
        streams = SampleRNG(seed, range(number * batch, (number + 1) * batch))
        loss = objective(denoiser, batch_of(number), None, streams, number)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss.value, weights)]).double()
        total += gradient
        squares += float(gradient.square().sum())
        on_step()
    denoiser.requires_grad_(False)
    return batch * (squares - float(total.square().sum()) / batches) / (batches - 1)


def energy_distance(first: Tensor, second: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of samples (N, ...) and (M, ...), >= 0, and 0 for equal sets.

    Source: Szekely & Rizzo 2013, eq. 6.1.
    """
    a, b = (samples.flatten(1).double() for samples in (first, second))
    exact = "donot_use_mm_for_euclid_dist"  # the fast method rounds small distances to 0
    cross, within_first, within_second = (
        torch.cdist(x, y, compute_mode=exact).mean() for x, y in ((a, b), (a, a), (b, b))
    )
    return float(2 * cross - within_first - within_second)


def log2_mean(values: Sequence[float]) -> float:
    """Mean of the base-2 logarithms: the logarithm of the geometric mean."""
    return math.fsum(map(math.log2, values)) / len(values)


def interpolated(x: Sequence[float], y: Sequence[float], at: float) -> float | None:
    """Linear interpolation of y between points of rising x; None outside their range, except for rounding."""
    slack = 1e-9 * (x[-1] - x[0])
    if not x[0] - slack <= at <= x[-1] + slack:
        return None
    i = next(i for i in range(1, len(x)) if at <= x[i] or i == len(x) - 1)
    return y[i - 1] + (at - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation in [-1, 1]; ties have their mean rank, and a constant side gives 0.

    Source: Spearman 1904.
    """
    if len(x) != len(y) or len(x) < 2:
        raise RecipeError(f"{len(x)} and {len(y)} values: a rank correlation needs equal numbers of both, at least 2")
    if not all(map(math.isfinite, (*x, *y))):
        raise NonFinite(f"a rank correlation of {list(x)} and {list(y)}: an arm has a measure that is not finite")
    return float(_correlations(_ranks(x), _ranks(y)[None])[0])


def rank_correlation_within(groups: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Mean rank correlation over groups of pairs: -1 or 1 if y is monotone in x within each group."""
    correlations = [rank_correlation(x, y) for x, y in groups]
    return math.fsum(correlations) / len(correlations)


def permutation_p_value(x: Sequence[float], y: Sequence[float], *, orders: int = 100_000, seed: int = 0) -> float:
    """One-sided permutation test: probability that a random order of x has a rank correlation as low as that of x.

    The order of x itself counts, so the result is never 0.
    """
    ranks, other = _ranks(x), _ranks(y)
    generator = torch.Generator().manual_seed(seed)
    shuffled = ranks[torch.rand(orders, len(x), generator=generator).argsort(1)]
    as_low = _correlations(other, shuffled) <= rank_correlation(x, y) + 1e-9
    return (1 + int(as_low.sum())) / (1 + orders)


def _ranks(values: Sequence[float]) -> Tensor:
    """Ranks from 1, float64."""
    column = torch.tensor(values, dtype=torch.float64)
    below, equal = column[:, None] > column[None], column[:, None] == column[None]
    return below.sum(1) + (equal.sum(1) + 1) / 2


def _correlations(ranks: Tensor, others: Tensor) -> Tensor:
    """Pearson correlation of ranks (N,) with each row of (B, N)."""
    a, b = ranks.double() - ranks.double().mean(), others.double() - others.double().mean(1, keepdim=True)
    size = a.norm() * b.norm(dim=1)
    return torch.where(size > 0, b @ a / size.clamp(min=1e-300), 0.0)
