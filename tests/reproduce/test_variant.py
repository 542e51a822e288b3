"""What the newer arms are made of: labels, other processes, a guide; and the measures of fidelity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unveil.analysis.metrics import energy_distance, rms
from unveil.core import schedules
from unveil.core.denoiser import Denoiser
from unveil.core.flow import RectifiedFlow
from unveil.core.process import DiscreteVP, betas
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import LogitNormal
from unveil.core.ve import VE
from unveil.data.digits import digits
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import RecipeError
from unveil.evaluate import features
from unveil.io.images import to_unit
from unveil.reproduce.claims import ncsn, solvers
from unveil.reproduce.claims.adm import train_guidance_classifier
from unveil.reproduce.fidelity import class_labels, fidelity
from unveil.reproduce.variant import TrainBudget, Variant, bind_labels, build, loss_of, train

TINY = TrainBudget(channels=8, steps=3, batch=8, warmup=1, ema=0.0, chain=20)


def test_a_conditional_variant_gets_labels_and_the_null_label():
    network = train(Variant("cosine", drop=0.5), TINY, 0)
    x, level = SampleRNG(0, range(4)).normal((1, 8, 8), 0), network.process.at(0.5)
    with torch.no_grad():
        labels = torch.tensor([0, 1, 2, 3])
        one, other, none = (bind_labels(network, y)(x, level).eps for y in (labels, labels.flip(0), None))
    assert not torch.equal(one, other)
    assert not torch.equal(one, none)


def test_dropped_labels_teach_the_row_of_none():
    start = build(Variant("cosine", drop=0.5), TINY, 0).network.rows.table.weight[-1]  # type: ignore[union-attr]
    dropped = train(Variant("cosine", drop=0.5), TINY, 0).network.rows.table.weight  # type: ignore[union-attr]
    assert not torch.equal(dropped[-1], start)
    always = train(Variant("cosine", drop=0.0), TINY, 0)
    assert len(always.network.rows.table.weight) == 10  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match="no null label"):
        bind_labels(always, None)(torch.zeros(1, 1, 8, 8), always.process.at(0.5))


def test_arms_differ_in_what_they_say_and_start_alike():
    plain, normal = Variant("flow", prediction="flow"), Variant("flow", prediction="flow", time="logit-normal")
    assert isinstance(build(plain, TINY, 0).process, RectifiedFlow)
    assert isinstance(build(Variant("ve", prediction="edm"), TINY, 0).process, VE)
    assert isinstance(loss_of(normal, TINY).time, LogitNormal)
    for one, two in zip(build(plain, TINY, 0).parameters(), build(normal, TINY, 0).parameters(), strict=True):
        assert torch.equal(one, two)
    added, scaled = (build(Variant("cosine", modulation=kind), TINY, 0) for kind in ("add", "scale-shift"))
    weights = [sum(p.numel() for p in network.parameters()) for network in (added, scaled)]
    assert weights[0] < weights[1] < 1.2 * weights[0]


def test_the_networks_of_exploding_variance_learn():
    budget = TrainBudget(channels=8, steps=60, batch=16, warmup=5, ema=0.9)
    variant = Variant("ve", prediction="edm")
    x0, streams = to_unit(digits("held-out").pixels[:64]), SampleRNG(0, range(64))
    networks = build(variant, budget, 1).eval(), train(variant, budget, 1)
    with torch.no_grad():
        before, after = (float(loss_of(variant, budget)(network, x0, None, streams, 0).value) for network in networks)
    assert after < 0.7 * before


# ---------------------------------------------------------------------- measures


def test_the_energy_distance_of_points_by_hand():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
    # 2 (3 + 2) / 2 - (0 + 1 + 1 + 0) / 4 - 0
    assert energy_distance(a, b) == pytest.approx(4.5, rel=1e-12)
    assert energy_distance(a, a) == 0


def test_fidelity_of_real_images_and_of_wrong_labels():
    part = digits("held-out")
    judge = features.load("digits")
    assert part.labels is not None
    pixels, labels = part.pixels[:225], part.labels[:225]
    reference = judge.features(part.pixels[225:])
    real = fidelity(judge, pixels, labels, reference)
    assert real.error_rate < 0.03
    assert real.imprecision < 0.3
    assert real.recall > 0.7
    assert fidelity(judge, pixels, (labels + 1) % 10, reference).error_rate > 0.97
    one_class = pixels[labels == 0].repeat(12, 1, 1, 1)[:225]
    assert fidelity(judge, one_class, torch.zeros(225), reference).recall < 0.3
    assert class_labels(12).tolist() == [*range(10), 0, 1]


@pytest.mark.slow
def test_a_guide_learns_to_read_clean_and_noisy_digits():
    process = DiscreteVP(betas("cosine", 50))
    guide = train_guidance_classifier(process, 3, 6)
    part = digits("held-out")
    assert part.labels is not None
    x0 = to_unit(part.pixels)

    def accuracy(t: float) -> float:
        level = process.at(t)
        noise = SampleRNG(0, range(len(x0))).normal(x0.shape[1:], 0)
        with torch.no_grad():
            read = guide(level.alpha * x0 + level.sigma * noise, level).argmax(1)  # type: ignore[operator]
        return float((read == part.labels).double().mean())

    clean, noise = accuracy(0.02), accuracy(1.0)
    assert clean > 0.2  # 0.99 after 400 steps; by chance 0.1
    assert noise < 0.15


# ---------------------------------------------------------------------- solvers and modes


class Straight(torch.nn.Module):
    """Says the same noise everywhere, so that the path is a straight line that one step follows exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = torch.nn.Parameter(torch.full((1, 8, 8), 0.3), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.eps.expand(x.shape)


def test_the_fine_solve_of_a_straight_path_is_one_step():
    network = Denoiser(Straight(), VE(0.01, 10.0))
    x = SampleRNG(0, range(3)).normal((1, 8, 8), 0)
    fine = solvers.fine_solve(network, x, 40)
    assert rms(fine - (x - (10.0 - 0.01) * 0.3)).max() < 1e-5


@pytest.mark.parametrize("calls", [5, 9, 20])
def test_methods_make_the_calls_that_they_are_given_and_end_at_one_level(calls: int):
    process = VE(0.01, 10.0)
    assert len(solvers.euler_uniform(process, calls).levels) == calls
    assert len(solvers.ddim_uniform(process, calls).levels) == calls
    assert calls - 1 <= len(solvers.heun_karras(process, calls).levels) <= calls
    for schedule in (
        schedules.uniform(process, calls),
        schedules.uniform_log_snr(process, calls),
        solvers.karras(process, calls),
    ):
        assert schedule[0].sigma == pytest.approx(10.0)
        assert schedule[-1].sigma == pytest.approx(0.01)
        assert len(schedule) == calls + 1


def test_both_ways_of_langevin_make_as_many_calls_from_one_start():
    annealed, plain = ncsn._annealed(4), ncsn._plain(4)
    assert abs(len(annealed[1].levels) - len(plain[1].levels)) <= 1  # type: ignore[attr-defined]
    assert annealed[0][0].sigma == pytest.approx(plain[0][0].sigma)


def test_the_density_of_a_mode_lies_where_it_is():
    corner = Mixture([1.0], torch.tensor([[-6.0, 6.0]]), [0.3]).sample(500, torch.Generator().manual_seed(0))
    density = ncsn.density(corner)[0, 0]
    dark = (density < 128).nonzero().double().mean(0)
    assert dark[0] < 20  # above
    assert dark[1] < 20  # to the left
    assert ncsn.share(corner + torch.tensor([0.0, -12.0])) == 1.0
