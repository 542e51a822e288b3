"""Estimates of x0 and eps from a network with any prediction, and thresholding of x0."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from unveil.core import prediction as predictions
from unveil.core.elementary import scalar
from unveil.core.preconditioning import Preconditioning
from unveil.core.prediction import Prediction, Solution, solve
from unveil.core.process import Process
from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition, NoiseLevel, like


class Estimate:
    """Estimate of a denoiser at x: x0 and eps with x = alpha x0 + sigma eps, each computed on first use.

    extra: Further output of the network, such as the channels of a learned variance.

    An estimate that comes from a network keeps its raw output y and the two linear formulas, so that a
    sampler can go from (x, y) to its next x in one combination (`mix`).
    """

    __slots__ = ("_eps", "_x", "_x0", "_y", "extra", "solution")

    def __init__(self, x0: Tensor, eps: Tensor, extra: Tensor | None = None) -> None:
        self._x0: Tensor | None = x0
        self._eps: Tensor | None = eps
        self._x = self._y = x0
        self.solution: Solution | None = None
        self.extra = extra

    @classmethod
    def solved(cls, solution: Solution, x: Tensor, y: Tensor, extra: Tensor | None = None) -> Estimate:
        """The estimate that a prediction y at x implies."""
        self = cls.__new__(cls)
        self._x0 = self._eps = None
        self._x, self._y, self.solution, self.extra = x, y, solution, extra
        return self

    @classmethod
    def of_x0(cls, x0: Tensor, x: Tensor, level: NoiseLevel, extra: Tensor | None = None) -> Estimate:
        """The estimate with this x0 and the eps that it leaves of x."""
        return cls.solved(solve(predictions.x0, level), x, x0, extra)

    @property
    def x0(self) -> Tensor:
        """The clean sample, of x's shape."""
        if self._x0 is None:
            assert self.solution is not None
            self._x0 = self._combine(self.solution, 0)
        return self._x0

    @property
    def eps(self) -> Tensor:
        """The noise, of x's shape."""
        if self._eps is None:
            assert self.solution is not None
            self._eps = self._combine(self.solution, 2)
        return self._eps

    def mix(self, x: Tensor, keep: float, gain: float, out: Tensor, of: Literal["x0", "eps"] = "x0") -> Tensor:
        """The next x, keep x + gain x0 (or gain eps), written into `out`, which may be x itself.

        This is one pass over memory if x is the estimate's own and x0 (or eps) was not computed before.
        """
        computed = self._x0 if of == "x0" else self._eps
        if self.solution is None or computed is not None or self._x is not x or self.solution.scalars is None:
            quantity = self.x0 if of == "x0" else self.eps  # before `out` is written, which may be what it comes from
            return weighted_sum(x, keep, quantity, gain, out)
        q_x, q_y = self.solution.scalars[:2] if of == "x0" else self.solution.scalars[2:]
        return weighted_sum(x, keep + gain * q_x, self._y, gain * q_y, out)

    def towards(self, other: Estimate, weight: float) -> Estimate:
        """This estimate moved to the other one: weight 0 is this, 1 the other; above 1 it goes beyond (guidance)."""
        if self.solution is not None and self.solution is other.solution:
            return Estimate.solved(self.solution, self._x, torch.lerp(self._y, other._y, weight), other.extra)
        return Estimate(torch.lerp(self.x0, other.x0, weight), torch.lerp(self.eps, other.eps, weight), other.extra)

    def _combine(self, solution: Solution, first: Literal[0, 2]) -> Tensor:
        if solution.scalars is None:
            pairs = (solution.x0_x, solution.x0_y, solution.eps_x, solution.eps_y)
            on_x, on_y = (like(part, self._x) for part in pairs[first : first + 2])
            return on_x * self._x + on_y * self._y
        on_x, on_y = solution.scalars[first : first + 2]
        if on_x == 0:
            return self._y if on_y == 1 else on_y * self._y
        if torch.is_grad_enabled() and (self._x.requires_grad or self._y.requires_grad):
            return (on_x * self._x).add_(self._y, alpha=on_y)  # what is written into a given tensor has no gradient
        return weighted_sum(self._x, on_x, self._y, on_y, torch.empty_like(self._x))


def weighted_sum(x: Tensor, on_x: float, y: Tensor, on_y: float, out: Tensor) -> Tensor:
    """on_x x + on_y y of one shape, written into `out`, which may be either of them."""
    if x.is_contiguous() and y.is_contiguous() and out.is_contiguous() and x.dtype == y.dtype:
        # the outer product of y and (1,) added to x: the one operation that does it in a single pass over memory
        unit = _ones(x.dtype, x.device)
        torch.addr(x.view(-1, 1), y.view(-1), unit, beta=on_x, alpha=on_y, out=out.view(-1, 1))
        return out
    if y.data_ptr() == out.data_ptr():
        y = y.clone()
    return torch.mul(x, on_x, out=out).add_(y, alpha=on_y)


