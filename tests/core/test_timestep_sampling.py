"""Which times are trained at: the same noise under every process, strata, and weights that undo a density."""

from __future__ import annotations

import math

import pytest
import torch

from tests.core.test_process import PROCESSES
from unveil.core.flow import RectifiedFlow, TimeShift
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, betas, zero_terminal_snr
from unveil.core.sde import diffusion
from unveil.core.timestep_sampling import (
    Importance,
    LogitNormal,
    LogNormal,
    SecondMoment,
    Stratified,
    Uniform,
    UniformLogSNR,
)
from unveil.core.ve import VE, EDMProcess
from unveil.errors import RecipeError

SAMPLERS = {
    "uniform": Uniform(),
    "stratified": Stratified(16),
    "log-normal": LogNormal(),
    "logit-normal": LogitNormal(0.5, 1.2),
    "log-snr": UniformLogSNR(-3.0, 3.0),
    "importance": Importance(lambda level: 1 / (1 + torch.as_tensor(level.sigma))),
    "stratified-log-normal": Stratified(16, LogNormal(0.0, 1.0)),
}


def even(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_trainable_times_of_every_process(name, process):
    chosen = PROCESSES[process]
    t, weight = SAMPLERS[name].times(chosen, even(200), range(200))
    assert t.dtype == weight.dtype == torch.float64
    torch.testing.assert_close(chosen.within(t), t, rtol=0, atol=1e-12)
    assert len(t.unique()) > 5
    assert weight.mean().item() == pytest.approx(1, rel=0.02 if name == "importance" else 1e-12)


@pytest.mark.parametrize("name", ["log-normal", "log-snr"])
def test_levels_by_their_noise_are_the_same_under_every_process(name):
    u = even(100)[20:80]  # inside of every process's ends
    want = None
    for process in (LinearVP(), CosineVP(), VE(), EDMProcess(), RectifiedFlow(), TimeShift(RectifiedFlow(), 3.0)):
        found = process.at(SAMPLERS[name].times(process, u, range(60))[0]).half_log_snr
        want = found if want is None else want
        torch.testing.assert_close(found, want, rtol=0, atol=1e-9)


def test_edms_levels_have_its_mean_and_deviation():
    level = EDMProcess().at(LogNormal(-1.2, 1.2).times(EDMProcess(), even(20000), range(20000))[0])
    assert level.sigma.log().mean().item() == pytest.approx(-1.2, abs=1e-3)
    assert level.sigma.log().std().item() == pytest.approx(1.2, abs=2e-3)


def test_logit_normal_times_are_log_normal_levels_of_a_straight_path_and_follow_a_shift():
    flow, u = RectifiedFlow(), even(500)
    by_time, by_level = (s.times(flow, u, range(500))[0] for s in (LogitNormal(0.3, 0.8), LogNormal(0.3, 0.8)))
    torch.testing.assert_close(by_time.sort()[0], by_level.sort()[0], rtol=0, atol=1e-12)
    shifted = TimeShift(flow, 3.0)
    there = shifted.at(LogitNormal(0.3, 0.8).times(shifted, u, range(500))[0])
    torch.testing.assert_close(there.half_log_snr, flow.at(by_time).half_log_snr - math.log(3), rtol=0, atol=1e-9)


def test_even_log_snr_is_even_between_its_ends_and_those_of_the_process():
    for sampler, low, high in ((UniformLogSNR(-2.0, 3.0), -2, 3), (UniformLogSNR(), -math.log(50), -math.log(0.01))):
        found = VE().at(sampler.times(VE(), even(50), range(50))[0]).half_log_snr.sort()[0]
        torch.testing.assert_close(found, low + (high - low) * even(50), rtol=0, atol=1e-9)
    empty = DiscreteVP(zero_terminal_snr(betas("linear", 50)))
    with pytest.raises(RecipeError, match=r"log\(alpha / sigma\) from -inf to .*: set low and high to finite numbers"):
        UniformLogSNR().times(empty, even(5), range(5))


def test_a_table_is_trained_at_its_indices_only():
    process = DiscreteVP(betas("linear", 40))
    for sampler in SAMPLERS.values():
        place = sampler.times(process, even(100), range(100))[0] * 40
        torch.testing.assert_close(place, place.round(), rtol=0, atol=1e-9)


def test_strata_part_any_distribution_evenly():
    t, _ = Stratified(8, LogNormal()).times(EDMProcess(), torch.rand(64, dtype=torch.float64), range(64))
    part = torch.special.ndtr((EDMProcess().at(t).sigma.log() + 1.2) / 1.2) * 8
    assert part.floor().long().tolist() == [*range(7, -1, -1)] * 8 or part.floor().long().tolist() == [*range(8)] * 8


@pytest.mark.parametrize("process", ["linear-vp", "ve", "edm", "rectified-flow", "sub-vp", "discrete-linear"])
def test_importance_weights_undo_the_density(process):
    """The mean of weight times loss is that over even times, with far less spread for a density like the loss."""
    chosen = PROCESSES[process]

    def steep(level):
        return (diffusion(level) / level.sigma) ** 2  # the likelihood's weight on eps

    u = torch.rand(40000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {}
    for name, sampler in (("even", Uniform()), ("drawn", Importance(steep, cells=4000))):
        t, weight = sampler.times(chosen, u, range(len(u)))
        found[name] = weight * steep(chosen.at(t)) * (1 + t)
    truth = (steep(chosen.at(t := chosen.trainable(even(400000)))) * (1 + t)).mean()
    assert found["drawn"].mean() == pytest.approx(truth.item(), rel=0.02)
    if found["even"].std() > 0.5 * truth:  # a VE process's g / sigma does not change
        assert found["drawn"].std() < 0.5 * found["even"].std()


def test_the_learned_density_still_draws_a_tables_times():
    process = DiscreteVP(betas("linear", 20))
    sampler = SecondMoment(20, history=1)
    sampler.update(torch.arange(20), torch.linspace(1, 20, 20))
    t, weight = sampler.times(process, even(2000), range(2000))
    counts = torch.bincount(process.timestep(process.at(t)).long(), minlength=20)
    assert counts[-1] > 10 * counts[0]
    assert weight.mean().item() == pytest.approx(1, rel=0.02)


def test_extreme_uniform_numbers_stay_finite():
    u = torch.tensor([0.0, 2.0**-60, 1 - 2.0**-53], dtype=torch.float64)
    for process in PROCESSES.values():
        for sampler in SAMPLERS.values():
            t, weight = sampler.times(process, u, range(3))
            assert torch.isfinite(t).all()
            assert torch.isfinite(weight).all()


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="scale = 0: a deviation must be above 0"):
        LogNormal(0.0, 0)
    with pytest.raises(RecipeError, match=r"low = 2.0, high = 1.0: must rise"):
        UniformLogSNR(2.0, 1.0)
    with pytest.raises(RecipeError, match="must be positive and finite on the whole of LinearVP"):
        Importance(lambda level: torch.as_tensor(level.sigma) * 0).times(LinearVP(), even(3), range(3))
    with pytest.raises(RecipeError, match="strata = 0: at least 1"):
        Stratified(0)
