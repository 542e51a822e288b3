"""Metrics of variants: against the variational bound, against formulas, and on broken networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unveil.analysis.metrics import bits, frechet, gradient_noise, memoized_features, respaced_vlb
from unveil.core import schedules
from unveil.core.denoiser import Denoiser
from unveil.core.guidance import clip_static
from unveil.core.likelihood import bound
from unveil.core.objective import DiffusionLoss, vlb
from unveil.core.prediction import fixed_large, fixed_small
from unveil.core.process import DiscreteVP, betas
from unveil.core.rng import SampleRNG
from unveil.core.transition import Chain, chain_of
from unveil.data.digits import digits
from unveil.errors import NonFinite
from unveil.io.images import to_unit
from unveil.reproduce.variant import TrainBudget, Variant, build, train, train_or_load

TINY = TrainBudget(channels=8, steps=3, batch=4, warmup=1, ema=0.5, chain=20)


class Constant(nn.Module):
    """A network that predicts constant noise."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return self.value + 0 * x


def denoiser(value: float = 0.0, steps: int = 20) -> Denoiser:
    return Denoiser(Constant(value), DiscreteVP(betas("cosine", steps)))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return to_unit(digits("held-out").pixels)


def test_every_step_of_every_image_gives_the_bound(images: Tensor):
    network, x0 = denoiser(), images[:6]
    noise = SampleRNG(0, range(6)).bind((1, 8, 8))
    whole = bound(clip_static(network), chain_of(network.process), x0, fixed_small, noise=noise)
    assert bits(network, fixed_small, x0, every=1, dense=0) == pytest.approx(float(whole.total.mean()), rel=1e-5)


def test_some_steps_of_each_image_estimate_the_bound(images: Tensor):
    network = denoiser(steps=50)
    whole = bits(network, fixed_small, images[:200], every=1, dense=0)
    part = bits(network, fixed_small, images[:200], every=10, dense=5)
    assert part == pytest.approx(whole, rel=0.02)


def test_strided_bits_are_those_of_the_respaced_chain(images: Tensor):
    network, x0 = denoiser(), images[:4]
    found = respaced_vlb(network, (fixed_small, fixed_large), x0, 5)
    chain = Chain(schedules.respaced(network.process, "5"))
    noise = SampleRNG(0, range(4)).bind((1, 8, 8))
    for value, rule in zip(found, (fixed_small, fixed_large), strict=True):
        own = bound(clip_static(network), chain, x0, rule, noise=noise).total.mean()
        assert value == pytest.approx(float(own), rel=1e-6)
    assert found[0] > found[1]


def test_a_cached_denoiser_is_called_once_per_noise_level():
    calls = []
    network = denoiser()

    def step(x, level):
        calls.append(level)
        return network(x, level)

    once, x = memoized_features(step), torch.zeros(1, 1, 8, 8)
    level = network.process.at(0.5)
    assert once(x, level) is once(x, level)
    once(x, network.process.at(0.25))
    assert len(calls) == 2


def test_noise_is_farther_from_digits_than_digits_are(images: Tensor):
    reference = digits("held-out").pixels[:200]
    real = frechet(images[200:400], reference)
    noise = frechet(torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)), reference)
    assert real.keys() == noise.keys() == {"pixels", "digits"}
    assert all(noise[space] > 5 * real[space] for space in real)


def test_gradient_noise_is_the_trace_of_a_known_covariance():
    """The gradient of (w - eps)^2 at w = 0, one pixel: -2 eps, whose variance is 4."""

    class OnePixel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, condition: object = None) -> Tensor:
            return self.value.expand(x.shape)

    network = Denoiser(OnePixel(), DiscreteVP(betas("linear", 1000)))
    nothing = torch.zeros(8, 1, 1, 1)
    for batch in (4, 8):  # that of one example, whatever the batch
        found = gradient_noise(
            network, DiffusionLoss(), lambda _, n=batch: nothing[:n], batches=400, batch=batch, seed=0
        )
        assert found == pytest.approx(4.0, rel=0.25)


def test_arms_of_a_seed_start_alike_and_others_do_not():
    first = build(Variant("cosine"), TINY, 0).state_dict()
    other_arm = build(Variant("linear", objective="bound", variance="learned-range"), TINY, 0).state_dict()
    other_seed = build(Variant("cosine"), TINY, 1).state_dict()
    same = [name for name in first if first[name].shape == other_arm[name].shape]
    assert len(same) == len(first) - 2  # all but the last layer, which is zero
    assert all(torch.equal(first[name], other_arm[name]) for name in same)
    assert not torch.equal(first["network.enter.weight"], other_seed["network.enter.weight"])


def test_a_trained_arm_is_kept_to_the_bit_and_a_damaged_one_is_trained_again(tmp_path):
    arm, steps = Variant("cosine"), []
    first = train_or_load(arm, TINY, 0, tmp_path, lambda: steps.append(1))
    again = train_or_load(arm, TINY, 0, tmp_path, lambda: steps.append(1))
    assert len(steps) == TINY.steps
    assert not first.cached
    assert again.cached
    assert again.cpu_seconds == pytest.approx(first.cpu_seconds, abs=0.01)
    for name, tensor in first.denoiser.state_dict().items():
        assert torch.equal(tensor, again.denoiser.state_dict()[name]), name
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    assert not train_or_load(arm, TINY, 0, tmp_path).cached
    assert not train_or_load(arm, TINY, 1, tmp_path).cached
    assert not train_or_load(Variant("linear"), TINY, 0, tmp_path).cached


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path):
    (tmp_path / "file").write_text("")
    assert not train_or_load(Variant("cosine"), TINY, 0, tmp_path / "file" / "below").cached


def test_training_is_repeatable_and_learns():
    budget = TrainBudget(channels=8, steps=40, batch=16, warmup=5, ema=0.9, chain=20)
    first, second = (train(Variant("cosine"), budget, 3) for _ in range(2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    x0 = to_unit(digits("held-out").pixels[:64])
    streams = SampleRNG(0, range(64))
    untrained = build(Variant("cosine"), budget, 3).eval()
    with torch.no_grad():
        before, after = (float(DiffusionLoss()(network, x0, None, streams, 0).value) for network in (untrained, first))
    assert after < 0.7 * before


def test_training_stops_at_a_loss_that_is_not_finite():
    with pytest.raises(NonFinite, match="seed 0: the loss is"):
        train(Variant("cosine"), TrainBudget(channels=8, steps=30, batch=4, warmup=0, lr=1e30, clip=1e30, chain=20), 0)


def test_the_bound_of_a_broken_network_is_worse(images: Tensor):
    assert bits(denoiser(3.0), fixed_small, images[:40], every=5) > bits(
        denoiser(0.0), fixed_small, images[:40], every=5
    )
    assert vlb(fixed_small).simple == 0
