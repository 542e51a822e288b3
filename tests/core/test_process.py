"""Processes: derivatives, inverses, published tables, and clear errors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unveil.core.flow import RectifiedFlow, TimeShift, resolution_shift
from unveil.core.process import BETAS, DATA, CosineVP, DiscreteVP, LinearVP, betas, partly, zero_terminal_snr
from unveil.core.sde import SubVP, diffusion, drift
from unveil.core.ve import VE, DiscreteVE, EDMProcess
from unveil.errors import RecipeError
from unveil.types import NoiseLevel

PRESERVING = {
    "linear-vp": LinearVP(),
    "cosine-vp": CosineVP(),
    "discrete-linear": DiscreteVP(betas("linear", 1000)),
    "discrete-log-alpha": DiscreteVP(betas("linear", 1000), interpolate="log-alpha"),
    "discrete-zero-snr": DiscreteVP(zero_terminal_snr(betas("linear", 1000))),
}
EXPLODING = {"ve": VE(), "discrete-ve": DiscreteVE(), "edm": EDMProcess()}
PROCESSES = {
    **PRESERVING,
    **EXPLODING,
    "sub-vp": SubVP(),
    "rectified-flow": RectifiedFlow(),
    "shifted-flow": TimeShift(RectifiedFlow(), 3.0),
    "shifted-vp": TimeShift(LinearVP(), 0.5),
}
TIMES = (0.0123, 0.31005, 0.7777)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("t", TIMES)
def test_derivatives_are_those_of_alpha_and_sigma(name, t):
    process, h = PROCESSES[name], 1e-6
    level, before, after = process.at(t), process.at(t - h), process.at(t + h)
    assert level.dalpha.item() == pytest.approx(float(after.alpha - before.alpha) / (2 * h), rel=1e-6)
    assert level.dsigma.item() == pytest.approx(float(after.sigma - before.sigma) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("name", PRESERVING)
def test_variance_is_preserved(name):
    for t in (*TIMES, 0.002, 0.999):
        level = PRESERVING[name].at(t)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_time_inverts(name):
    process, times = PROCESSES[name], (*TIMES, 0.002, 0.9995)
    for t in times:
        assert process.t_of(process.at(t).half_log_snr) == pytest.approx(t, abs=1e-9)
    together = torch.tensor(times, dtype=torch.float64)
    torch.testing.assert_close(process.t_of(process.at(together).half_log_snr), together, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_drift_and_diffusion_move_the_mean_and_the_variance(name):
    """d alpha / dt = f alpha and d sigma^2 / dt = 2 f sigma^2 + g^2, for an x0 of any variance."""
    process, h = PROCESSES[name], 1e-6
    for t in TIMES:
        level, before, after = process.at(t), process.at(t - h), process.at(t + h)
        f, g = drift(level), diffusion(level)
        moved = float(after.alpha - before.alpha) / (2 * h)
        assert moved == pytest.approx(float(f * level.alpha), rel=1e-5, abs=1e-9)
        rise = float(after.sigma**2 - before.sigma**2) / (2 * h)
        assert rise == pytest.approx(float(2 * f * level.sigma**2 + g * g), rel=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_several_levels_are_what_each_is_alone(name):
    process = PROCESSES[name]
    together = process.at(torch.tensor(TIMES, dtype=torch.float64))
    for i, t in enumerate(TIMES):
        for one, field in zip(process.at(t), together, strict=True):
            assert field[i].item() == pytest.approx(one.item(), rel=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_training_times_are_levels_of_the_process(name):
    process = PROCESSES[name]
    u = torch.linspace(0, 1 - 2**-53, 1001, dtype=torch.float64)
    times = process.trainable(u)
    torch.testing.assert_close(process.within(times), times, rtol=0, atol=1e-12)
    assert ((times >= 0) & (times <= 1)).all()
    assert (process.at(times).sigma > 0).all()  # clean data teaches nothing
    anywhere = process.within(torch.linspace(-0.1, 1.1, 501, dtype=torch.float64).clamp(min=0))
    assert (process.at(anywhere).sigma > 0).all()
    assert torch.isfinite(process.at(anywhere).half_log_snr).all() or name == "discrete-zero-snr"
    assert (anywhere[1:] >= anywhere[:-1]).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_a_sample_starts_from_noise_as_wide_as_x(name):
    process = PROCESSES[name]
    level = process.at(1.0)
    wanted = level.sigma.item() if name in EXPLODING else 1.0
    assert process.prior(level).item() == pytest.approx(wanted, rel=3e-5)


def test_ends_are_clean_data_and_ddpms_last_level():
    for name, process in PROCESSES.items():
        clean = process.at(0.0)
        assert clean.alpha == 1.0
        assert clean.sigma == (0.01 if name in ("ve", "discrete-ve") else 0.0)
    assert CosineVP().at(1.0)[1:3] == (0.0, 1.0)
    assert RectifiedFlow().at(1.0)[1:3] == (0.0, 1.0)
    # Ho et al. 2020: 1000 linear betas leave alpha_bar = 4.0358e-5
    assert PROCESSES["discrete-linear"].at(1.0).alpha ** 2 == pytest.approx(4.0358e-5, rel=1e-4)


def test_a_discrete_table_is_exact_at_its_indices():
    process = DiscreteVP(betas("cosine", 50))
    acp = torch.cumprod(1 - process.betas, 0)
    for i in (0, 7, 49):
        level = process.at((i + 1) / 50)
        assert level.alpha**2 == pytest.approx(acp[i].item(), rel=1e-14)
        assert process.timestep(level) == i


@pytest.mark.parametrize("interpolate", ["log-snr", "log-alpha"])
def test_below_the_first_index_no_level_is_cleaner_than_clean(interpolate):
    process = DiscreteVP(betas("cosine", 50), interpolate=interpolate)
    level = process.at(torch.linspace(0, 0.02, 21, dtype=torch.float64))
    assert (level.alpha <= 1).all()
    assert ((level.sigma >= 0) & (level.sigma <= process.at(0.02).sigma)).all()


def test_the_network_gets_the_inputs_it_was_trained_with():
    table = betas("linear", 50)
    level = DiscreteVP(table).at(0.5 + 0.5 / 50)  # half-way between indices 24 and 25
    assert DiscreteVP(table).timestep(level) == pytest.approx(24.5)
    assert DiscreteVP(table, rounding="nearest").timestep(level) in (24, 25)
    assert DiscreteVP(table, rescale=1000).timestep(DiscreteVP(table).at(0.5)) == pytest.approx(24 * 20)
    assert LinearVP().timestep(LinearVP().at(0.25)) == 250


def test_trainable_times_cover_the_table_evenly():
    process = DiscreteVP(betas("linear", 4))
    u = torch.linspace(0, 0.999999, 4000, dtype=torch.float64)
    indices = process.timestep(process.at(process.trainable(u)))
    assert torch.bincount(indices.long()).tolist() == [1000] * 4


def test_betas_scale_with_the_number_of_steps_only_where_published():
    assert betas("linear", 4000)[-1].item() == pytest.approx(0.02)
    assert betas("linear-scaled", 4000)[-1].item() == pytest.approx(0.005)
    for kind in BETAS:
        assert betas(kind, 10).shape == (10,)
        assert betas(kind, 10).dtype == torch.float64


def test_the_cosine_table_has_its_offset_and_largest_beta():
    steps, offset, largest = 12, 0.05, 0.6
    curve = [math.cos((i / steps + offset) / (1 + offset) * math.pi / 2) ** 2 for i in range(steps + 1)]
    want = [min(1 - after / before, largest) for before, after in itertools.pairwise(curve)]
    got = betas("cosine", steps, offset=offset, largest=largest)
    assert got.tolist() == pytest.approx(want)
    assert got[-1] == largest
    with pytest.raises(RecipeError, match="the offset must be > 0"):
        betas("cosine", steps, offset=0.0)
    with pytest.raises(RecipeError, match=r"the largest beta in \(0, 1\]"):
        betas("cosine", steps, largest=1.5)


def test_partly_noised_levels_keep_context_clean():
    noised = torch.tensor([True, False, True]).reshape(1, 3, 1, 1)
    level = partly(LinearVP().at(torch.tensor([0.3, 0.9], dtype=torch.float64)), noised)
    assert level.alpha.shape == (2, 3, 1, 1)
    assert level.alpha[:, 1].flatten().tolist() == [1, 1]
    assert level.sigma[:, 1].flatten().tolist() == [0, 0]
    assert level.sigma[0, 0].item() == pytest.approx(LinearVP().at(0.3).sigma)
    assert DATA.dsigma != 0  # so that a velocity says x0 = x there


# ---------------------------------------------------------------------- alpha = 1


def test_noise_explodes_geometrically_or_with_sigma_as_the_clock():
    assert [VE().at(t).sigma for t in (0.0, 0.5, 1.0)] == pytest.approx([0.01, math.sqrt(0.5), 50])
    assert [EDMProcess().at(t).sigma for t in (0.0, 0.5, 1.0)] == [0, 40, 80]
    assert EDMProcess().at(0.3).dsigma == 80
    assert VE().at(1.25).sigma > 50  # churn may go beyond
    assert EDMProcess().at(EDMProcess().t_of(-math.log(100))).sigma == pytest.approx(100)


def test_ncsns_network_knows_numbers_of_levels():
    process = DiscreteVE(0.01, 1.0, 10)
    times = process.trainable(torch.arange(10, dtype=torch.float64) / 10)
    sigmas = process.at(times).sigma
    torch.testing.assert_close(sigmas[1:] / sigmas[:-1], torch.full((9,), 0.01 ** (1 / 9), dtype=torch.float64))
    assert process.timestep(process.at(times)).tolist() == list(range(10))
    assert process.timestep(process.at(0.96)) == 0
    assert VE().timestep(VE().at(1.0)) == pytest.approx(50)


# ---------------------------------------------------------------------- shifts and ends


def test_a_shift_moves_levels_and_leaves_the_network_its_index():
    flow, shifted = RectifiedFlow(), TimeShift(RectifiedFlow(), 3.0)
    level = shifted.at(0.5)
    assert level.sigma.item() == pytest.approx(0.75)  # 3 / 2 / (1 + 2 / 2)
    assert shifted.timestep(level).item() == pytest.approx(750)
    torch.testing.assert_close(tuple(TimeShift(flow, 1.0).at(0.3)), tuple(flow.at(0.3)))
    assert resolution_shift(4096, 1024) == 2
    discrete = TimeShift(DiscreteVP(betas("linear", 10)), 2.0)
    indices = discrete.timestep(discrete.at(discrete.trainable(torch.rand(50, dtype=torch.float64))))
    assert torch.equal(indices, indices.round())


def test_zero_terminal_snr_keeps_the_first_level_and_empties_the_last():
    plain, emptied = betas("linear", 50), zero_terminal_snr(betas("linear", 50))
    process = DiscreteVP(emptied)
    assert emptied[0].item() == pytest.approx(plain[0].item(), rel=1e-9)
    assert process.at(1.0)[1:3] == (0.0, 1.0)
    # Lin et al. 2023, algorithm 1: alpha is moved by the last one and stretched
    old = torch.cumprod(1 - plain, 0).sqrt()
    new = torch.cumprod(1 - emptied, 0).sqrt()
    torch.testing.assert_close(new, (old - old[-1]) * old[0] / (old[0] - old[-1]), rtol=0, atol=1e-12)
    near = process.at(1 - 1e-7)
    assert 0 < near.alpha < 1e-5
    assert near.dalpha.item() == pytest.approx(-near.alpha.item() / 1e-7, rel=1e-6)
    assert process.t_of(-math.inf) == 1.0
    with pytest.raises(RecipeError, match=r"betas\[0\] = 1.0: must lie inside \(0, 1\); the last one may be 1"):
        DiscreteVP([1.0, 0.5])


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="0 given; a schedule needs a list of at least 2"):
        DiscreteVP([])
    with pytest.raises(RecipeError, match=r"betas\[1\] = 1.5: must lie inside \(0, 1\)"):
        DiscreteVP([0.1, 1.5])
    with pytest.raises(RecipeError, match=r"t = 1.2: must lie in \[0, 1\]"):
        LinearVP().at(1.2)
    with pytest.raises(RecipeError, match="nearest: 'cosine'"):
        betas("cosin", 10)
    with pytest.raises(RecipeError, match="this schedule holds"):
        DiscreteVP(betas("linear", 100)).t_of(-40.0)
    for time in (-0.1, torch.tensor([0.5, -0.1])):
        with pytest.raises(RecipeError, match=r"must lie in \[0, inf\]"):
            VE().at(time)
    with pytest.raises(RecipeError, match=r"this schedule ends at 4\.605, sigma = 0\.01"):
        VE().t_of(5.0)
    with pytest.raises(RecipeError, match=r"sigma_min = 2\.0, sigma_max = 1\.0: must rise"):
        EDMProcess(2.0, 1.0)
    with pytest.raises(RecipeError, match="levels = 1: a schedule needs at least 2"):
        DiscreteVE(levels=1)
    with pytest.raises(RecipeError, match="shift = 0: must be above 0; 1 changes nothing"):
        TimeShift(RectifiedFlow(), 0)


def test_a_levels_half_log_snr_is_infinite_at_the_ends():
    assert NoiseLevel(0.0, 1.0, 0.0).half_log_snr == math.inf
    assert NoiseLevel(1.0, 0.0, 1.0).half_log_snr == -math.inf
