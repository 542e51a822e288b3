"""Processes: derivatives, inverses, published tables, and clear errors."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.core.process import BETAS, CosineVP, DiscreteVP, LinearVP, betas, partly
from unveil.types import Level, RecipeError

PROCESSES = {
    "linear-vp": LinearVP(),
    "cosine-vp": CosineVP(),
    "discrete-linear": DiscreteVP(betas("linear", 1000)),
    "discrete-log-alpha": DiscreteVP(betas("linear", 1000), interpolate="log-alpha"),
}
TIMES = (0.0123, 0.31005, 0.7777)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("t", TIMES)
def test_derivatives_are_those_of_alpha_and_sigma(name, t):
    process, h = PROCESSES[name], 1e-6
    level, before, after = process.at(t), process.at(t - h), process.at(t + h)
    assert level.dalpha == pytest.approx((after.alpha - before.alpha) / (2 * h), rel=1e-6)
    assert level.dsigma == pytest.approx((after.sigma - before.sigma) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("name", PROCESSES)
def test_variance_is_preserved_and_time_inverts(name):
    process = PROCESSES[name]
    for t in (*TIMES, 0.002, 0.999):
        level = process.at(t)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)
        assert process.t_of(level.half_log_snr) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_tensors_give_what_floats_give(name):
    process = PROCESSES[name]
    together = process.at(torch.tensor(TIMES, dtype=torch.float64))
    for i, t in enumerate(TIMES):
        for one, field in zip(process.at(t), together, strict=True):
            assert field[i].item() == pytest.approx(one, rel=1e-13)


def test_ends_are_clean_data_and_ddpms_last_level():
    for process in PROCESSES.values():
        assert process.at(0.0)[1:3] == (1.0, 0.0)
    assert CosineVP().at(1.0)[1:3] == (0.0, 1.0)
    # Ho et al. 2020: 1000 linear betas leave alpha_bar = 4.0358e-5
    assert PROCESSES["discrete-linear"].at(1.0).alpha ** 2 == pytest.approx(4.0358e-5, rel=1e-4)


def test_a_discrete_table_is_exact_at_its_indices():
    process = DiscreteVP(betas("cosine", 50))
    acp = torch.cumprod(1 - process.betas, 0)
    for i in (0, 7, 49):
        level = process.at((i + 1) / 50)
        assert level.alpha**2 == pytest.approx(acp[i].item(), rel=1e-14)
        assert process.index(level) == i


def test_the_network_is_told_what_it_was_trained_with():
    table = betas("linear", 50)
    level = DiscreteVP(table).at(0.5 + 0.5 / 50)  # half-way between indices 24 and 25
    assert DiscreteVP(table).index(level) == pytest.approx(24.5)
    assert DiscreteVP(table, rounding="nearest").index(level) in (24, 25)
    assert DiscreteVP(table, rescale=1000).index(DiscreteVP(table).at(0.5)) == pytest.approx(24 * 20)
    assert LinearVP().index(LinearVP().at(0.25)) == 250


def test_trainable_times_cover_the_table_evenly():
    process = DiscreteVP(betas("linear", 4))
    u = torch.linspace(0, 0.999999, 4000, dtype=torch.float64)
    indices = process.index(process.at(process.trainable(u)))
    assert torch.bincount(indices.long()).tolist() == [1000] * 4


def test_betas_scale_with_the_number_of_steps_only_where_published():
    assert betas("linear", 4000)[-1].item() == pytest.approx(0.02)
    assert betas("linear-scaled", 4000)[-1].item() == pytest.approx(0.005)
    for kind in BETAS:
        assert betas(kind, 10).shape == (10,)
        assert betas(kind, 10).dtype == torch.float64


def test_partly_noised_levels_keep_context_clean():
    noised = torch.tensor([True, False, True]).reshape(1, 3, 1, 1)
    level = partly(LinearVP().at(torch.tensor([0.3, 0.9], dtype=torch.float64)), noised)
    assert level.alpha.shape == (2, 3, 1, 1)
    assert level.alpha[:, 1].flatten().tolist() == [1, 1]
    assert level.sigma[:, 1].flatten().tolist() == [0, 0]
    assert level.sigma[0, 0].item() == pytest.approx(LinearVP().at(0.3).sigma)


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


def test_a_levels_half_log_snr_is_infinite_at_the_ends():
    assert Level(0.0, 1.0, 0.0).half_log_snr == math.inf
    assert Level(1.0, 0.0, 1.0).half_log_snr == -math.inf
