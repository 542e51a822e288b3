"""Score matching: what its losses equal in closed form, and that the exact score minimises them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.core.mixture import draw, exact_x0
from unveil.core import prediction, score_matching
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.process import LinearVP
from unveil.core.rng import SampleRNG
from unveil.core.score_matching import SCORE_WEIGHTS, Sliced, denoising, likelihood, variance
from unveil.core.sde import SubVP, diffusion
from unveil.core.ve import VE, DiscreteVE
from unveil.types import like

PROCESSES = {"ve": VE(0.1, 10.0), "vp": LinearVP(), "sub-vp": SubVP()}


class Exact(nn.Module):
    """The exact denoiser at the times of a batch, with an error added to its score."""

    def __init__(self, process, target) -> None:
        super().__init__()
        self.process, self.target = process, target
        self.level = None
        self.error = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, x, t, condition):
        level = self.level
        alpha, sigma = (like(v, x) for v in level[1:3])
        eps = (x - alpha * exact_x0(x, level)) / sigma - sigma * self.error
        a, b = (like(torch.as_tensor(v, dtype=torch.float64), x) for v in self.target(level))
        return a * (x - sigma * eps) / alpha + b * eps


class Line(nn.Module):
    """score = -slope x at every level."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope, dtype=torch.float64))

    def forward(self, x, t, condition):
        return -self.slope * x


def batch(count: int, dim: int = 1) -> tuple[torch.Tensor, SampleRNG]:
    return draw(count * dim).reshape(count, dim), SampleRNG(0, range(count))


