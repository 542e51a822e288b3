"""ViT: its start, its parts, and positions for images of other sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.embeddings import sin_cos_positions
from unveil.nn.vit import ViT, ViTConfig, get_preset

SMALL = ViTConfig(1, 8, 10, 2, 2, 16, 2, 2.0)


def drawn(config: ViTConfig) -> ViT:
    torch.manual_seed(0)
    network = ViT(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize("stem", ["patches", "convolutions"])
@pytest.mark.parametrize("head", ["linear", "hidden"])
@pytest.mark.parametrize("pool", ["class", "mean"])
def test_logits_begin_at_zero_and_every_weight_learns(pool, head, stem):
    config = replace(SMALL, pool=pool, head=head, stem=stem)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(ViT(config)(x).logits, torch.zeros(3, 10))
    network = drawn(config)
    reading = network(x)
    assert reading.features.shape == (3, 16)
    reading.logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_without_classes_it_gives_features_alone():
    reading = drawn(replace(SMALL, num_classes=0))(torch.randn(3, 1, 8, 8))
    assert reading.features.shape == (3, 16)
    assert reading.logits.shape == (3, 0)


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_other_sizes_take_interpolated_positions(pool):
    network = drawn(replace(SMALL, pool=pool))
    with torch.no_grad():
        assert network(torch.randn(2, 1, 12, 6)).logits.shape == (2, 10)
        # positions that are all alike stay so, and a constant image is read alike at every size
        network.positions.table.fill_(0.3)
        small, large = (network(torch.full((1, 1, side, side), 0.5)).logits for side in (8, 16))
    if pool == "mean":
        torch.testing.assert_close(small, large, rtol=0, atol=1e-5)


def test_convolutions_halve_an_image_down_to_its_tokens():
    network = drawn(replace(SMALL, patch=4, stem="convolutions", begin="sin-cos"))
    layers = [layer for layer in network.patches.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in layers] == [(1, 4), (4, 8), (8, 16), (16, 16)]
    assert network.tokens(torch.randn(2, 1, 12, 8)).shape == (2, 1 + 6, 16)
    with pytest.raises(RecipeError, match="patch 3: convolutions halve the image"):
        replace(SMALL, size=9, patch=3, stem="convolutions")
    with pytest.raises(RecipeError, match="hidden_size 2: convolutions begin with 1/4 of it; at least 4"):
        replace(SMALL, patch=4, hidden_size=2, heads=1, stem="convolutions")


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_positions_may_begin_as_waves(pool):
    table = ViT(replace(SMALL, pool=pool, begin="sin-cos")).positions.table.detach()
    places = torch.tensor([[column, row] for row in range(4) for column in range(4)])  # the column's part first
    torch.testing.assert_close(table[-16:], sin_cos_positions(places, 16, "sin-cos"))
    if pool == "class":
        assert table[0].abs().max() < 0.2


def test_scaled_features_leave_the_logits():
    network = drawn(SMALL)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        before = network(x)
        network.scale_features(4.0)
        after = network(x)
    torch.testing.assert_close(after.logits, before.logits)
    torch.testing.assert_close(4 * after.features, before.features)


def test_names_and_what_is_refused():
    assert get_preset("vit-l-32", classes=5).depth == 24
    with pytest.raises(RecipeError, match="nearest: 'vit-b-16'"):
        get_preset("vit-bb-16")
    with pytest.raises(RecipeError, match=r"size 9 px: must be a multiple of the patch, 2; nearest 8 or 10"):
        replace(SMALL, size=9)
    with pytest.raises(RecipeError, match="nearest: 'mean'"):
        replace(SMALL, pool="means")  # type: ignore[arg-type]
    network = drawn(SMALL)
    with pytest.raises(ShapeError, match=r"this network reads \(B, 1, H, W\)"):
        network(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="width 7 px: must be a multiple of 2"):
        network(torch.zeros(1, 1, 8, 7))
