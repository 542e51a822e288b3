"""Objectives: what minimises them, how weights convert, and what the bound measures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.core.mixture import draw, exact_x0
from tests.core.test_process import PROCESSES
from unveil.core import loss_weights, prediction, schedules
from unveil.core.denoiser import Denoiser, Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.likelihood import bound, decoder_nll, normal_kl
from unveil.core.objective import DiffusionLoss, hybrid, vlb
from unveil.core.prediction import fixed_large, fixed_small, learned_range, posterior_mix
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, betas
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import SecondMoment, Stratified, Uniform
from unveil.core.transition import Chain, chain_of
from unveil.core.ve import EDMProcess
from unveil.errors import RecipeError

PREDICTIONS = {**prediction.PREDICTIONS, "edm-f": prediction.edm_f(0.5)}


class Exact(nn.Module):
    """The exact denoiser as a network of any prediction, with an error in x0 added."""

    def __init__(self, process, target, error: float = 0.0) -> None:
        super().__init__()
        self.process, self.target = process, target
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, x, t, condition):
        level = self.process.at((t.double() + 1) / self.process.steps)
        x0 = exact_x0(x, level) + self.error
        alpha, sigma = (v.reshape(-1, 1) for v in level[1:3])
        a, b = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in self.target(level))
        return a * x0 + b * (x - alpha * x0) / sigma


def batch(count: int = 512) -> tuple[torch.Tensor, SampleRNG]:
    return draw(count)[:, None], SampleRNG(0, range(count))


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_exact_denoiser_minimises_the_error(name):
    process = DiscreteVP(betas("linear", 100))
    x0, streams = batch(4096)
    network = Exact(process, PREDICTIONS[name])
    denoiser = Denoiser(network, process, prediction=PREDICTIONS[name])
    best = DiffusionLoss(weight=loss_weights.min_snr())(denoiser, x0, None, streams, 0)
    (slope,) = torch.autograd.grad(best.value, network.error)
    network.error.data += 0.3
    worse = DiffusionLoss(weight=loss_weights.min_snr())(denoiser, x0, None, streams, 0)
    (steep,) = torch.autograd.grad(worse.value, network.error)
    assert worse.value > best.value
    assert slope.abs() < 0.05 * steep.abs()


@pytest.mark.parametrize("weight", [*loss_weights.WEIGHTS, "elbo"])
@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_weight_means_the_same_under_every_prediction(name, weight):
    process = DiscreteVP(betas("linear", 100))
    chosen = loss_weights.elbo(chain_of(process)) if weight == "elbo" else loss_weights.WEIGHTS[weight]
    x0, streams = batch(64)
    losses = []
    for target in (PREDICTIONS["x0"], PREDICTIONS[name]):
        denoiser = Denoiser(Exact(process, target, 0.1), process, prediction=target)
        losses.append(DiffusionLoss(weight=chosen)(denoiser, x0, None, streams, 0).per_sample)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)


def test_snr_weight_is_l_simple_on_eps():
    process = DiscreteVP(betas("linear", 100))
    x0, streams = batch(64)
    denoiser = Denoiser(Exact(process, prediction.eps, 0.1), process)
    plain = DiffusionLoss()(denoiser, x0, None, streams, 0).per_sample
    weighed = DiffusionLoss(weight=loss_weights.snr)(denoiser, x0, None, streams, 0).per_sample
    torch.testing.assert_close(plain, weighed, rtol=1e-5, atol=0)


def test_the_elbo_weight_is_the_bounds_own():
    process = DiscreteVP(betas("linear", 50))
    x0, streams = batch(256)
    denoiser = Denoiser(Exact(process, prediction.eps, 0.1), process)
    both = DiffusionLoss(elbo=1.0, simple=0.0)(denoiser, x0, None, streams, 0)
    whole = vlb(fixed_small)(denoiser, x0, None, streams, 0)
    inner = both.t > 1.5 / 50  # the last step is a decoder, no KL
    in_bits = both.per_sample[inner] * 50 / math.log(2)
    torch.testing.assert_close(in_bits, whole.per_sample[inner], rtol=1e-6, atol=1e-9)


FLAT = {  # (weight, prediction) -> what the weight is on the square of the predicted target
    ("snr", "eps"): lambda level: 1.0,
    ("edm", "edm-f"): lambda level: 1.0,
    ("sigmoid", "eps"): lambda level: 1 / (1 + (level.alpha / level.sigma) ** 2),
    ("p2", "eps"): lambda level: 1 / (1 + (level.alpha / level.sigma) ** 2),
    ("min-snr", "x0"): lambda level: ((level.alpha / level.sigma) ** 2).clamp(max=5),
    ("truncated-snr", "x0"): lambda level: ((level.alpha / level.sigma) ** 2).clamp(min=1),
    ("flow", "x0"): lambda level: (1 + level.alpha / level.sigma) ** 2,
    ("snr", "score"): lambda level: level.sigma**2,
}


@pytest.mark.parametrize(("weight", "name"), FLAT)
@pytest.mark.parametrize("process", PROCESSES)
def test_a_weight_in_x0_space_is_the_papers_on_its_own_prediction(process, weight, name):
    level = PROCESSES[process].at(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    found = loss_weights.on_target(loss_weights.WEIGHTS[weight], PREDICTIONS[name], level)
    want = torch.as_tensor(FLAT[weight, name](level), dtype=torch.float64).expand(9)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-12)


def test_weights_on_v_and_on_a_straight_paths_velocity():
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    vp, flow = CosineVP().at(t), RectifiedFlow().at(t)
    even = torch.ones(9, dtype=torch.float64)
    # SNR + 1 is even on v; on a straight path's velocity an error in x0 is one of its size over sigma
    torch.testing.assert_close(loss_weights.on_target(loss_weights.edm(1.0), prediction.v, vp), even)
    torch.testing.assert_close(loss_weights.on_target(lambda level: 1 / level.sigma**2, prediction.flow, flow), even)
    torch.testing.assert_close(loss_weights.on_target(loss_weights.flow(), prediction.flow, flow), even)
    bounded = loss_weights.flow(most=4.0)(flow)
    torch.testing.assert_close(bounded, torch.minimum(1 / flow.sigma**2, 4 * even))
    # EDM's own: (sigma^2 + s^2) / (sigma s)^2
    sigma = EDMProcess().at(t).sigma
    torch.testing.assert_close(loss_weights.edm(0.3)(EDMProcess().at(t)), (sigma**2 + 0.09) / (0.3 * sigma) ** 2)


@pytest.mark.parametrize("weight", loss_weights.WEIGHTS)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_process_trains_with_every_weight(process, weight):
    chosen = PROCESSES[process]
    x0 = draw(32)[:, None].float()
    denoiser = Denoiser(TwoHeadsOff(), chosen, prediction=prediction.x0)
    loss = DiffusionLoss(weight=loss_weights.WEIGHTS[weight])(denoiser, x0, None, SampleRNG(0, range(32)), 0)
    assert loss.value.isfinite()
    assert loss.value > 0


@pytest.mark.parametrize("distance", ["l2", "l1", "huber"])
def test_distances(distance):
    class Off(nn.Module):
        def forward(self, x, t, condition):
            return torch.full_like(x, 3.0)

    x0 = torch.zeros(2, 4, dtype=torch.float64)
    loss = DiffusionLoss(distance=distance).at(
        Denoiser(Off(), LinearVP(), prediction=prediction.x0), x0, None, torch.tensor([0.5, 0.5]).double(), x0
    )
    assert loss.value.item() == pytest.approx({"l2": 9, "l1": 3, "huber": 2.5}[distance])


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.range = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x, t, condition):
        return torch.cat([self.mean * x, self.range.expand_as(x)], 1)


def test_beside_the_simple_loss_the_bound_teaches_the_variance_only():
    process = DiscreteVP(betas("cosine", 50))
    x0, streams = batch(64)
    network = TwoHeads()
    denoiser = Denoiser(network, process, learns_variance=True)

    def slopes(objective: DiffusionLoss) -> list[float]:
        loss = objective(denoiser, x0, None, streams, 0)
        grads = torch.autograd.grad(loss.value, [network.mean, network.range], allow_unused=True)
        return [0.0 if g is None else g.item() for g in grads]

    simple, both, alone = slopes(DiffusionLoss()), slopes(hybrid(learned_range)), slopes(vlb(learned_range))
    assert both[0] == pytest.approx(simple[0])
    assert both[1] == pytest.approx(0.001 * alone[1])
    assert alone[0] != 0
    assert simple[1] == 0


def test_context_channels_are_clean_and_not_scored():
    process = DiscreteVP(betas("linear", 50))
    seen = []

    class Look(nn.Module):
        def forward(self, x, t, condition):
            seen.append(x.clone())
            return torch.zeros_like(x)

    x0 = torch.rand(8, 3, 5, generator=torch.Generator().manual_seed(0))
    streams = SampleRNG(0, range(8))
    loss = DiffusionLoss(noised=(True, False, True))(Denoiser(Look(), process), x0, None, streams, 3)
    assert torch.equal(seen[0][:, 1], x0[:, 1])
    noise = streams.normal((3, 5), 3, 1)
    assert loss.value.item() == pytest.approx(noise[:, ::2].square().mean().item(), rel=1e-5)
    with pytest.raises(RecipeError, match="noised lists 2 channels; x has 3"):
        DiffusionLoss(noised=(True, False))(Denoiser(Look(), process), x0, None, streams, 3)


def test_training_noise_depends_on_the_example_and_the_step_alone():
    process = DiscreteVP(betas("linear", 50))
    x0 = draw(6)[:, None].float()
    denoiser = Denoiser(TwoHeadsOff(), process)
    whole = DiffusionLoss()(denoiser, x0, None, SampleRNG(5, range(6)), 9)
    part = DiffusionLoss()(denoiser, x0[2:4], None, SampleRNG(5, [2, 3]), 9)
    assert torch.equal(whole.per_sample[2:4], part.per_sample)


class TwoHeadsOff(nn.Module):
    def forward(self, x, t, condition):
        return 0.5 * x


# ---------------------------------------------------------------------- time samplers


def test_stratified_times_fall_one_in_each_part():
    place, weight = Stratified(8).draw(SampleRNG(0, range(16)).uniform(0), range(16))
    assert (place * 8).floor().long().tolist() == [*range(8), *range(8)]
    assert weight.tolist() == [1.0] * 16


def test_importance_sampling_is_unbiased_and_lowers_the_spread():
    sampler = SecondMoment(20, history=2)
    losses = torch.logspace(0, -3, 20, dtype=torch.float64)  # the first steps matter most, as in the bound
    for _ in range(2):
        sampler.update(torch.arange(20), losses)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    estimates = []
    for chosen in (Uniform(), sampler):
        place, weight = chosen.draw(u, range(20000))
        estimates.append(weight * losses[(place * 20).floor().long()])
    assert estimates[1].mean().item() == pytest.approx(losses.mean().item(), rel=0.01)
    assert estimates[1].std() < 0.1 * estimates[0].std()


def test_importance_sampling_draws_levels_of_a_long_chain():
    """In float32 the times of 1,000 steps would fall beside the chain's levels."""
    process = DiscreteVP(betas("linear", 1000))
    x0, streams = batch(64)
    loss = vlb(fixed_small, SecondMoment(1000))(Denoiser(Exact(process, prediction.eps), process), x0, None, streams, 0)
    assert loss.t.dtype == torch.float64
    assert loss.value.isfinite()


