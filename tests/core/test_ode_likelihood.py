"""The probability-flow ODE's likelihood against closed forms, under every process."""

from __future__ import annotations

import math

import pytest
import torch

from tests.core.test_process import PROCESSES
from unveil.core.denoiser import Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.likelihood import bound
from unveil.core.ode_likelihood import (
    BIN,
    axes,
    bits_per_dim,
    dequantised,
    log_density,
    ode_bits,
    probability_flow,
    rademacher,
)
from unveil.core.prediction import fixed_small
from unveil.core.process import CosineVP, DiscreteVP, LinearVP, betas
from unveil.core.rng import SampleRNG
from unveil.core.transition import chain_of
from unveil.core.ve import EDMProcess
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import NonFinite, RecipeError
from unveil.types import NoiseLevel

GAUSSIAN = Mixture([1.0], torch.tensor([[0.1, -0.2, 0.3]]), [0.4])
MIXTURE = Mixture([0.3, 0.7], torch.tensor([[-0.5, 0.4, 0.1], [0.5, 0.0, -0.6]]), [0.2, 0.35])


def data(mixture: Mixture, count: int) -> torch.Tensor:
    return mixture.sample(count, torch.Generator().manual_seed(0))


def signs(count: int, shape: tuple[int, ...] = (3,)):
    return rademacher(SampleRNG(7, range(count)).bind(shape))


