"""Numbers that compare two sets of images by their features: KID, Inception score, precision and recall, nearness.

The Frechet distance is in `frechet.py`. All numbers are computed in float64. Functions of many pairs work in pieces,
so that memory does not grow with the square of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unveil.errors import NonFinite, RecipeError, ShapeError

_PAIRS = 4_000_000  # distances held at once (32 MB)


class Spread(NamedTuple):
    """Mean over repetitions and their population standard deviation."""

    mean: float
    std: float


class Interval(NamedTuple):
    """An estimate and the interval that holds the true value with the stated probability."""

    value: float
    low: float
    high: float


class PrecisionRecall(NamedTuple):
    """Membership of each image in the other set's neighbourhoods; precision and recall are the means."""

    inside_real: Tensor  # (N,) bool, per generated image
    covered: Tensor  # (M,) bool, per real image

    @property
    def precision(self) -> float:
        """Share of generated images in the neighbourhoods of real images."""
        return float(self.inside_real.double().mean())

    @property
    def recall(self) -> float:
        """Share of real images in the neighbourhoods of generated images."""
        return float(self.covered.double().mean())


class Nearest(NamedTuple):
    """Nearest image of a pool for each query."""

    distance: Tensor  # (N,) float64, root of the mean squared difference per value, in units of the full range
    place: Tensor  # (N,) int64, into the pool


def kid(samples: Tensor, reference: Tensor, *, degree: int = 3, offset: float = 1.0) -> float:
    """The kernel distance (squared MMD) of features (N, D) and (M, D), unbiased: for equal sets 0 on average.

    The kernel is (x.y / D + offset)^degree.

    Source: Binkowski et al. 2018, section 4 (arXiv:1801.01401); Gretton et al. 2012, eq. 3 (the estimate).
    """
    samples, reference = _pair(samples, reference)
    once = [torch.ones(1, len(x), dtype=torch.float64) for x in (samples, reference)]
    return float(_weighted_kid(samples, reference, once[0], once[1], (degree, offset)))


def kid_of_subsets(
    samples: Tensor,
    reference: Tensor,
    *,
    subsets: int,
    size: int,
    seed: int = 2020,
    degree: int = 3,
    offset: float = 1.0,
) -> Spread:
    """KID over random subsets of `size` rows of either side, the form in which it is usually published.

    Rows are drawn by numpy's RandomState, first from the samples and then from the reference, as published
    programs draw them, so that their numbers are met exactly.

    Raises:
        RecipeError: A subset is larger than one of the sets, or has fewer than 2 rows.
    """
    samples, reference = _pair(samples, reference)
    smaller = min(len(samples), len(reference))
    if not 2 <= size <= smaller:
        raise RecipeError(f"KID subsets of {size} rows: must lie in [2, {smaller}], the smaller set's length")
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        left = samples[torch.from_numpy(random.choice(len(samples), size, replace=False))]
        right = reference[torch.from_numpy(random.choice(len(reference), size, replace=False))]
        values.append(kid(left, right, degree=degree, offset=offset))
    return Spread(float(np.mean(values)), float(np.std(values)))


def kid_interval(samples: Tensor, reference: Tensor, *, draws: int = 200, seed: int = 0) -> Interval:
    """KID with its 95 % bootstrap interval: both sets are redrawn, and no image is paired with its own copy."""
    samples, reference = _pair(samples, reference)
    random = np.random.default_rng(seed)
    times_x, times_y = (
        torch.from_numpy(random.multinomial(len(x), np.full(len(x), 1 / len(x)), draws)).double()
        for x in (samples, reference)
    )
    redrawn = _weighted_kid(samples, reference, times_x, times_y)
    return _around(kid(samples, reference), redrawn.numpy())


