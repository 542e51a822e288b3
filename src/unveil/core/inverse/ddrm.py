"""DDRM: linear inverse problems, solved in the basis in which the measurement is diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.core.denoiser import DenoiseFn
from unveil.core.inverse.operator import Operator
from unveil.core.rng import Noise
from unveil.core.samplers.loop import SamplerState, StepResult, draw_noise
from unveil.core.schedules import Schedule
from unveil.errors import RecipeError
from unveil.types import NoiseLevel, like


def ddrm(
    schedule: Schedule,
    operator: Operator,
    y: Tensor,
    *,
    noise_level: float = 0.0,
    eta: float = 0.85,
    eta_b: float = 1.0,
) -> DDRMPlan:
    """Return a plan that samples images x with A x = y (plus noise); y determines each singular direction separately.

    Start it at `DDRMPlan.start(noise)`. With a schedule that ends at the data a noiseless measurement is met exactly.

    Args:
        schedule: Schedule from noise to data; about 20 steps are enough.
        operator: A, with its singular value decomposition.
        y: Measurement, as `operator` computes it.
        noise_level: Standard deviation of the noise in y, at least 0, in pixels of [-1, 1].
        eta: Share of fresh noise in the directions that y does not determine; 1 is all.
        eta_b: Share of the way to y in the directions that y determines, 0 to 1.

    Raises:
        RecipeError: The noise level is negative, or eta or eta_b is outside [0, 1].
        ShapeError: y is not a measurement of this operator.

    Source: Kawar et al. 2022, eq. 7 and 8 (arXiv:2201.11793), there for alpha = 1; x / alpha brings the others there.
    """
    if noise_level < 0:
        raise RecipeError(f"noise_level = {noise_level}: must be at least 0, which is a measurement without noise")
    for name, value in (("eta", eta), ("eta_b", eta_b)):
        if not 0 <= value <= 1:
            raise RecipeError(f"{name} = {value}: must lie in [0, 1]; the paper uses eta 0.85 and eta_b 1")
    return DDRMPlan(schedule, operator, y, noise_level, eta, eta_b)


class DDRMPlan:
    """Steps of DDRM. The coefficients differ between singular directions, so they do not fit into a table."""

    def __init__(
        self, schedule: Schedule, operator: Operator, y: Tensor, noise_level: float, eta: float, eta_b: float
    ) -> None:
        self.schedule = schedule
        self.operator = operator
        self.noise_level = noise_level
        self.eta, self.eta_b = eta, eta_b
        self.target = operator.observed(y)  # the paper's y-bar

    @property
    def total(self) -> int:
        """The number of steps."""
        return len(self.schedule) - 1

    def is_done(self, state: SamplerState) -> bool:
        """Return True if the schedule has ended."""
        return state.number >= self.total

    def start(self, noise: Tensor) -> Tensor:
        """Start of the run: noise (B, ...) around the measurement, at the first level. Source: eq. 7."""
        measured, doubt = self._measured(noise)
        alpha, sigma = (like(value, noise) for value in self.schedule[0][1:3])
        spread = torch.where(measured, _left(sigma, alpha * doubt), sigma)
        return self.operator.back(torch.where(measured, alpha * self.target, 0.0) + spread * noise)

    def advance(self, state: SamplerState, step: DenoiseFn, noise: Noise | None, out: Tensor) -> StepResult:
        """One step: V^T x at the next level, each direction by its own measurement. Source: eq. 8."""
        del out
        here, there = self.schedule[state.number], self.schedule[state.number + 1]
        estimate = step(state.x, here)
        x0, eps = self.operator.rotate(estimate.x0), self.operator.rotate(estimate.eps)
        measured, doubt = self._measured(x0)
        alpha, sigma = (like(value, x0) for value in there[1:3])
        doubt = alpha * doubt
        certain = measured & (doubt <= sigma)
        # what points back at x_t, in units of sigma: the estimate's noise, or how far y is off where it is too noisy
        behind = torch.where(measured, alpha * (self.target - x0) / torch.where(doubt > 0, doubt, 1.0), eps)
        mean = alpha * x0 + (1 - self.eta**2) ** 0.5 * sigma * behind
        mean = torch.where(certain, alpha * ((1 - self.eta_b) * x0 + self.eta_b * self.target), mean)
        if not _onto_data(there):
            spread = torch.where(certain, _left(sigma, self.eta_b * doubt), self.eta * sigma)
            mean = mean + spread * draw_noise(noise, state.number).to(mean.dtype)
        return StepResult(SamplerState(self.operator.back(mean), (), state.number + 1), here, estimate)

    def _measured(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mask of the directions that are measured, and the deviation of y's noise along them; both of x's shape."""
        singular = self.operator.singular(x).expand_as(x)
        measured = singular > 0
        return measured, torch.where(measured, self.noise_level / torch.where(measured, singular, 1.0), 0.0)


def _left(sigma: Tensor | float, doubt: Tensor) -> Tensor:
    """Deviation that remains of sigma after the noise of y is subtracted."""
    return (sigma**2 - doubt**2).clamp(min=0).sqrt()


def _onto_data(level: NoiseLevel) -> bool:
    return bool((level.sigma == 0).all())
