"""The exact denoiser agrees with the gradient of its density and with a brute-force average."""

import pytest
import torch

from unveil.core.process import CosineVP, LinearVP
from unveil.data.gaussian_mixture import Mixture
from unveil.errors import RecipeError, ShapeError
from unveil.types import NoiseLevel


def mixture(*shape: int) -> Mixture:
    means = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Mixture([1.0, 2.0, 3.0], means, [0.2, 0.35, 0.5])


def noisy(*shape: int, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(), (2,), (3, 4, 4)])
@pytest.mark.parametrize("process", [LinearVP(), CosineVP()])
def test_eps_is_the_score_of_the_density_and_x_is_put_together_again(shape, process):
    for t in (0.05, 0.4, 0.9):
        level, x = process.at(t), noisy(*shape).requires_grad_()
        toy = mixture(*shape)
        (score,) = torch.autograd.grad(toy.log_density(x, level).sum(), x)
        estimate = toy(x, level)
        torch.testing.assert_close(estimate.eps, -level.sigma * score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(level.alpha * estimate.x0 + level.sigma * estimate.eps, x, rtol=0, atol=1e-9)


def test_x0_is_the_average_of_the_samples_that_could_have_been():
    toy, level = mixture(), NoiseLevel(0.5, 0.6, 0.8)
    x0 = toy.sample(400_000, torch.Generator().manual_seed(0))
    for x in (-0.7, 0.4):
        weight = torch.exp(-((x - level.alpha * x0) ** 2) / (2 * level.sigma**2))
        average = float((weight * x0).sum() / weight.sum())
        assert float(toy(torch.tensor([x], dtype=torch.float64), level).x0) == pytest.approx(average, abs=0.01)


def test_the_ends():
    toy, x = mixture(2), noisy(2)
    clean, noise = toy(x, NoiseLevel(0.0, 1.0, 0.0)), toy(x, NoiseLevel(1.0, 0.0, 1.0))
    torch.testing.assert_close(clean.x0, x)
    assert not clean.eps.any()
    torch.testing.assert_close(noise.x0, (toy.weights[:, None] * toy.means).sum(0).expand_as(x))
    torch.testing.assert_close(noise.eps, x)


def test_levels_may_differ_per_sample_and_per_element():
    toy, x, process = mixture(2), noisy(2), CosineVP()
    times = torch.linspace(0.1, 0.9, len(x), dtype=torch.float64)
    rows = [toy(x[i : i + 1], process.at(float(t))).x0 for i, t in enumerate(times)]
    torch.testing.assert_close(toy(x, process.at(times)).x0, torch.cat(rows))
    known = NoiseLevel(0.5, torch.tensor([[1.0, 0.6]]), torch.tensor([[0.0, 0.8]]))  # the first number is clean
    torch.testing.assert_close(toy(x, known).x0[:, 0], x[:, 0])


def test_a_part_is_the_mixture_of_its_components():
    toy, level, x = mixture(), NoiseLevel(0.5, 0.6, 0.8), noisy()
    alone = toy.part([1])
    gaussian = alone.means + 0.6 * 0.35**2 / ((0.6 * 0.35) ** 2 + 0.8**2) * (x - 0.6 * alone.means)
    torch.testing.assert_close(alone(x, level).x0, gaussian)


def test_float32_in_float32_out():
    estimate = mixture(2)(noisy(2).float(), CosineVP().at(0.3))
    assert (estimate.x0.dtype, estimate.eps.dtype) == (torch.float32, torch.float32)


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="2 weights, 3 means, 2 spreads: must be as many"):
        Mixture([1, 1], torch.zeros(3), [1, 1])
    with pytest.raises(RecipeError, match="must be positive"):
        Mixture([1, 1], torch.zeros(2), [1, 0])
    with pytest.raises(ShapeError, match=r"x \(6, 3\): a sample of this mixture is \(2,\)"):
        mixture(2)(noisy(3), CosineVP().at(0.3))
