"""EDM's networks: published sizes, exact starts, every parameter in use, filters as defined, mistakes named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.edm_unet import DhariwalUNet, DhariwalUNetConfig, SongUNet, SongUNetConfig
from unveil.nn.layers import Fir, FirConv
from unveil.types import Condition

CIFAR = SongUNetConfig(3, 3)
VE = {"embedding": "fourier", "noise_multiplier": 2, "encoder": "residual", "filter": (1, 3, 3, 1)}
FFHQ = replace(CIFAR, channel_mult=(1, 2, 2, 2), attention=(4,))
ADM = DhariwalUNetConfig(3, 3)
# The networks alone: EDM's unconditional ones, score SDE's deep ones, and ADM's without its table of 1,000 labels.
COUNTS = {
    "baseline-cifar10-uncond-vp": (CIFAR, 55_732_739),
    "edm-cifar10-uncond-vp": (replace(CIFAR, augment_dim=9), 55_733_891),
    "edm-cifar10-uncond-ve": (replace(CIFAR, augment_dim=9, **VE), 56_397_827),
    "edm-ffhq-uncond-vp": (replace(FFHQ, augment_dim=9), 61_805_571),
    "edm-ffhq-uncond-ve": (replace(FFHQ, augment_dim=9, **VE), 62_761_091),
    "cifar10_ddpmpp_deep_continuous": (replace(FFHQ, attention=(2,), num_res_blocks=8), 106_632_579),
    "cifar10_ncsnpp_deep_continuous": (replace(FFHQ, attention=(2,), num_res_blocks=8, **VE), 107_586_947),
    "edm-imagenet-64x64-cond-adm": (ADM, 295_899_267 - 1000 * 768),
}
SMALL = SongUNetConfig(
    2, 2, model_channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, attention=(2,), concat_channels=1
)
VARIANTS = {
    "ddpm++": SMALL,
    "ncsn++": replace(SMALL, augment_dim=3, **VE),
    "skips": replace(SMALL, encoder="skip", decoder="skip", filter=(1, 3, 3, 1)),
    "cat": replace(SMALL, encoder="skip", combine="cat", filter=None),
    "strided": replace(SMALL, encoder="residual", filter=None, resample="pool", branch_weight=1.0),
    "adm": DhariwalUNetConfig(
        2, 4, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention=(2,), head_channels=8, augment_dim=3
    ),
}
Network = SongUNet | DhariwalUNet


def made(config: SongUNetConfig | DhariwalUNetConfig) -> Network:
    return SongUNet(config) if isinstance(config, SongUNetConfig) else DhariwalUNet(config)


def drawn(config: SongUNetConfig | DhariwalUNetConfig) -> Network:
    """A network whose zero-initialised layers matter too."""
    torch.manual_seed(0)
    network = made(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return network


def inputs(
    config: SongUNetConfig | DhariwalUNetConfig, batch: int = 2, size: tuple[int, int] = (8, 12)
) -> tuple[Tensor, Tensor, Condition, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, *size, generator=generator)
    t = torch.randn(batch, generator=generator)
    vector = torch.randn(batch, config.vector_dim, generator=generator)
    context = torch.randn(batch, 1, *size, generator=generator) if config.concat_channels else None
    augment = torch.randn(batch, config.augment_dim, generator=generator) if config.augment_dim else None
    return x, t, Condition(vector=vector, concat=context), augment


@pytest.mark.parametrize(("config", "count"), COUNTS.values(), ids=COUNTS.keys())
def test_published_networks_have_their_number_of_parameters(config, count):
    with torch.device("meta"):
        network = made(config)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_new_network_gives_zero_in_xs_size(config):
    x, t, condition, augment = inputs(config)
    result = made(config)(x, t, condition, augment)
    assert result.shape == (2, config.out_channels, 8, 12)
    assert (result == 0).all()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradient_reaches_every_parameter_and_all_that_is_given(config):
    x, t, condition, augment = inputs(config)
    given = condition.map(lambda tensor: tensor.requires_grad_())
    network = drawn(config)
    network(x.requires_grad_(), t, given, augment).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    for tensor in (x, given.vector, given.concat):
        assert tensor is None or (tensor.grad is not None and (tensor.grad.flatten(1).abs().sum(1) > 0).all())


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_samples_of_a_batch_do_not_touch_each_other(config):
    x, t, condition, augment = inputs(config, batch=3)
    network = drawn(config).eval()
    with torch.no_grad():
        whole = network(x, t, condition, augment)
        part = None if augment is None else augment[1:2]
        alone = network(x[1:2], t[1:2], condition.map(lambda tensor: tensor[1:2]), part)
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_level_vector_and_augmentation_matter(config):
    x, t, condition, augment = inputs(config)
    network = drawn(config).eval()
    with torch.no_grad():
        result = network(x, t, condition, augment)
        assert not torch.allclose(result, network(x, t + 1, condition, augment), rtol=1e-2)
        bare = Condition(concat=condition.concat)
        assert not torch.allclose(result, network(x, t, bare, augment), rtol=1e-2)
        if augment is not None:
            plain = network(x, t, condition)
            assert not torch.allclose(result, plain, rtol=1e-3)
            assert torch.equal(plain, network(x, t, condition, torch.zeros_like(augment)))


def test_frequencies_are_saved_but_not_trained():
    network = SongUNet(VARIANTS["ncsn++"])
    assert network.state_dict()["frequencies"].shape == (8,)
    assert "frequencies" not in dict(network.named_parameters())
    assert network.state_dict()["frequencies"].std() > 5


def test_dropout_acts_in_training_only():
    x, t, condition, _ = inputs(SMALL)
    network = drawn(replace(SMALL, dropout=0.5))
    with torch.no_grad():
        assert not torch.equal(network(x, t, condition), network(x, t, condition))
        network.eval()
        assert torch.equal(network(x, t, condition), network(x, t, condition))


# ---------------------------------------------------------------------- filters


def dense(x: Tensor, taps: list[float], way: str) -> Tensor:
    """The filter by its definition, one axis after the other: zeros in between, taps over them, every second kept."""
    for axis in (2, 3):
        x = x.movedim(axis, -1)
        length, kept = x.shape[-1], torch.tensor(taps) / sum(taps)
        if way == "up":
            x = torch.stack([x, torch.zeros_like(x)], dim=-1).flatten(-2)[..., : 2 * length - 1]
            kept = 2 * kept
        pad = len(taps) // 2 if way == "up" else (len(taps) - 1) // 2
        x = F.pad(x, (pad, pad))
        x = (x.unfold(-1, len(taps), 1) * kept).sum(-1)
        x = (x[..., ::2] if way == "down" else x).movedim(-1, axis)
    return x


@pytest.mark.parametrize("taps", [[1.0, 1.0], [1.0, 3.0, 3.0, 1.0], [1.0, 5.0, 10.0, 10.0, 5.0, 1.0]])
@pytest.mark.parametrize("way", ["down", "up"])
def test_a_filter_is_what_it_is_defined_as(taps, way):
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(2))
    got = Fir(taps, way)(x)
    assert got.shape == ((2, 3, 3, 4) if way == "down" else (2, 3, 12, 16))
    torch.testing.assert_close(got, dense(x, taps, way), rtol=1e-5, atol=1e-5)
    flat = Fir(taps, way)(torch.ones(1, 1, 16, 16))
    assert torch.allclose(flat[..., 4:-4, 4:-4], torch.ones(()))


def test_a_convolution_with_a_filter_is_both_in_turn_but_at_the_edges():
    torch.manual_seed(3)
    layer, x = FirConv(2, 3, (1, 3, 3, 1)), torch.randn(1, 2, 16, 16)
    turn = Fir((1, 3, 3, 1), "down")(F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1))
    got = layer(x)
    assert got.shape == turn.shape == (1, 3, 8, 8)
    torch.testing.assert_close(got[..., 1:-1, 1:-1], turn[..., 1:-1, 1:-1])
    assert not torch.allclose(got, turn)


def test_the_simplest_filter_averages_and_repeats():
    x = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(4))
    assert torch.equal(Fir((1, 1), "down")(x), F.avg_pool2d(x, 2))
    assert torch.equal(Fir((1, 1), "up")(x), nn.Upsample(scale_factor=2.0)(x))


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": (8,)}, "attention 8: must be a rate of downsampling that a level has: 1, 2, 4"),
        ({"channel_mult": ()}, r"channel_mult = \(\): one per level is needed"),
        ({"num_res_blocks": 0}, "num_res_blocks = 0: must be at least 1"),
        ({"encoder": "resdiual"}, "encoder = 'resdiual': must be one of .*; nearest: 'residual'"),
        ({"filter": (1, 2, 1)}, "must be an even number and symmetric"),
        ({"filter": (1, 2, 3, 4)}, "must be an even number and symmetric"),
        ({"dropout": 1.0}, r"dropout = 1.0: must lie in \[0, 1\)"),
        ({"noise_multiplier": 0}, "noise_multiplier = 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message):
    with pytest.raises(RecipeError, match=message):
        replace(SMALL, **change)


def test_heads_that_do_not_divide_a_level_are_named():
    with pytest.raises(RecipeError, match="head_channels = 48: must divide the 64 channels"):
        DhariwalUNet(DhariwalUNetConfig(3, 3, model_channels=64, channel_mult=(1, 1), attention=(2,), head_channels=48))


@pytest.mark.parametrize("name", ["ddpm++", "adm"])
def test_inputs_that_do_not_fit_are_named(name):
    config = replace(VARIANTS[name], concat_channels=0)
    network = made(config)
    x, t, _, _ = inputs(config)
    with pytest.raises(ShapeError, match=r"width 11 px: must be a multiple of"):
        network(x[..., :11], t)
    with pytest.raises(ShapeError, match=r"x \(2, 1, 8, 12\): must be \(B, 2, H, W\)"):
        network(x[:, :1], t)
    with pytest.raises(ShapeError, match=r"condition.vector \(2, 3\): must be"):
        network(x, t, Condition(vector=torch.zeros(2, 3)))
    with pytest.raises(ShapeError, match="no cross-attention"):
        network(x, t, Condition(tokens=torch.zeros(2, 1, 8)))
    with pytest.raises(ShapeError, match=rf"augment \(2, 5\): this network takes \(2, {config.augment_dim}\)"):
        network(x, t, None, torch.zeros(2, 5))
