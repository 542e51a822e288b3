"""LoRA on layers: what is added, by rows, merged and not, several at once, off, trained, and copied."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn import lora
from unveil.nn.attention import Attention
from unveil.nn.dit import DiT, DiTConfig
from unveil.nn.lora import LoraConfig, LoraDelta
from unveil.nn.spatial_transformer import Projection, SpatialTransformer
from unveil.nn.transformer import EncoderStates
from unveil.nn.unet import UNet, UNetConfig, Upsample
from unveil.types import Condition


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dit() -> DiT:
    torch.manual_seed(0)
    network = DiT(DiTConfig(4, 4, size=8, patch=2, depth=2, hidden_size=32, heads=4)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


def seen(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(drawn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), Condition(drawn(2, 32, seed=1)))


def filled(network: nn.Module, *targets: str, seed: int = 0, rank: int = 3, alpha: float = 5.0) -> list[LoraDelta]:
    made = lora.init_lora(network, LoraConfig(targets or ("attention.qkv", "mlp.*"), rank, alpha))
    return [LoraDelta(m.layer, m.down, 0.1 * drawn(*m.up.shape, seed=seed + n), m.alpha) for n, m in enumerate(made)]


# -- one layer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 8),
        nn.Conv1d(6, 8, 1),
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(6, 8, (1, 3), padding="same", bias=False),
        nn.Conv3d(6, 8, 3, padding=1),
    ],
    ids=str,
)
def test_an_addition_is_that_of_the_product_to_the_weight(layer: Any):
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    holder = nn.ModuleDict({"layer": layer})
    shape = layer.weight.shape
    x = drawn(2, 5, 6).double() if isinstance(layer, nn.Linear) else drawn(2, 6, *(7,) * (len(shape) - 2)).double()
    made = LoraDelta("layer", drawn(3, *shape[1:]).double(), drawn(4, 3, seed=1).double(), alpha=2.0, start=2)
    lora.attach(holder, "one", [made], weight=0.7)
    found = layer(x)
    expected = copy.deepcopy(layer)
    lora.detach(nn.ModuleDict({"layer": expected}), "one")
    product = torch.einsum("or,r...->o...", made.up, made.down)
    expected.weight[2:6] += 0.7 * 2.0 / 3 * product
    torch.testing.assert_close(found, expected(x), rtol=1e-12, atol=1e-12)
    lora.fuse_lora(holder)
    torch.testing.assert_close(layer.weight, expected.weight, rtol=1e-12, atol=1e-12)


def test_rows_of_a_fused_layer_are_three_separate_layers():
    torch.manual_seed(0)
    fused, parts = Attention(16, 4).double(), [nn.Linear(16, 16).double() for _ in range(3)]
    with torch.no_grad():
        fused.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        fused.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
    made = []
    for n, (rank, alpha) in enumerate([(2, 1.0), (3, 6.0), (5, 2.0)]):  # each with another rank and alpha
        down, up = drawn(rank, 16, seed=n).double(), drawn(16, rank, seed=9 + n).double()
        lora.attach(nn.ModuleDict({"part": parts[n]}), "style", [LoraDelta("part", down, up, alpha)])
        made.append(LoraDelta("qkv", down, up, alpha, start=16 * n))
    lora.attach(fused, "style", made)
    x = drawn(2, 5, 16).double()
    torch.testing.assert_close(fused.qkv(x), torch.cat([part(x) for part in parts], dim=-1), rtol=1e-12, atol=1e-12)
    lora.fuse_lora(fused)
    torch.testing.assert_close(fused.qkv(x), torch.cat([part(x) for part in parts], dim=-1), rtol=1e-12, atol=1e-12)


def test_a_convolution_that_is_computed_in_another_way_takes_one():
    up = Upsample(8).requires_grad_(False)
    x, time = drawn(1, 8, 4, 4), torch.zeros(1)
    before = up(x, time)
    lora.attach(up, "one", filled(up, "conv"))
    with_it = up(x, time)
    assert not torch.allclose(with_it, before, atol=1e-2)
    repeated = F.interpolate(x, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(with_it, up.conv(repeated))
    lora.fuse_lora(up)
    torch.testing.assert_close(up(x, time), with_it, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("projection", ["conv", "linear"])
def test_layers_around_a_spatial_transformer_take_one(projection: Projection):
    torch.manual_seed(0)
    network = SpatialTransformer(64, 2, context_width=16, projection=projection).requires_grad_(False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, text = drawn(2, 64, 3, 5), (EncoderStates(drawn(2, 4, 16, seed=1), None), None)
    before = network(x, text)
    lora.attach(network, "one", filled(network, "enter", "leave"))
    with_it = network(x, text)
    assert not torch.allclose(with_it, before, atol=1e-2)
    lora.fuse_lora(network)
    torch.testing.assert_close(network(x, text), with_it, rtol=1e-5, atol=1e-5)


# -- a network ----------------------------------------------------------------------------------------------------


def test_fresh_ones_change_nothing_and_are_drawn_as_published():
    network = dit()
    before = seen(network)
    made = lora.init_lora(network, LoraConfig(("*",), rank=4, alpha=8.0))
    assert {one.layer for one in made} == set(lora.layers_of(network))
    for one in made:
        assert not one.up.any()
        bound = 1 / math.sqrt(one.down[0].numel())  # of Kaiming's uniform with a = sqrt(5)
        assert 0.5 * bound < float(one.down.abs().max()) <= bound
        assert one.scale == 2.0
    lora.attach(network, "new", made)
    torch.testing.assert_close(seen(network), before)  # the kernel of a linear layer with its GELU rounds differently


def test_the_root_of_the_rank_scales():
    network = dit()
    (one, *_) = lora.init_lora(network, LoraConfig(("leave",), rank=16, alpha=8.0, scaling="root"))
    assert one.scale == pytest.approx(2.0)


def test_merged_equals_unmerged_and_comes_back_to_the_bit():
    network = dit()
    before, kept = seen(network), copy.deepcopy(network.state_dict())
    lora.attach(network, "style", filled(network, "*"), weight=0.8)
    beside = seen(network)
    assert not torch.allclose(beside, before, atol=1e-2)
    lora.fuse_lora(network)
    torch.testing.assert_close(seen(network), beside, rtol=1e-5, atol=1e-5 * float(beside.abs().max()))
    assert any(not torch.equal(tensor, kept[key]) for key, tensor in network.state_dict().items())
    with pytest.raises(RecipeError, match="merged"):
        lora.set_weights(network, {"style": 0.5})
    lora.unfuse_lora(network)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(seen(network), beside)


@pytest.mark.parametrize("how", ["weight", "silenced", "silenced while merged", "detached"])
def test_off_is_the_base_to_the_bit(how: str):
    network = dit()
    before = seen(network)
    lora.attach(network, "style", filled(network, "*"), weight=0.0 if how == "weight" else 1.0)
    if how == "silenced while merged":
        lora.fuse_lora(network)
    with_it = seen(network)
    if how.startswith("silenced"):
        with lora.disable_adapters(network):
            assert torch.equal(seen(network), before)
        assert torch.equal(seen(network), with_it)
        assert not torch.equal(with_it, before)
    else:
        if how == "detached":
            lora.detach(network, "style")
            assert not lora.adapter_weights(network)
        assert torch.equal(seen(network), before)


def test_several_add_up_with_their_weights():
    network = dit().double()
    layer, x = network.blocks[0].get_submodule("mlp.up"), drawn(2, 3, 32).double()
    base = layer(x)

    def gain(weights: dict[str, float]) -> Tensor:
        lora.set_weights(network, weights)
        return layer(x) - base

    lora.attach(network, "a", filled(network, rank=2))
    lora.attach(network, "b", filled(network, "mlp.up", seed=50, rank=6))
    assert lora.adapter_weights(network) == {"a": 1.0, "b": 1.0}
    alone = gain({"a": 1.0, "b": 0.0}), gain({"a": 0.0, "b": 1.0})
    both = gain({"a": 0.5, "b": -2.0})
    torch.testing.assert_close(both, 0.5 * alone[0] - 2.0 * alone[1], rtol=1e-12, atol=1e-12)
    lora.fuse_lora(network)
    torch.testing.assert_close(layer(x) - base, both, rtol=1e-12, atol=1e-12)


def test_only_the_lora_trains():
    torch.manual_seed(0)
    network = UNet(UNetConfig(1, 1, model_channels=64, channel_mult=(1,), num_res_blocks=1, attention=(1,)))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    lora.attach(network, "style", filled(network, "*"))
    lora.freeze_except(network, "style")
    network(drawn(2, 1, 8, 8), torch.tensor([1.0, 2.0]), None).square().sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in network.named_parameters() if ".lora.lows." in name}
    assert len(trained) == 2 * len(lora.layers_of(network))
    assert all(bool(parameter.grad.any()) for parameter in network.parameters() if parameter.grad is not None)


def test_files_of_the_base_stay_its_own():
    network = dit()
    kept = copy.deepcopy(network.state_dict())
    lora.attach(network, "style", filled(network))
    assert list(network.state_dict()) == list(kept)
    assert not network.load_state_dict(kept).missing_keys


def test_a_copy_is_one_of_its_own():
    network = dit()
    lora.attach(network, "style", filled(network))
    with_it, twin = seen(network), copy.deepcopy(network)
    lora.set_weights(network, {"style": 0.0})
    assert torch.equal(seen(twin), with_it)
    lora.set_weights(twin, {"style": 0.0})
    lora.set_weights(network, {"style": 1.0})
    assert torch.equal(seen(network), with_it)
    assert not torch.equal(seen(twin), with_it)


def test_what_cannot_work_is_named():
    network = dit()
    with pytest.raises(RecipeError, match=r"'attention\.qvk'.*nearest.*attention\.qkv"):
        lora.init_lora(network, LoraConfig(("attention.qvk",)))
    with pytest.raises(RecipeError, match="rank = 0"):
        LoraConfig(("leave",), rank=0)
    with pytest.raises(RecipeError, match="takes no LoRA"):
        lora.init_lora(nn.ModuleDict({"conv": nn.Conv2d(4, 4, 3, groups=2)}), LoraConfig(("conv",)))
    made = LoraDelta("leave", drawn(2, 31), drawn(16, 2), 1.0)
    with pytest.raises(ShapeError, match=r"leave: adds \(16, 31\) from row 0 to a weight \(16, 32\)"):
        lora.attach(network, "style", [*filled(network), made])
    assert not lora.adapter_weights(network)
    lora.attach(network, "style", filled(network))
    with pytest.raises(RecipeError, match=r"'styel': is not on this network.*style"):
        lora.detach(network, "styel")
    with pytest.raises(RecipeError, match="on this network already"):
        lora.attach(network, "style", filled(network))
