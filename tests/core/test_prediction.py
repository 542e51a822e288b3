"""Every prediction under every process round-trips, and says so where it cannot."""

from __future__ import annotations

import pytest
import torch

from tests.core.test_process import PROCESSES
from unveil.core import prediction, schedules
from unveil.core.denoiser import Denoiser, Estimate
from unveil.core.prediction import PREDICTIONS, solve
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, betas
from unveil.core.transition import Chain, chain_of
from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition, NoiseLevel, like

ALL = {**PREDICTIONS, "edm-f": prediction.edm_f(0.5)}


def pair(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    return x0, eps


def noised(x0, eps, level):
    return like(level.alpha, x0) * x0 + like(level.sigma, x0) * eps


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("per_sample", [False, True])
def test_round_trip(process, name, per_sample):
    x0, eps = pair()
    t = torch.linspace(0.05, 0.95, len(x0), dtype=torch.float64) if per_sample else 0.4
    level = PROCESSES[process].at(t)
    x = noised(x0, eps, level)
    a, b = ALL[name](level)
    y = like(a, x0) * x0 + like(b, x0) * eps
    estimate = Estimate.solved(solve(ALL[name], level), x, y)
    torch.testing.assert_close(estimate.x0, x0, rtol=0, atol=5e-11)
    torch.testing.assert_close(estimate.eps, eps, rtol=0, atol=5e-11)


def test_the_posterior_mean_round_trips_along_its_chain():
    process = DiscreteVP(betas("linear", 100))
    chain = chain_of(process)
    x0, eps = pair()
    for place in (0, 50, 99):
        step = chain[place]
        x = noised(x0, eps, step.t)
        estimate = Estimate.solved(solve(prediction.posterior_mean(chain), step.t), x, step.mean(x0, x))
        torch.testing.assert_close(estimate.x0, x0, rtol=0, atol=1e-8)


def test_ends():
    x0, eps = pair()
    data, noise = CosineVP().at(0.0), CosineVP().at(1.0)
    at_data = Estimate.solved(solve(prediction.x0, data), x0, x0)
    assert torch.equal(at_data.x0, x0)
    assert torch.equal(at_data.eps, torch.zeros_like(x0))
    for level, x in ((data, x0), (noise, eps)):  # v is defined at both
        a, b = prediction.v(level)
        torch.testing.assert_close(Estimate.solved(solve(prediction.v, level), x, a * x0 + b * eps).x0, x0)
    with pytest.raises(RecipeError, match="predict x0 or v"):
        solve(prediction.eps, noise)
    with pytest.raises(RecipeError, match="does not determine x0"):
        solve(prediction.score, data)


def test_a_level_off_the_chain_is_refused():
    chain = Chain(schedules.uniform(LinearVP(), 10))
    with pytest.raises(RecipeError, match="not a level of this chain of 10 steps"):
        chain.of(NoiseLevel(0.123, 0.9, 0.1))


class Constant(torch.nn.Module):
    """Keep the times that were passed."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.channels = channels
        self.times: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        self.times.append(t)
        return x.new_ones(x.shape[0], self.channels, *x.shape[2:])


def test_a_denoiser_tells_the_network_float32_indices_per_sample():
    network = Constant()
    process = DiscreteVP(betas("linear", 10))
    denoiser = Denoiser(network, process)
    x = torch.zeros(3, 2, 4)
    denoiser(x, process.at(0.5))
    denoiser(x, process.at(torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)))
    assert [times.tolist() for times in network.times] == [[4, 4, 4], [0, 4, 9]]
    assert all(times.dtype == torch.float32 for times in network.times)


def test_a_network_of_the_wrong_shape_is_named():
    process = LinearVP()
    with pytest.raises(ShapeError, match=r"returned \(3, 5, 4\) for x \(3, 2, 4\)"):
        Denoiser(Constant(5), process)(torch.zeros(3, 2, 4), process.at(0.5))
    with pytest.raises(ShapeError, match="needs 4 channels"):
        Denoiser(Constant(2), process, learns_variance=True)(torch.zeros(3, 2, 4), process.at(0.5))


def test_no_float64_reaches_the_samples_device(monkeypatch):
    moved = []
    original = torch.Tensor.to

    def spy(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        if args and isinstance(args[0], torch.device | str):
            moved.append(out.dtype)
        return out

    monkeypatch.setattr(torch.Tensor, "to", spy)
    process = DiscreteVP(betas("linear", 10))
    denoiser = Denoiser(Constant(), process)
    denoiser(torch.zeros(3, 2, 4), process.at(torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64))).x0.sum()
    assert moved
    assert torch.float64 not in moved