@cache
def _ones(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(1, dtype=dtype, device=device)


# The condition is bound: what samplers and guidance see.
DenoiseFn = Callable[[Tensor, NoiseLevel], Estimate]


class Denoiser(nn.Module):
    """A network, the process it was trained under and what it predicts.

    Args:
        network: Network, called as network(x, index, condition). x is (B, C, ...). index is (B,) float32, see
            `timestep`. The condition may be None. The output has the shape of x, or twice its channels if
            `learns_variance`.
        process: Process that gives the index of a level, unless the prediction does.
        prediction: Quantity that the network predicts. A prediction with preconditioning also scales x and gives the
            index.
        learns_variance: True if the second half of the output's channels (axis 1) is `Estimate.extra`.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        *,
        prediction: Prediction = predictions.eps,
        learns_variance: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.prediction = prediction
        self.learns_variance = learns_variance
        # a schedule's levels come again with every sample: (level, batch, device) -> solution, scale of x and index
        self._solutions: dict[tuple[NoiseLevel, int, torch.device], tuple[Solution, float, Tensor]] = {}

    def forward(self, x: Tensor, level: NoiseLevel, condition: Condition | None = None) -> Estimate:
        """Return the estimate at x. The level is one for all, one per sample (B,), or broadcastable to x."""
        if level.t.ndim:
            solution, index = self.solve(level), self.timestep(level, x)
            inputs = _scaled(x, self.input_scale(level))
        else:
            key = (level, len(x), x.device)
            if key not in self._solutions:
                if len(self._solutions) > 4096:
                    self._solutions.clear()
                self._solutions[key] = self.solve(level), self.input_scale(level).item(), self.timestep(level, x)
            solution, scale, index = self._solutions[key]
            inputs = x if scale == 1 else scale * x
        y, extra = self.check_output(self.network(inputs, index, condition), x)
        return Estimate.solved(solution, x, y, extra)

    def with_process(self, process: Process) -> Denoiser:
        """The same network under another process."""
        return Denoiser(self.network, process, prediction=self.prediction, learns_variance=self.learns_variance)

    def solve(self, level: NoiseLevel) -> Solution:
        """Coefficients of x and of the network's output in x0 and eps, at a level."""
        return solve(self.prediction, level)

    def output(self, x: Tensor, level: NoiseLevel, condition: Condition | None = None) -> tuple[Tensor, Tensor | None]:
        """The raw prediction y and the variance channels, both of x's shape and type: what training compares.

        Raises:
            ShapeError: The network's output does not fit x.
        """
        return self.check_output(self.network(*self.network_inputs(x, level), condition), x)

    def network_inputs(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """Inputs of the network at a level: x, scaled, and the index (B,)."""
        return _scaled(x, self.input_scale(level)), self.timestep(level, x)

    def input_scale(self, level: NoiseLevel) -> Tensor:
        """Factor of x at the network's input; 1 without preconditioning."""
        return self.prediction.input_scale(level) if isinstance(self.prediction, Preconditioning) else scalar(1.0)

    def timestep(self, level: NoiseLevel, x: Tensor) -> Tensor:
        """The time input of the network, float32: the index of the level, (B,), the noisiest one where parts differ.

        A network with `takes_token_levels` gets each part's own index, broadcastable to x.
        """
        source = self.prediction if isinstance(self.prediction, Preconditioning) else self.process
        index = source.timestep(level)
        if index.ndim > 1 and getattr(self.network, "takes_token_levels", False):
            return index.to(torch.float32).to(x.device)
        index = index.flatten(1).amax(1) if index.ndim > 1 else index
        return index.to(torch.float32).to(x.device).expand(len(x))

    def check_output(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output of the network for x, as `output` gives it.

        Raises:
            ShapeError: The output does not fit x.
        """
        extra = None
        if self.learns_variance:
            if y.ndim < 2 or y.shape[1] != 2 * x.shape[1]:
                raise ShapeError(
                    f"the network returned {tuple(y.shape)} for x {tuple(x.shape)}: a learned variance needs "
                    f"{2 * x.shape[1]} channels"
                )
            y, extra = y.chunk(2, dim=1)
            extra = extra.to(x.dtype)
        if y.shape != x.shape:
            raise ShapeError(f"the network returned {tuple(y.shape)} for x {tuple(x.shape)}: the shapes must agree")
        return y.to(x.dtype), extra


def _scaled(x: Tensor, scale: Tensor) -> Tensor:
    return like(scale, x) * x if scale.ndim or scale != 1 else x


def clip_static(step: DenoiseFn, limit: float = 1.0) -> DenoiseFn:
    """Clamp x0 to [-limit, limit], and set eps to the rest of x.

    Source: Ho et al. 2020, the published sampler (arXiv:2006.11239).
    """

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = step(x, level)
        return Estimate.of_x0(estimate.x0.clamp(-limit, limit), x, level, estimate.extra)

    return guided


def clip_dynamic(step: DenoiseFn, percentile: float = 0.995, limit: float = 1.0) -> DenoiseFn:
    """Clamp x0 to the percentile of its absolute values, if that is above `limit`, and scale it back to `limit`.

    Args:
        step: Denoiser to threshold.
        percentile: Percentile of the absolute values of each sample, in (0, 1).
        limit: Smallest limit of the clamping.

    Raises:
        RecipeError: The percentile is outside (0, 1).

    Source: Saharia et al. 2022, section 2.3 (arXiv:2205.11487).
    """
    if not 0 < percentile < 1:
        raise RecipeError(f"percentile = {percentile}: must lie inside (0, 1)")

    def guided(x: Tensor, level: NoiseLevel) -> Estimate:
        estimate = step(x, level)
        sizes = estimate.x0.abs().reshape(len(x), -1)
        sizes = sizes if sizes.dtype == torch.float64 else sizes.float()  # quantile knows no half precision
        # row by row: quantile refuses more than 2^24 numbers at once
        bound = torch.stack([row.quantile(percentile) for row in sizes]).clamp(min=limit)
        bound = bound.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        x0 = estimate.x0.clamp(-bound, bound) * (limit / bound)
        return Estimate.of_x0(x0, x, level, estimate.extra)

    return guided
