"""The U-Net: published sizes, exact starts, every parameter in use, any shape, and mistakes that are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.layers import scaled_dot_product_attention
from unveil.nn.unet import Downsample, UNet, UNetConfig, Upsample
from unveil.types import Condition

DDPM = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=128,
    channel_mult=(1, 2, 2, 2),
    num_res_blocks=2,
    attention=(2,),
    resample="conv-asymmetric",
    embedding="sin-cos",
    norm_eps=1e-6,
)
SMALL = UNetConfig(
    in_channels=2,
    out_channels=2,
    model_channels=16,
    channel_mult=(1, 1.5, 2),
    num_res_blocks=1,
    attention=(2,),
    groups=4,
)
VARIANTS = {
    "ddpm": replace(SMALL, resample="conv-asymmetric", embedding="sin-cos"),
    "improved": replace(SMALL, time_scale_shift="scale-shift", heads=4, heads_up=2, attention_order="heads-first"),
    "adm": replace(SMALL, time_scale_shift="scale-shift", resample="residual", head_channels=8, out_channels=4),
    "pool": replace(SMALL, resample="pool", heads=3, attention=(2,), model_channels=24, channel_mult=(1, 1)),
    "patched": replace(SMALL, patch=2, channel_mult=(1, 2), stem_channels=8),
    "upsampler": replace(SMALL, concat_channels=2, context_size="smaller"),
}


def drawn(config: UNetConfig) -> UNet:
    """A network whose zero-initialised layers matter too."""
    torch.manual_seed(0)
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return network


def inputs(config: UNetConfig, batch: int = 2, size: tuple[int, int] = (8, 12)) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, *size, generator=generator)
    t = torch.rand(batch, generator=generator) * 1000
    vector = torch.randn(batch, config.vector_dim, generator=generator)
    low = None
    if config.concat_channels:
        low = torch.randn(batch, config.concat_channels, 4, 4, generator=generator)
    return x, t, Condition(vector=vector, concat=low)


# Parameters of the three networks of Ho et al. 2020, counted in the authors' own code's PyTorch port (ermongroup/ddim).
@pytest.mark.parametrize(
    ("multipliers", "attention", "count"),
    [
        pytest.param((1, 2, 2, 2), (2,), 35_746_307, id="cifar10"),
        pytest.param((1, 2, 2, 2, 4), (4,), 78_700_803, id="celeba"),
        pytest.param((1, 1, 2, 2, 4, 4), (16,), 113_673_219, id="256px"),
    ],
)
def test_the_networks_of_ddpm_have_their_published_number_of_parameters(multipliers, attention, count):
    with torch.device("meta"):
        network = UNet(replace(DDPM, channel_mult=multipliers, attention=attention))
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_new_network_gives_zero_in_xs_size(config):
    x, t, condition = inputs(config)
    result = UNet(config)(x, t, condition)
    assert result.shape == (2, config.out_channels, 8, 12)
    assert (result == 0).all()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradient_reaches_every_parameter_and_the_condition(config):
    x, t, condition = inputs(config)
    given = condition.map(lambda tensor: tensor.requires_grad_())
    network = drawn(config)
    network(x, t, given).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    assert given.vector is not None
    assert given.vector.grad is not None
    assert (given.vector.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_samples_of_a_batch_do_not_touch_each_other(config):
    x, t, condition = inputs(config, batch=3)
    network = drawn(config).eval()
    with torch.no_grad():
        whole = network(x, t, condition)
        alone = network(x[1:2], t[1:2], condition.map(lambda tensor: tensor[1:2]))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_channels_last_computes_the_same(config):
    x, t, condition = inputs(config)
    network = drawn(config).double().eval()
    condition = condition.map(lambda tensor: tensor.double())
    with torch.no_grad():
        plain = network(x.double(), t, condition)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - an overload of `to`
        last = network(x.double().contiguous(memory_format=torch.channels_last), t, condition)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-10 * plain.abs().max().item())


def test_time_and_vector_matter_where_the_level_does():
    x, t, condition = inputs(SMALL)
    network = drawn(SMALL)
    with torch.no_grad():
        result = network(x, t, condition)
        assert not torch.allclose(result, network(x, t + 100, condition), rtol=1e-2)
        assert not torch.allclose(result, network(x, t, None), rtol=1e-2)


def test_the_up_convolution_is_that_of_repeated_pixels():
    network = drawn(SMALL).double()
    up = network.get_submodule("up.0.resample")
    assert isinstance(up, Upsample)
    x = torch.randn(2, 32, 3, 5, dtype=torch.float64)
    repeated = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(up(x, torch.empty(0)), up.conv(repeated), rtol=0, atol=1e-12)


def test_ddpm_halves_with_padding_below_and_on_the_right_only():
    down = Downsample(2, asymmetric=True).double()
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    got = down(x, torch.empty(0))
    assert got.shape == (1, 2, 2, 3)
    first = (x[:, :, :3, :3] * down.conv.weight[:, :, :3, :3].unsqueeze(1)).sum((2, 3, 4)).flatten() + down.conv.bias
    torch.testing.assert_close(got[0, :, 0, 0], first)


def test_without_anything_to_say_of_time_both_modulations_are_one_network():
    x, t, condition = inputs(SMALL)
    added, scaled = drawn(SMALL), UNet(replace(SMALL, time_scale_shift="scale-shift"))
    state, wider = added.state_dict(), scaled.state_dict()
    for key in state:
        if ".time." in key:
            state[key] = torch.zeros_like(wider[key])
            added.get_parameter(key).data.zero_()
    scaled.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(scaled(x, t, condition), added(x, t, condition))


def test_the_two_attention_orders_are_one_network_with_rows_in_another_order():
    heads = 2
    x, t, condition = inputs(SMALL)
    first = drawn(replace(SMALL, heads=heads, attention_order="qkv-first"))
    second = UNet(replace(SMALL, heads=heads, attention_order="heads-first"))
    state = first.state_dict()
    for key, rows in state.items():
        if ".qkv." in key:
            state[key] = rows.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
    second.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(second(x, t, condition), first(x, t, condition))


def test_bf16_attention_agrees_with_float32():
    torch.manual_seed(0)
    query, key, value = (2 * torch.randn(2, 3, 20, 16) for _ in range(3))
    exact = scaled_dot_product_attention(query, key, value)
    rough = scaled_dot_product_attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert (rough.float() - exact).norm() / exact.norm() < 0.02


def test_dropout_acts_in_training_only():
    x, t, condition = inputs(SMALL)
    network = drawn(replace(SMALL, dropout=0.5))
    with torch.no_grad():
        assert not torch.equal(network(x, t, condition), network(x, t, condition))
        network.eval()
        assert torch.equal(network(x, t, condition), network(x, t, condition))


def test_context_of_xs_size_is_seen_where_it_lies_and_one_pixel_stands_for_all():
    config = replace(SMALL, concat_channels=1, attention=(), channel_mult=(1,))
    x, t, _ = inputs(config)
    network = drawn(config)
    with torch.no_grad():
        plain = network(x, t, Condition(concat=torch.zeros(2, 1, 8, 12)))
        pixel = network(x, t, Condition(concat=torch.zeros(2, 1, 1, 1)))
        assert torch.equal(plain, pixel)


def test_a_smaller_image_is_upsampled_to_the_size_of_x():
    config = VARIANTS["upsampler"]
    x, t, condition = inputs(config)
    network = drawn(config)
    assert condition.concat is not None
    large = nn.functional.interpolate(condition.concat, (8, 12), mode="bilinear", align_corners=False)
    same = drawn(replace(config, context_size="same"))
    with torch.no_grad():
        got = network(x, t, condition)
        torch.testing.assert_close(got, same(x, t, Condition(vector=condition.vector, concat=large)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": (8,)}, "attention 8: must be a rate of downsampling that a level has: 1, 2, 4"),
        ({"channel_mult": ()}, "channel_mult: none given"),
        ({"num_res_blocks": 0}, "num_res_blocks = 0: must be at least 1"),
        ({"groups": 5}, "16 channels: must be a multiple of the 5 groups"),
        ({"resample": "convolution"}, "resample = 'convolution': must be one of conv, .*; nearest: 'conv"),
        ({"dropout": 1.0}, r"dropout = 1.0: must lie in \[0, 1\)"),
        ({"heads": 7}, "must be a multiple of the 7 attention heads"),
        ({"head_channels": 5}, "head_channels = 5: must divide"),
    ],
)
def test_settings_that_do_not_fit_are_named(change, message):
    with pytest.raises(RecipeError, match=message):
        UNet(replace(SMALL, **change))


def test_inputs_that_do_not_fit_are_named():
    network = UNet(SMALL)
    x, t, _ = inputs(SMALL)
    with pytest.raises(ShapeError, match=r"width 10 px: must be a multiple of 4; nearest 8 or 12"):
        network(x[..., :10], t)
    with pytest.raises(ShapeError, match=r"x \(2, 1, 8, 12\): must be \(B, 2, H, W\)"):
        network(x[:, :1], t)
    with pytest.raises(ShapeError, match=r"condition.vector \(2, 3\): must be \(2, 64\)"):
        network(x, t, Condition(vector=torch.zeros(2, 3)))
    with pytest.raises(ShapeError, match=r"condition.concat: 1 given, the network takes 0"):
        network(x, t, Condition(concat=torch.zeros(2, 1, 8, 12)))
    with pytest.raises(ShapeError, match="no cross-attention"):
        network(x, t, Condition(tokens=torch.zeros(2, 1, 8)))
    with pytest.raises(ShapeError, match=r"condition.concat of size \(4, 4\), x is \(8, 12\)"):
        UNet(replace(SMALL, concat_channels=2))(x, t, Condition(concat=torch.zeros(2, 2, 4, 4)))