def test_importance_sampling_is_uniform_until_every_index_was_seen():
    sampler = SecondMoment(4, history=2)
    sampler.update(torch.tensor([0, 1, 2, 0, 1, 2]), torch.ones(6))
    assert sampler.weights().tolist() == [0.25] * 4
    copy = SecondMoment(4, history=2)
    copy.load_state_dict(sampler.state_dict())
    for each in (sampler, copy):
        each.update(torch.tensor([3, 3]), torch.tensor([9.0, 9.0]))
    assert torch.equal(sampler.weights(), copy.weights())
    assert sampler.weights()[3] > 0.7


# ---------------------------------------------------------------------- bound


def test_the_decoder_is_a_distribution():
    bins = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-0.99, 0.1, 1.0):
        nll = decoder_nll(bins, torch.full_like(bins, mean), torch.full_like(bins, -2.5))
        assert nll.neg().exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_kl_of_gaussians():
    zero, one = torch.zeros(1), torch.ones(1)
    assert normal_kl(zero, 0.0, zero, 0.0).item() == 0
    assert normal_kl(one, 0.0, zero, 0.0).item() == pytest.approx(0.5)
    assert normal_kl(zero, math.log(4), zero, 0.0).item() == pytest.approx(0.5 * (4 - 1 - math.log(4)))


