"""The autoencoder's two networks: sizes, gradients, what one place learns of another, and mistakes that are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unveil.errors import RecipeError, ShapeError
from unveil.nn.autoencoder import AutoencoderConfig, ImageDecoder, ImageEncoder

SMALL = AutoencoderConfig(3, 3, 16, (1, 2), 1, 4, groups=4)
VARIANTS = {
    "ldm": SMALL,
    "attention": replace(SMALL, attention=(1, 2), channel_mult=(1, 1.5), moments=2),
    "local": replace(SMALL, norm="pixel", middle="blocks", channel_mult=(1, 1, 2)),
    "patched": replace(SMALL, patch=2, out_channels=1, dropout=0.1),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_sizes_and_gradients_of_every_parameter(config):
    torch.manual_seed(0)
    encoder, decoder = ImageEncoder(config), ImageDecoder(config)
    pixels = torch.randn(2, 3, 16, 24)
    h = encoder(pixels)
    assert h.shape == (2, config.moments * 4, 16 // config.factor, 24 // config.factor)
    result = decoder(h[:, :4])
    assert result.shape == (2, config.out_channels, 16, 24)
    for module in (encoder, decoder):  # zeroed ones would hide others
        for name, parameter in module.named_parameters():
            if name.endswith("out.weight"):
                torch.nn.init.normal_(parameter, std=0.1)
    (decoder(encoder(pixels)[:, :4]) ** 2).sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("qkv.bias"), name


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_activations_in_place_change_nothing(config):
    torch.manual_seed(0)
    encoder, decoder = ImageEncoder(config).eval(), ImageDecoder(config).eval()
    pixels = torch.randn(1, 3, 16, 16)
    kept = pixels.clone()
    with torch.no_grad():
        without = decoder(encoder(pixels)[:, :4])
    assert torch.equal(pixels, kept)
    torch.testing.assert_close(without, decoder(encoder(pixels)[:, :4]).detach(), rtol=1e-5, atol=1e-6)


def test_a_local_one_sees_as_far_as_its_convolutions_and_others_see_everything():
    torch.manual_seed(0)
    for config, far in ((VARIANTS["local"], False), (SMALL, True)):
        assert config.local is not far
        decoder = ImageDecoder(config).eval()
        z = torch.randn(1, 4, 4, 40)
        changed = z.clone()
        changed[..., 0] += 5
        with torch.no_grad():
            difference = (decoder(z) - decoder(changed)).abs().amax((0, 1, 2))
        assert difference[0] > 1e-3
        assert bool((difference[-config.factor :] > 1e-6).any()) is far


def test_mistakes_are_named():
    with pytest.raises(ShapeError, match="height 18 px: must be a multiple of 4; nearest 16 or 20"):
        ImageEncoder(VARIANTS["local"])(torch.zeros(1, 3, 18, 16))
    with pytest.raises(ShapeError, match=r"pixels \(1, 1, 16, 16\): must be \(B, 3, H, W\)"):
        ImageEncoder(SMALL)(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ShapeError, match=r"latents \(1, 3, 4, 4\): must be \(B, 4, H, W\)"):
        ImageDecoder(SMALL)(torch.zeros(1, 3, 4, 4))
    for change, message in {
        "groups": "16 channels: must be a multiple of the 5 groups",
        "norm": "norm = 5: must be one of group, pixel",
        "attention": "attention 5: must be a rate of downsampling that a level has: 1, 2",
    }.items():
        with pytest.raises(RecipeError, match=message):
            replace(SMALL, **{change: (5,) if change == "attention" else 5})
