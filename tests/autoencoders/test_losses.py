"""Terms of an autoencoder's loss against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from unveil.autoencoders.losses import (
    ADVERSARIAL,
    ERRORS,
    MAX_ADAPTIVE_WEIGHT,
    adaptive_weight,
    generator_loss,
    hinge,
    likelihood,
    vanilla,
)

REAL, MADE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])


def test_hinge_stops_at_one():
    # real: 0, 0.5, 2; made: 0, 1, 2
    assert hinge(REAL, MADE).item() == pytest.approx(0.5 * (2.5 / 3 + 3 / 3))
    assert hinge(torch.full((4,), 1.5), torch.full((4,), -1.5)) == 0


def test_vanilla_is_the_cross_entropy_of_both_sides():
    logits, truth = torch.cat([REAL, MADE]), torch.tensor([1.0, 1, 1, 0, 0, 0])
    expected = nn.functional.binary_cross_entropy_with_logits(logits, truth)
    assert torch.isclose(vanilla(REAL, MADE), expected)
    assert vanilla(torch.zeros(2), torch.zeros(2)).item() == pytest.approx(math.log(2))


def test_the_decoder_wants_its_logits_high_under_either():
    assert generator_loss(MADE).item() == pytest.approx(2 / 3)
    assert set(ADVERSARIAL) == {"hinge", "vanilla"}


def test_errors_are_of_the_difference():
    away = torch.tensor([-2.0, 0.5])
    assert ERRORS["l1"](away).tolist() == [2, 0.5]
    assert ERRORS["l2"](away).tolist() == [4, 0.25]


def test_a_learned_scale_settles_at_the_error():
    error, scale = torch.tensor([0.2, 0.4]), torch.tensor(-1.0, requires_grad=True)
    assert likelihood(error, scale).tolist() == pytest.approx([0.2 * math.e - 1, 0.4 * math.e - 1])
    # at s = log(mean error) the gradient in s is 0
    at = torch.tensor(math.log(0.3), requires_grad=True)
    likelihood(error, at).mean().backward()
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(likelihood(error, torch.zeros(())), error)


def two_losses(factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """L_rec and L_gan of a last layer w = (3, 4): gradients 2 w and factor * (1, 1)."""
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    return w.square().sum(), factor * w.sum(), w


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_at_the_last_layer():
    rebuilt, adversarial, w = two_losses(0.5)
    weight = adaptive_weight(rebuilt, adversarial, w)
    assert weight.item() == pytest.approx(10 / (0.5 * math.sqrt(2) + 1e-4))
    assert not weight.requires_grad
    # the graphs are still there for the step itself, and both shares are then of one length
    first, second = (torch.autograd.grad(loss, w, retain_graph=True)[0] for loss in (rebuilt, weight * adversarial))
    assert first.norm().item() == pytest.approx(second.norm().item(), rel=1e-3)


def test_the_adaptive_weight_through_a_network_is_what_autograd_gives_by_hand():
    torch.manual_seed(0)
    decoder, critic = nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(1, 1, 4, stride=2)
    z, x = torch.randn(3, 2, 8, 8), torch.randn(3, 1, 8, 8)
    y = decoder(z)
    rebuilt, adversarial = (x - y).abs().mean(), -critic(y).mean()
    found = adaptive_weight(rebuilt, adversarial, decoder.weight)
    norms = []
    for loss in ((x - decoder(z)).abs().mean(), -critic(decoder(z)).mean()):
        decoder.zero_grad()
        loss.backward()
        assert decoder.weight.grad is not None
        norms.append(decoder.weight.grad.norm().item())
    assert found.item() == pytest.approx(norms[0] / (norms[1] + 1e-4), rel=1e-5)


def test_the_adaptive_weight_has_a_limit():
    rebuilt, adversarial, w = two_losses(1e-9)
    assert adaptive_weight(1e3 * rebuilt, adversarial, w).item() == MAX_ADAPTIVE_WEIGHT