def test_the_objectives_bound_is_the_bound_on_average():
    """The mean over all t of N L_t is the sum of the terms."""
    process = DiscreteVP(betas("linear", 30))
    x0 = (draw(400)[:, None].clamp(-1, 1) * 127.5).round() / 127.5
    denoiser = Denoiser(Exact(process, prediction.eps, 0.05), process)
    whole = bound(denoiser, chain_of(process), x0, fixed_large, noise=SampleRNG(0, range(400)).bind((1,)))
    sums = torch.zeros(400, dtype=torch.float64)
    for i in range(1, 31):
        t = torch.full((400,), i / 30, dtype=torch.float64)
        noise = SampleRNG(0, range(400)).normal((1,), 30 - i).double()
        sums += vlb(fixed_large).at(denoiser, x0, None, t, noise).per_sample / 30
    torch.testing.assert_close(sums, whole.terms.sum(1), rtol=1e-8, atol=1e-8)


def test_the_bound_of_the_exact_denoiser_reaches_the_true_likelihood():
    """Data N(0, 0.2^2) in 256 bins has 0.5 log2(2 pi e 0.04 127.5^2) bits."""
    process, spread = DiscreteVP(betas("linear", 1000)), 0.2
    generator = torch.Generator().manual_seed(0)
    x0 = (spread * torch.randn(500, 4, generator=generator, dtype=torch.float64) * 127.5).round() / 127.5
    truth = 0.5 * math.log2(2 * math.pi * math.e * (spread * 127.5) ** 2)

    def gaussian(x, level):
        return Estimate.of_x0(level.alpha * spread**2 / ((level.alpha * spread) ** 2 + level.sigma**2) * x, x, level)

    totals = []
    for steps in (5, 50, 1000):
        chain = Chain(schedules.trailing(process, steps))
        got = bound(gaussian, chain, x0, fixed_large, noise=SampleRNG(0, range(500)).bind((4,)))
        totals.append(got.total.mean().item())
    assert totals[0] > totals[1] > totals[2]
    assert totals[2] == pytest.approx(truth, abs=0.2)  # 1000 steps cost about a tenth of a bit


def test_variances_lie_between_beta_tilde_and_beta():
    step = Chain(schedules.trailing(DiscreteVP(betas("linear", 100)), 10))[3]
    small, large = fixed_small(step).value, fixed_large(step).value
    assert small < posterior_mix(0.3)(step).value < large
    assert posterior_mix(0.0)(step).value == small
    assert posterior_mix(1.0)(step).value == large