def inception_score(logits: Tensor, *, splits: int = 10) -> Spread:
    """The Inception score: exp of the mean divergence of p(class | image) from p(class), per split of rows (N, K).

    Splits are runs of consecutive rows, as published programs take them.

    Source: Salimans et al. 2016, section 4 (arXiv:1606.03498).
    """
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ShapeError(f"logits {tuple(logits.shape)} and {splits} splits: (N, classes) and at most N splits")
    logged = torch.log_softmax(_finite(logits), dim=1)
    count = len(logged)
    values = []
    for i in range(splits):
        part = logged[i * count // splits : (i + 1) * count // splits]
        marginal = part.exp().mean(0, keepdim=True)
        # A class that no image of the part can be has probability 0 and contributes 0.
        apart = part.exp() * (part - marginal.clamp(min=1e-300).log())
        values.append(float(apart.sum(1).mean().exp()))
    return Spread(float(np.mean(values)), float(np.std(values)))


def precision_recall(samples: Tensor, reference: Tensor, *, neighbours: int = 3) -> PrecisionRecall:
    """Test whether each feature lies in the other set's k-nearest-neighbour balls.

    Raises:
        RecipeError: `neighbours` is not smaller than both sets.
    Source: Kynkaanniemi et al. 2019, eq. 1-3 (arXiv:1904.06991).
    """
    samples, reference = _pair(samples, reference)
    smaller = min(len(samples), len(reference))
    if not 1 <= neighbours < smaller:
        raise RecipeError(f"neighbours = {neighbours}: must lie in [1, {smaller - 1}], below the smaller set's length")
    real_reach, sample_reach = (_reach(x, neighbours) for x in (reference, samples))
    inside = torch.zeros(len(samples), dtype=torch.bool)
    covered = torch.zeros(len(reference), dtype=torch.bool)
    for rows, squared in _squared_distances(samples, reference):
        inside[rows] = (squared <= real_reach).any(1)
        covered |= (squared <= sample_reach[rows, None]).any(0)
    return PrecisionRecall(inside, covered)


def nearest_neighbours(queries: Tensor, pool: Tensor) -> Nearest:
    """The nearest image of `pool` for each query, by squared difference of pixels; both uint8 (N, ...).

    Squares of whole numbers add up without rounding in float64, so an exact copy has the distance 0.
    """
    both_bytes = queries.dtype == pool.dtype == torch.uint8
    if not both_bytes or queries.shape[1:] != pool.shape[1:] or not len(queries) or not len(pool):
        raise ShapeError(
            f"images {tuple(queries.shape)} {queries.dtype} and {tuple(pool.shape)} {pool.dtype}: "
            "both must be uint8, of one size, and not empty"
        )
    flat_queries = queries.flatten(1).double()
    least = torch.full((len(flat_queries),), torch.inf, dtype=torch.float64)
    place = torch.zeros(len(flat_queries), dtype=torch.int64)
    piece = max(1, _PAIRS // max(len(flat_queries), flat_queries.shape[1]))
    for start in range(0, len(pool), piece):
        for rows, squared in _squared_distances(flat_queries, pool[start : start + piece].flatten(1).double()):
            smallest, where = squared.min(1)
            nearer = smallest < least[rows]
            least[rows] = torch.where(nearer, smallest, least[rows])
            place[rows] = torch.where(nearer, where + start, place[rows])
    return Nearest((least / flat_queries.shape[1]).sqrt() / 255, place)


def bootstrap(
    statistic: Callable[..., float], *sizes: int, draws: int = 200, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return a statistic of all rows and its bootstrap interval.

    The spread of the redrawn values around their own mean is laid around the estimate: distances such as FID grow
    when rows repeat, and that shift must not enter the interval.

    Args:
        statistic: Function of one tensor of row numbers per set.
        sizes: Number of rows of each set.
        draws: Number of bootstrap draws.
        seed: Seed of the draws.
        level: Probability of the interval.

    Source: Efron & Tibshirani 1993, chapters 12 and 13 (percentiles), centred here.
    """
    value = statistic(*(torch.arange(n) for n in sizes))
    random = np.random.default_rng(seed)
    redrawn = [statistic(*(torch.from_numpy(random.integers(0, n, n)) for n in sizes)) for _ in range(draws)]
    return _around(value, np.asarray(redrawn), level)


def mean_interval(values: Tensor, seed: int = 0) -> dict[str, float]:
    """Return the mean of (N,) with the ends of its interval, see `bootstrap`."""
    values = values.double()
    return bootstrap(lambda rows: values[rows].mean().item(), len(values), seed=seed)._asdict()


def proportion(hits: Tensor) -> Interval:
    """Return the share of True in (N,) with its 95 % score interval, which is valid at 0 and at 1 too.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    n, z = len(hits), 1.959963985
    if n == 0:
        raise RecipeError("a share of nothing: no image was given")
    p = float(hits.double().mean())
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return Interval(p, min(p, centre - half), max(p, centre + half))


def _around(value: float, redrawn: np.ndarray, level: float = 0.95) -> Interval:
    if len(redrawn) < 2:
        raise RecipeError(f"{len(redrawn)} bootstrap draws: an interval needs at least 2; 200 is usual")
    low, high = np.quantile(redrawn, [(1 - level) / 2, (1 + level) / 2]) - np.mean(redrawn)
    return Interval(value, value + float(low), value + float(high))


def _weighted_kid(
    x: Tensor, y: Tensor, times_x: Tensor, times_y: Tensor, kernel: tuple[int, float] = (3, 1.0)
) -> Tensor:
    """(R,) estimates, one per row of the (R, N) and (R, M) numbers of times that each image counts."""
    result = -2 * _kernel_sums(x, y, times_x, times_y, kernel) / (times_x.sum(1) * times_y.sum(1))
    for z, times in ((x, times_x), (y, times_y)):
        same_image = times.square()  # pairs of an image with itself or with its copies
        pairs = times.sum(1).square() - same_image.sum(1)
        diagonal = same_image @ _kernel(z.square().sum(1), z.shape[1], kernel)
        result += (_kernel_sums(z, z, times, times, kernel) - diagonal) / pairs
    return result


def _kernel_sums(x: Tensor, y: Tensor, times_x: Tensor, times_y: Tensor, kernel: tuple[int, float]) -> Tensor:
    """(R,) sums over all pairs of times_x k(x, y) times_y, a piece of x at a time."""
    total = torch.zeros(len(times_x), dtype=torch.float64)
    piece = max(1, _PAIRS // len(y))
    for start in range(0, len(x), piece):
        rows = slice(start, start + piece)
        total += ((times_x[:, rows] @ _kernel(x[rows] @ y.T, x.shape[1], kernel)) * times_y).sum(1)
    return total


def _kernel(product: Tensor, dim: int, kernel: tuple[int, float]) -> Tensor:
    degree, offset = kernel
    return (product / dim + offset) ** degree


def _reach(features: Tensor, neighbours: int) -> Tensor:
    """(N,) squared distance to the k-th nearest other row."""
    radii = torch.empty(len(features), dtype=torch.float64)
    for rows, squared in _squared_distances(features, features):
        squared[torch.arange(len(squared)), torch.arange(len(features))[rows]] = torch.inf  # not oneself
        radii[rows] = squared.kthvalue(neighbours, dim=1).values
    return radii


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of rows of x to all rows of y, a piece of x at a time: (rows, (piece, M))."""
    lengths = y.square().sum(1)
    piece = max(1, _PAIRS // max(len(y), 1))
    for start in range(0, len(x), piece):
        part = x[start : start + piece]
        squared = part.square().sum(1, keepdim=True) + lengths - 2 * part @ y.T
        yield slice(start, start + len(part)), squared.clamp_(min=0)


def _pair(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[1]:
        raise ShapeError(f"features {tuple(left.shape)} and {tuple(right.shape)}: (N, D) and (M, D) are needed")
    if min(len(left), len(right)) < 2:
        raise RecipeError(f"{len(left)} and {len(right)} rows of features: at least 2 of each are needed")
    return _finite(left), _finite(right)


def _finite(values: Tensor) -> Tensor:
    values = values.detach().cpu().double()
    if not bool(torch.isfinite(values).all()):
        raise NonFinite("features or logits hold values that are not finite")
    return values
