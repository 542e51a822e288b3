"""Preconditioning: the paper's table, one denoiser under every process, and what the network is given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unveil.core import loss_weights, preconditioning
from unveil.core import prediction as predictions
from unveil.core.denoiser import Denoiser
from unveil.core.elementary import scalar
from unveil.core.objective import DiffusionLoss
from unveil.core.process import DiscreteVP, LinearVP, betas, partly
from unveil.core.samplers import ddim, run
from unveil.core.schedules import karras
from unveil.core.ve import EDMProcess
from unveil.errors import RecipeError
from unveil.types import Condition, NoiseLevel

SHELLS = {
    "vp": preconditioning.VPPreconditioning(),
    "ve": preconditioning.VEPreconditioning(),
    "iddpm": preconditioning.IDDPMPreconditioning(),
    "edm": preconditioning.EDMPreconditioning(0.6),
    "consistency": preconditioning.ConsistencyPreconditioning(0.6, 0.002),
}
SIGMAS = torch.tensor([0.01, 0.3, 1.0, 7.0, 60.0], dtype=torch.float64)


class Seen(nn.Module):
    """Keeps what it was given."""

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        self.x, self.t = x, t
        return torch.sin(3 * x) + 0.1 * torch.tanh(t).reshape(-1, *(1,) * (x.ndim - 1))


def alone(sigma: Tensor | float) -> NoiseLevel:
    """A level of a process that adds noise to data as it is."""
    one = torch.ones_like(sigma) if isinstance(sigma, Tensor) else 1.0
    return NoiseLevel(sigma, one, sigma, 0.0, 1.0)


def table(name: str, s: float) -> tuple[float, float, float]:
    """c_skip, c_out and c_in, as the papers print them."""
    d = 0.6
    if name in ("vp", "iddpm"):
        return 1.0, -s, 1 / math.sqrt(s**2 + 1)
    if name == "ve":
        return 1.0, s, 1.0
    if name == "edm":
        return d**2 / (s**2 + d**2), s * d / math.sqrt(d**2 + s**2), 1 / math.sqrt(s**2 + d**2)
    gap = s - 0.002
    return d**2 / (gap**2 + d**2), gap * d / math.sqrt(s**2 + d**2), 1 / math.sqrt(s**2 + d**2)


@pytest.mark.parametrize("name", SHELLS)
def test_the_columns_are_those_of_the_papers_for_numbers_and_for_tensors(name):
    whole = preconditioning.scalings(SHELLS[name], alone(SIGMAS))
    for i, sigma in enumerate(SIGMAS.tolist()):
        one = preconditioning.scalings(SHELLS[name], alone(sigma))
        one = [column.item() for column in one]
        assert one[:3] == pytest.approx(list(table(name, sigma)), rel=1e-12)
        for column, value in zip(whole, one, strict=True):
            assert float(torch.as_tensor(column).expand(5)[i]) == pytest.approx(value, rel=1e-12)


def test_inputs_of_the_networks():
    indices = {
        name: [shell.timestep(alone(sigma)).item() for sigma in SIGMAS.tolist()] for name, shell in SHELLS.items()
    }
    assert indices["ve"] == pytest.approx([math.log(s / 2) for s in SIGMAS.tolist()])
    assert indices["edm"] == pytest.approx([math.log(s) / 4 for s in SIGMAS.tolist()])
    assert indices["consistency"] == pytest.approx([250 * math.log(s) for s in SIGMAS.tolist()])
    thousand = preconditioning.EDMPreconditioning(index_scale=1000)
    assert thousand.timestep(alone(7.0)).item() == pytest.approx(indices["consistency"][3])
    process = LinearVP()
    assert indices["vp"] == pytest.approx([999 * process.t_of(-math.log(s)).item() for s in SIGMAS.tolist()])


def test_improved_ddpm_networks_get_the_nearest_index_of_their_table():
    process, shell = DiscreteVP(betas("cosine", 1000)), preconditioning.IDDPMPreconditioning()
    levels = [process.at((i + 1) / 1000) for i in (0, 1, 500, 999)]
    assert [shell.timestep(level) for level in levels] == [0, 1, 500, 999]
    ratio = levels[2].sigma / levels[2].alpha
    assert shell.timestep(alone(ratio * 1.0001)) == 500
    assert shell.rounded(ratio * 1.0001).item() == pytest.approx(ratio.item(), rel=1e-12)
    assert shell.rounded(scalar(1e-5)) == 0
    rounded = shell.rounded(torch.tensor([ratio * 1.0001, 1e-5]))
    assert rounded.tolist() == [shell.rounded(ratio).item(), 0.0]


@pytest.mark.parametrize("name", SHELLS)
def test_a_denoiser_is_the_same_under_another_process_of_the_same_ratio(name):
    vp = LinearVP()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64)
    level = vp.at(0.4)
    first = Denoiser(Seen(), vp, prediction=SHELLS[name])
    second = Denoiser(Seen(), EDMProcess(), prediction=SHELLS[name])
    there = EDMProcess().at(level.sigma / level.alpha / EDMProcess().sigma_max)
    got, want = first(x, level), second(x / level.alpha, there)
    torch.testing.assert_close(got.x0, want.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.eps, want.eps, rtol=1e-9, atol=1e-9)


def test_under_its_own_process_vp_is_plain_eps_prediction():
    process = LinearVP(index_scale=999.0)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(2, 6)
    for t in (0.1, 0.8):
        shelled = Denoiser(Seen(), process, prediction=preconditioning.VPPreconditioning())(x, process.at(t))
        plain = Denoiser(Seen(), process, prediction=predictions.eps)(x, process.at(t))
        torch.testing.assert_close(shelled.x0, plain.x0, rtol=1e-6, atol=1e-6)


def test_edm_gives_its_network_unit_variance_and_asks_unit_variance_of_it():
    shell, generator = preconditioning.EDMPreconditioning(0.6), torch.Generator().manual_seed(1)
    x0 = 0.6 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    eps = torch.randn(200_000, generator=generator, dtype=torch.float64)
    for sigma in SIGMAS.tolist():
        level = alone(sigma)
        a, b = shell(level)
        assert float((shell.input_scale(level) * (x0 + sigma * eps)).std()) == pytest.approx(1, abs=0.01)
        assert float((a * x0 + b * eps).std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_network_sees_scaled_x_and_the_number_whatever_way_the_level_comes(name, as_tensor):
    shell, network = SHELLS[name], Seen()
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    level = alone(torch.full((4,), 0.3, dtype=torch.float64)) if as_tensor else alone(0.3)
    denoiser = Denoiser(network, EDMProcess(), prediction=shell)
    scale = table(name, 0.3)[2]
    for call in (denoiser, denoiser, denoiser.output):  # the second time from what is remembered
        call(x, level)
        torch.testing.assert_close(network.x, scale * x)
        torch.testing.assert_close(network.t, torch.full((4,), float(shell.timestep(alone(0.3)))))


def test_each_sample_and_each_part_has_its_own_scale():
    shell, network = preconditioning.EDMPreconditioning(0.5), Seen()
    denoiser = Denoiser(network, EDMProcess(), prediction=shell)
    x = torch.ones(2, 3, 2, 2)
    denoiser(x, alone(torch.tensor([0.1, 2.0], dtype=torch.float64)))
    assert network.x[:, 0, 0, 0].tolist() == pytest.approx([1 / math.hypot(0.1, 0.5), 1 / math.hypot(2, 0.5)])
    # the first channel is clean: it is scaled as data, and the network gets the level of the other channels
    level = partly(EDMProcess().at(2.0 / 80), torch.tensor([False, True, True]).reshape(1, 3, 1, 1))
    estimate = denoiser(x, level)
    assert network.x[0, :, 0, 0].tolist() == pytest.approx([2.0, *[1 / math.hypot(2, 0.5)] * 2])
    assert network.t.tolist() == pytest.approx([math.log(2) / 4] * 2)
    torch.testing.assert_close(estimate.x0[:, 0], x[:, 0])


def test_at_its_boundary_a_consistency_model_returns_x_whatever_the_network_says():
    shell = preconditioning.ConsistencyPreconditioning(0.5, 0.002)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
    denoiser = Denoiser(Seen(), EDMProcess(), prediction=shell)
    for level in (alone(0.002), alone(torch.tensor([0.002, 0.002], dtype=torch.float64))):
        torch.testing.assert_close(denoiser(x, level).x0, x, rtol=1e-6, atol=1e-6)
    away = denoiser(x, alone(1.0)).x0
    assert not torch.allclose(away, x, atol=0.1)


@pytest.mark.parametrize("name", SHELLS)
def test_clean_data_is_finite(name):
    denoiser = Denoiser(Seen(), EDMProcess(), prediction=SHELLS[name])
    estimate = denoiser(torch.ones(1, 2), alone(0.0))
    assert torch.isfinite(estimate.x0).all()
    torch.testing.assert_close(estimate.x0, torch.ones(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vp", "ve", "edm", "consistency", "iddpm"])
def test_a_level_without_data_is_refused(name):
    denoiser = Denoiser(Seen(), LinearVP(), prediction=SHELLS[name])
    for level in (NoiseLevel(1.0, 0.0, 1.0), NoiseLevel(*torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64))):
        with pytest.raises(RecipeError, match="alpha"):
            denoiser(torch.ones(1, 2), level)


def test_training_a_preconditioned_network_weighs_the_error_in_x0():
    """|y - y_hat|^2 with EDM's weight is the paper's (sigma^2 + d^2) / (sigma d)^2 |D - x0|^2: 1 on F."""
    generator = torch.Generator().manual_seed(4)
    x0 = torch.randn(5, 2, 3, 3, generator=generator)
    noise = torch.randn(5, 2, 3, 3, generator=generator)
    denoiser, t = (
        Denoiser(Seen(), EDMProcess(), prediction=preconditioning.EDMPreconditioning(0.6)),
        SIGMAS / EDMProcess().sigma_max,
    )
    weighted = DiffusionLoss(weight=loss_weights.edm(0.6)).at(denoiser, x0, None, t, noise)
    plain = DiffusionLoss().at(denoiser, x0, None, t, noise)
    torch.testing.assert_close(weighted.per_sample, plain.per_sample, rtol=1e-5, atol=1e-6)
    x = x0 + SIGMAS.float().reshape(-1, 1, 1, 1) * noise
    error = (denoiser(x, EDMProcess().at(t)).x0 - x0).square().flatten(1).mean(1)
    expected = (SIGMAS**2 + 0.36) / (SIGMAS * 0.6) ** 2 * error
    torch.testing.assert_close(weighted.per_sample, expected.float(), rtol=2e-4, atol=1e-6)


def test_a_preconditioned_network_samples():
    """F of the exact denoiser of one Gaussian: the sample is the noise, stretched to the data's deviation."""

    class Exact(nn.Module):
        def forward(self, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
            return torch.zeros_like(x)  # with unit variance everywhere, c_skip alone is the posterior mean

    process = EDMProcess()
    schedule = karras(process, 400, sigma_min=0.002, sigma_max=80.0)
    step = Denoiser(Exact(), process, prediction=preconditioning.EDMPreconditioning(0.5))
    noise = torch.randn(64, generator=torch.Generator().manual_seed(5), dtype=torch.float64).reshape(8, 8)
    got = run(ddim(schedule), step, schedule.start(noise))
    torch.testing.assert_close(got, 0.5 * noise, rtol=0.02, atol=1e-3)