def times(count: int) -> torch.Tensor:
    return torch.linspace(0.2, 0.9, count, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("target", ["eps", "v", "x0", "score"])
@pytest.mark.parametrize("weight", SCORE_WEIGHTS)
def test_denoising_is_half_the_weighted_error_of_the_score_whatever_is_predicted(weight, target, process):
    chosen, predicted = PROCESSES[process], prediction.PREDICTIONS[target]
    x0, _ = batch(32, 3)
    t, noise = times(32), torch.randn(32, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = Exact(chosen, predicted)
    network.level = level = chosen.at(t)
    network.error.data += 0.4
    found = denoising(SCORE_WEIGHTS[weight]).at(Denoiser(network, chosen, prediction=predicted), x0, None, t, noise)
    x = like(level.alpha, x0) * x0 + like(level.sigma, x0) * noise
    alpha, sigma = (like(v, x) for v in level[1:3])
    score = (alpha * exact_x0(x, level) - x) / sigma**2 + 0.4
    error = (score + noise / sigma).square().mean(1)
    factor = level.sigma**2 if weight == "variance" else diffusion(level) ** 2
    torch.testing.assert_close(found.per_sample, 0.5 * factor * error, rtol=1e-6, atol=1e-9)


def test_ncsns_weight_is_half_of_l_simple():
    process = DiscreteVE()
    x0, streams = batch(64)
    denoiser = Denoiser(Line(0.3), process)
    ncsn, simple = (
        objective(denoiser, x0, None, streams, 0).per_sample for objective in (denoising(), DiffusionLoss())
    )
    torch.testing.assert_close(2 * ncsn, simple, rtol=1e-6, atol=0)


def test_the_likelihoods_weight_is_the_speed_of_log_snr_on_eps():
    level = LinearVP().at(times(5))
    log_snr = lambda t: 2 * LinearVP().at(t).half_log_snr  # noqa: E731
    fall = -(log_snr(level.t + 1e-6) - log_snr(level.t - 1e-6)) / 2e-6
    torch.testing.assert_close(likelihood(level) / variance(level), fall, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------- sliced


@pytest.mark.parametrize("square", ["whole", "projected"])
def test_sliced_is_known_for_a_linear_score(square):
    process = VE(0.1, 10.0)
    x0, _ = batch(16, 4)
    t, noise = times(16), torch.zeros(16, 4, dtype=torch.float64)
    v = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64).expand(16, 4)
    denoiser = Denoiser(Line(0.7), process, prediction=prediction.score)
    found = Sliced(square=square).at(denoiser, x0, None, t, noise, directions=[v])
    score = -0.7 * x0
    length = score.square().mean(1) if square == "whole" else (score * v).sum(1) ** 2 / 4
    torch.testing.assert_close(found.per_sample, process.at(t).sigma ** 2 * (-0.7 + 0.5 * length))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("target", ["eps", "v", "score"])
@pytest.mark.parametrize("square", ["whole", "projected"])
def test_the_exact_score_minimises_it(square, target, process):
    chosen, predicted = PROCESSES[process], prediction.PREDICTIONS[target]
    x0, streams = batch(4000)
    t, noise = torch.full((4000,), 0.4, dtype=torch.float64), streams.normal((1,), 0).double()
    network = Exact(chosen, predicted)
    network.level = chosen.at(t)
    denoiser, objective = Denoiser(network, chosen, prediction=predicted), Sliced(square=square)
    best = objective.at(denoiser, x0, None, t, noise)
    (slope,) = torch.autograd.grad(best.value, network.error)
    network.error.data += 0.5
    worse = objective.at(denoiser, x0, None, t, noise)
    (steep,) = torch.autograd.grad(worse.value, network.error)
    assert worse.value > best.value
    assert slope.abs() < 0.12 * steep.abs()
    # up to a constant of the data it is half the squared error of the score
    weight = variance(chosen.at(t))[0]
    assert (worse.value - best.value).item() == pytest.approx(0.5 * weight.item() * 0.25, rel=0.25)


class Turned(nn.Module):
    """A score whose Jacobian is not a multiple of the identity, so that directions matter."""

    def forward(self, x, t, condition):
        return torch.sin(x) + 0.5 * x.roll(1, dims=1)


def test_more_projections_and_the_whole_square_vary_less():
    process = VE(0.1, 10.0)
    x0, streams = batch(2, 6)
    x0 = x0[:1].expand(3000, 6)
    t, noise = torch.full((3000,), 0.4, dtype=torch.float64), torch.zeros(3000, 6, dtype=torch.float64)
    denoiser = Denoiser(Turned(), process, prediction=prediction.score)
    directions = [SampleRNG(1, range(3000)).normal((6,), k).double().sign() for k in range(4)]

    def found(square, count):
        return Sliced(square=square).at(denoiser, x0, None, t, noise, directions=directions[:count]).per_sample

    one, four, projected = found("whole", 1), found("whole", 4), found("projected", 1)
    assert four.std() < 0.6 * one.std() < 0.6 * projected.std()
    assert four.mean().item() == pytest.approx(projected.mean().item(), abs=5 * projected.std().item() / 3000**0.5)
    del streams


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.ones(4, 4) / 4)

    def forward(self, x, t, condition):
        rows = x[:, None]
        return nn.functional.scaled_dot_product_attention(rows, rows @ self.key, rows)[:, 0]


def test_networks_with_attention_can_be_differentiated_twice():
    network = Attention()
    x0 = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    loss = Sliced(projections=2)(Denoiser(network, LinearVP()), x0, None, SampleRNG(0, range(3)), 0)
    loss.value.backward()
    assert network.key.grad is not None
    assert network.key.grad.abs().max() > 0


def test_directions_depend_on_the_example_and_the_step_alone():
    x0 = draw(12).reshape(6, 2).float()
    denoiser = Denoiser(Turned(), LinearVP())
    whole = Sliced(projections=2)(denoiser, x0, None, SampleRNG(5, range(6)), 9)
    part = Sliced(projections=2)(denoiser, x0[2:4], None, SampleRNG(5, [2, 3]), 9)
    assert torch.equal(whole.per_sample[2:4], part.per_sample)
    other = Sliced(projections=2)(denoiser, x0, None, SampleRNG(5, range(6)), 10)
    assert not torch.equal(whole.per_sample, other.per_sample)
    score_matching.Sliced().observe(LinearVP(), whole.t, whole.per_sample)
