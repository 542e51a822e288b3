"""Diffusion posterior sampling: any differentiable measurement, by its gradient through the denoiser."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.guidance.score import grad_of, requires_grad_copy
from unveil.core.rng import Noise
from unveil.core.samplers.loop import Plan, SamplerState, StepResult
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel


def dps(plan: Plan, measure: Callable[[Tensor], Tensor], y: Tensor, *, scale: float = 1.0) -> DPSPlan:
    """Return a plan that after each step descends the gradient of |y - measure(x0)| at the x before the step.

    The result approaches the measurement but does not meet it; `project` does so afterwards if it is linear.

    Args:
        plan: Plan of one call per step; the published one is `ancestral(schedule)`.
        measure: Measurement of clean images (B, ...), differentiable; an `Operator` is one.
        y: Measured values, as `measure` computes them.
        scale: Scale of the step. The paper's zeta' is half of it; the published code's 0.3 to 1 are this number.

    Raises:
        RecipeError: The scale is not positive.
        ShapeError: The measurement of a run has another shape than y.

    Source: Chung et al. 2022, algorithm 1 and appendix D.1 (arXiv:2209.14687).
    """
    if not scale > 0:
        raise RecipeError(f"scale = {scale}: must be above 0; published are 0.3 to 1")
    return DPSPlan(plan, measure, y, scale)


class DPSPlan:
    """Plan in which each step is followed by a step towards the measurement."""

    def __init__(self, plan: Plan, measure: Callable[[Tensor], Tensor], y: Tensor, scale: float) -> None:
        self.plan = plan
        self.measure = measure
        self.y = y
        self.scale = scale

    @property
    def total(self) -> int | None:
        """The number of steps of the plan."""
        return self.plan.total

    def is_done(self, state: SamplerState) -> bool:
        """Return True if the plan has ended."""
        return self.plan.is_done(state)

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """One step of the plan, and one down the gradient."""
        slopes: list[Tensor] = []

        def watched(x: Tensor, level: NoiseLevel) -> Estimate:
            with requires_grad_copy(x) as inner:
                estimate = step(inner, level)
                slopes.append(grad_of(self._distance(estimate.x0), inner))
                x0, eps = estimate.x0.detach(), estimate.eps.detach()
            return Estimate(x0, eps, None if estimate.extra is None else estimate.extra.detach())

        done = self.plan.advance(state, watched, noise, out)
        if not slopes:  # a row without a call
            return done
        x = done.state.x - self.scale * slopes[-1]
        return done._replace(state=done.state._replace(x=x))

    def _distance(self, x0: Tensor) -> Tensor:
        measured = self.measure(x0)
        if measured.shape != self.y.shape:
            raise ShapeError(f"y {tuple(self.y.shape)}: the measurement of x is {tuple(measured.shape)}")
        return (self.y.to(measured) - measured).reshape(len(x0), -1).norm(dim=1)
