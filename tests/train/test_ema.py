"""The average of the weights against its closed form."""

from __future__ import annotations

import torch
from torch import nn

from unveil.train.ema import Ema


def test_the_average_is_the_weighted_sum_of_the_weights():
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(41, 3, 2, dtype=torch.float64, generator=generator)
    model = nn.Linear(2, 3, bias=False, dtype=torch.float64)
    model.weight.data.copy_(path[0])
    ema = Ema(model, 0.8)
    for weights in path[1:]:
        model.weight.data.copy_(weights)
        ema.update()
    decays = [min(0.8, (1 + n) / (10 + n)) for n in range(40)]
    assert decays[0] == 0.1
    assert decays[-1] == 0.8
    # theta_T = prod(d) theta_0 + sum over n of (1 - d_n) prod over later d of theta_n
    expected = torch.tensor(decays).prod().double() * path[0]
    for n, weights in enumerate(path[1:]):
        expected = expected + (1 - decays[n]) * torch.tensor(decays[n + 1 :]).double().prod() * weights
    torch.testing.assert_close(ema.model.weight, expected, rtol=1e-6, atol=0)
    assert ema.updates == 40


def test_frozen_weights_are_shared_and_buffers_followed():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    ema = Ema(model, 0.9)
    model.train()(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        model[0].weight.add_(1)
    ema.update()
    assert ema.model[2].weight is model[2].weight
    assert not torch.equal(ema.model[0].weight, model[0].weight)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert not ema.model.training
    assert not any(p.requires_grad for p in ema.model.parameters())


def test_decay_0_is_the_weights_themselves():
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.0)
    with torch.no_grad():
        model.weight.fill_(3)
    ema.update()
    assert torch.equal(ema.model.weight, model.weight)