def clean(process) -> NoiseLevel:
    return process.at(process.within(torch.zeros(1, dtype=torch.float64)).item())


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("mixture", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_it_is_within_a_hundredth_of_a_bit_of_the_closed_form(mixture, process):
    chosen, x = PROCESSES[process], data(mixture, 48)
    if process in ("discrete-ve", "discrete-zero-snr"):  # a sigma of 1 drowns nothing; the other ends at alpha = 0
        ends = clean(chosen), chosen.at(0.999 if process == "discrete-zero-snr" else 1.0)
    else:
        ends = None
    found = log_density(mixture, chosen, x, probes=axes(x), count=3, ends=ends)
    if process == "discrete-ve":
        last = chosen.at(1.0)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(found.latent).sum(1)
        found = found._replace(value=found.value - normal + mixture.log_density(found.latent, last))
    want = bits_per_dim(mixture.log_density(x, clean(chosen)), 3)
    assert (bits_per_dim(found.value, 3).mean() - want.mean()).abs() < 0.01


def test_probes_are_unbiased_and_the_error_bar_is_theirs():
    """Over many samples the mean error of 8 probes lies within its own error bar."""
    x = data(MIXTURE, 400)
    for probes in (signs(400), SampleRNG(7, range(400)).bind((3,))):
        found = log_density(MIXTURE, RectifiedFlow(), x, probes=probes, count=8)
        off = found.value - log_density(MIXTURE, RectifiedFlow(), x, probes=axes(x), count=3).value
        assert off.mean().abs() < 4 * (found.error**2).mean().sqrt() / 20
        assert 0.8 < (off.square().mean() / found.error.square().mean()).sqrt() < 1.25
    one = log_density(MIXTURE, RectifiedFlow(), x[:2], probes=signs(2))
    assert one.error.isnan().all()


def test_signs_vary_less_than_normal_probes():
    x = data(MIXTURE, 100)
    errors = [
        log_density(MIXTURE, EDMProcess(), x, probes=probes, count=8).error.mean().item()
        for probes in (signs(100), SampleRNG(7, range(100)).bind((3,)))
    ]
    assert errors[0] < 0.8 * errors[1]


def test_a_sample_has_its_likelihood_whatever_is_beside_it():
    x = data(MIXTURE, 6)
    together = log_density(MIXTURE, LinearVP(), x, probes=signs(6), count=2)
    alone = log_density(MIXTURE, LinearVP(), x[4:5], probes=rademacher(SampleRNG(7, [4]).bind((3,))), count=2)
    torch.testing.assert_close(together.value[4:5], alone.value, rtol=0, atol=1e-10)
    assert alone.calls <= together.calls


def test_the_bound_lies_above_it():
    """Whole values of 256, an exact denoiser: what the variational bound adds, the path does not pay."""
    shape, process = (16,), DiscreteVP(betas("linear", 200))
    mixture = Mixture([0.4, 0.6], torch.stack([torch.full(shape, -0.4), torch.full(shape, 0.3)]), [0.1, 0.2])
    x0 = (data(mixture, 32).clamp(-1, 1) * 127.5 + 0.5).round().sub(0.5) / 127.5
    noise = SampleRNG(1, range(32)).bind(shape)
    path = ode_bits(mixture, process, x0, noise=noise, probes=4)
    above = bound(mixture, chain_of(process), x0, fixed_small, noise=noise).total
    truth = bits_per_dim(
        mixture.log_density(x0, NoiseLevel(0.0, 1.0, 0.0)), 16
    )  # the density hardly moves within a bin
    assert path.value.mean() < above.mean()
    assert path.value.mean().item() == pytest.approx(truth.mean().item(), abs=0.03)
    assert path.error.shape == (32,)
    assert path.calls > 50


@pytest.mark.parametrize("process", ["linear-vp", "ve", "edm", "rectified-flow", "cosine-vp", "discrete-linear"])
def test_the_path_leads_back(process):
    chosen, x = PROCESSES[process], data(MIXTURE, 10)
    ends = clean(chosen), chosen.at(0.99)
    there = probability_flow(MIXTURE, chosen, x, ends, rtol=1e-9, atol=1e-9)
    back = probability_flow(MIXTURE, chosen, there, ends[::-1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)


def test_the_path_of_a_gaussian_is_a_straight_stretch():
    centre, spread = GAUSSIAN.means[0], GAUSSIAN.spreads[0]
    process = CosineVP()
    ends = process.at(0.01), process.at(0.9)
    x = data(GAUSSIAN, 5)
    found = probability_flow(GAUSSIAN, process, x, ends, rtol=1e-9, atol=1e-9)
    widths = [((level.alpha * spread) ** 2 + level.sigma**2).sqrt() for level in ends]
    want = ends[1].alpha * centre + widths[1] / widths[0] * (x - ends[0].alpha * centre)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-7)


def test_a_smaller_tolerance_costs_more_calls_and_errs_less():
    x = data(MIXTURE, 8)
    exact = log_density(MIXTURE, LinearVP(), x, probes=signs(8), rtol=1e-10, atol=1e-10)
    errors, calls = [], []
    for tolerance in (1e-3, 1e-6):
        found = log_density(MIXTURE, LinearVP(), x, probes=signs(8), rtol=tolerance, atol=tolerance)
        errors.append((found.value - exact.value).abs().max().item())
        calls.append(found.calls)
    assert errors[1] < 0.1 * errors[0]
    assert calls[0] < calls[1] < exact.calls


def test_bits_count_the_width_of_a_bin():
    nats = torch.tensor([-3.0], dtype=torch.float64)
    assert bits_per_dim(nats, 2, 1 / 128).item() == pytest.approx(3 / (2 * math.log(2)) + 7)
    assert bits_per_dim(nats, 2).item() == pytest.approx(3 / (2 * math.log(2)) + math.log2(127.5))
    x = torch.zeros(4, 5000, dtype=torch.float64)
    moved = dequantised(x, torch.randn(4, 5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert moved.abs().max() <= BIN / 2
    assert moved.var().item() == pytest.approx(BIN**2 / 12, rel=0.03)


def test_images_in_single_precision_are_measured_too():
    mixture = Mixture([1.0], torch.zeros(1, 1, 4, 4), [0.5])
    x = data(mixture, 3).float()
    found = log_density(mixture, CosineVP(), x, probes=signs(3, (1, 4, 4)), count=2)
    assert found.latent.dtype == torch.float32
    want = mixture.log_density(x, NoiseLevel(0.0, 1.0, 0.0))
    torch.testing.assert_close(found.value, want, rtol=0, atol=2e-3)


def test_mistakes_are_named():
    x = data(MIXTURE, 2)
    with pytest.raises(RecipeError, match="count = 0: at least 1 probe"):
        log_density(MIXTURE, LinearVP(), x, probes=signs(2), count=0)
    flow = RectifiedFlow()
    with pytest.raises(RecipeError, match=r"t = 0\.1 to t = 1\.0 needs a finite log-SNR at both ends"):
        probability_flow(MIXTURE, flow, x, (flow.at(0.1), flow.at(1.0)))
    broken = lambda x, level: Estimate.of_x0(x * math.nan, x, level)  # noqa: E731
    with pytest.raises(NonFinite, match="left the finite numbers near"):
        log_density(broken, LinearVP(), x, probes=signs(2))
