"""The patch discriminator: shapes, published names and counts, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from unveil.errors import RecipeError, ShapeError
from unveil.nn.discriminator import DiscriminatorConfig, PatchDiscriminator


@pytest.mark.parametrize(("layers", "size"), [(1, 8), (2, 28), (3, 28), (3, 64)])
def test_one_logit_per_patch(layers, size):
    config = DiscriminatorConfig(8, layers)
    logits = PatchDiscriminator(config, 1)(torch.randn(2, 1, size, size))
    assert logits.shape == (2, 1, config.side(size), config.side(size))


def test_the_published_one_has_the_published_names_and_parameters():
    network = PatchDiscriminator(DiscriminatorConfig(), 3)
    # of the released autoencoders: loss.discriminator.main.*
    convolutions = {"main.0": 3 * 64, "main.2": 64 * 128, "main.5": 128 * 256, "main.8": 256 * 512, "main.11": 512}
    for name, count in convolutions.items():
        assert network.get_parameter(f"{name}.weight").numel() == 16 * count
    assert {k for k, _ in network.named_parameters() if k.endswith("bias")} == {
        f"main.{n}.bias" for n in (0, 3, 6, 9, 11)
    }
    rest = 64 + 2 * (128 + 256 + 512) + 1  # biases, and scales and shifts of the normalisations
    assert sum(p.numel() for p in network.parameters()) == 16 * sum(convolutions.values()) + rest
    assert float(network.get_parameter("main.5.weight").detach().std()) == pytest.approx(0.02, rel=0.01)


def test_an_output_sees_70_pixels():
    network = PatchDiscriminator(DiscriminatorConfig(2, 3), 1).eval()
    x = torch.zeros(1, 1, 128, 128, requires_grad=True)
    logits = network(x)
    logits[0, 0, 7, 7].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_too_small_images_and_impossible_settings_are_refused():
    with pytest.raises(ShapeError, match=r"reads \(B, 1, H, W\) of at least 24 pixels a side; use fewer layers"):
        PatchDiscriminator(DiscriminatorConfig(4, 3), 1)(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ShapeError, match=r"reads \(B, 3, H, W\)"):
        PatchDiscriminator(DiscriminatorConfig(4, 1), 3)(torch.zeros(1, 1, 16, 16))
    with pytest.raises(RecipeError, match="layers = 0"):
        DiscriminatorConfig(layers=0)


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_one_logit_per_patch_of_clips_of_any_length(frames):
    config = DiscriminatorConfig(4, 2, axes=3)
    logits = PatchDiscriminator(config, 3)(torch.randn(2, 3, frames, 16, 16))
    assert logits.shape == (2, 1, -(-frames // 4), config.side(16), config.side(16))
    with pytest.raises(ShapeError, match=r"reads \(B, 3, T, H, W\) of at least 12 pixels a side"):
        PatchDiscriminator(config, 3)(torch.zeros(1, 3, 16, 16))
    with pytest.raises(RecipeError, match=r"axes = 1: must be 2 \(images\) or 3 \(clips\)"):
        DiscriminatorConfig(axes=1)
