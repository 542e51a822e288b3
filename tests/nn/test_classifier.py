"""The noisy classifier: published sizes, even logits at the start, every parameter in use, named mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.core import guidance
from unveil.core.process import DiscreteVP, betas
from unveil.errors import RecipeError, ShapeError
from unveil.nn.classifier import NoisyClassifier, NoisyClassifierConfig

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
SMALL = NoisyClassifierConfig(
    2,
    5,
    8,
    model_channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention=(2,),
    head_channels=8,
    groups=4,
    hidden=24,
)
# Parameters of ADM's classifiers, by the side of their images, with the levels and blocks of each.
RELEASED = {
    64: ((1, 2, 3, 4), 4, (2, 4, 8), 65_438_568),
    128: ((1, 1, 2, 3, 4), 2, (4, 8, 16), 42_568_040),
    256: ((1, 1, 2, 2, 4, 4), 2, (8, 16, 32), 54_096_360),
    512: ((0.5, 1, 1, 2, 2, 4, 4), 2, (16, 32, 64), 54_448_360),
}


def drawn(config: NoisyClassifierConfig) -> NoisyClassifier:
    """A classifier whose zero-initialised layers matter too."""
    torch.manual_seed(0)
    network = NoisyClassifier(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return network


def inputs(batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 8, 8, generator=generator), torch.rand(batch, generator=generator) * 1000


@pytest.mark.parametrize("size", RELEASED)
def test_released_classifiers_have_their_number_of_parameters(size):
    multipliers, blocks, attention, count = RELEASED[size]
    config = NoisyClassifierConfig(3, 1000, size, channel_mult=multipliers, num_res_blocks=blocks, attention=attention)
    with torch.device("meta"):
        network = NoisyClassifier(config)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("pool", POOLS)
def test_a_new_classifier_prefers_no_class(pool):
    logits = NoisyClassifier(replace(SMALL, pool=pool))(*inputs())
    assert logits.shape == (3, 5)
    assert (logits == 0).all()


@pytest.mark.parametrize("pool", POOLS)
def test_gradient_reaches_every_parameter_and_the_image(pool):
    x, t = inputs()
    network = drawn(replace(SMALL, pool=pool))
    network(x.requires_grad_(), t).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("pool", POOLS)
def test_samples_of_a_batch_do_not_touch_each_other_and_the_level_matters(pool):
    x, t = inputs()
    network = drawn(replace(SMALL, pool=pool)).eval()
    with torch.no_grad():
        whole = network(x, t)
        torch.testing.assert_close(network(x[1:2], t[1:2]), whole[1:2], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(whole, network(x, t + 100), rtol=1e-2)


def test_attention_pooling_knows_where_things_are():
    """With one level and no convolution across pixels, only the places of the pooling tell a mirrored image."""
    network = drawn(replace(SMALL, channel_mult=(1,), attention=(), size=8)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
                outer = torch.ones(3, 3)
                outer[1, 1] = 0
                module.weight[:, :, outer.bool()] = 0
    x, t = inputs()
    mirrored = x.flip(3)
    with torch.no_grad():
        assert not torch.allclose(network(x, t), network(mirrored, t), rtol=1e-3)
        network.pool.places[:, 1:] = 0.1
        torch.testing.assert_close(network(x, t), network(mirrored, t), rtol=1e-4, atol=1e-4)


def test_it_guides():
    process, network = DiscreteVP(betas("cosine", 100)), drawn(SMALL).eval()
    score = guidance.log_probability(
        lambda x, level: network(x, torch.as_tensor(process.timestep(level)).expand(len(x))),
        torch.tensor([0, 1, 4]),
    )
    x, _ = inputs()
    level = process.at(0.4)
    push = guidance.gradient(score, 2.0)(x, level)
    small = 1e-3 * push / push.norm()
    gain = score(x + small, level).sum() - score(x - small, level).sum()
    torch.testing.assert_close(gain.item(), (push / 2 * 2 * small).sum().item(), rtol=0.05, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "atention"}, "pool = 'atention': must be one of .*; nearest: 'attention'"),
        ({"size": 9}, "size 9 px: must be a multiple of 2"),
        ({"num_classes": 0}, "num_classes = 0: must be at least 1"),
        ({"attention": (4,)}, "attention 4: must be a rate"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message):
    with pytest.raises(RecipeError, match=message):
        NoisyClassifier(replace(SMALL, **change))


def test_images_of_another_size_are_named():
    _, t = inputs()
    with pytest.raises(ShapeError, match=r"x \(3, 2, 16, 16\): this classifier reads \(B, 2, 8, 8\)"):
        NoisyClassifier(SMALL)(torch.zeros(3, 2, 16, 16), t)
    anywhere = NoisyClassifier(replace(SMALL, pool="adaptive"))
    assert anywhere(torch.zeros(3, 2, 16, 12), t).shape == (3, 5)
    with pytest.raises(ShapeError, match=r"this classifier reads \(B, 2, H, W\)"):
        anywhere(torch.zeros(3, 1, 8, 8), t)
    with pytest.raises(ShapeError, match="width 9 px: must be a multiple of 2"):
        anywhere(torch.zeros(3, 2, 8, 9), t)
