"""DiT: the identity at the start, the paper's multiply-adds, the four designs, sizes, packing, computing ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.dit import (
    NAMES,
    BlockConditioning,
    Design,
    DiT,
    DiTConfig,
    expand_preset,
    get_preset,
    positions,
    shape_of,
)
from unveil.nn.flops import multiply_adds
from unveil.types import Condition

SMALL = DiTConfig(4, 8, size=8, patch=2, depth=3, hidden_size=32, heads=4)
DESIGNS: tuple[Design, ...] = ("in-context", "cross-attention", "adaln", "adaln-zero")
# Peebles & Xie 2023, table 4, recomputed to three digits: multiply-adds of one forward pass of 4 x 32 x 32, in units
# of 10^9, modulation included
COSTS = (0.358, 1.413, 6.056, 1.418, 5.565, 23.005, 5.011, 19.696, 80.698, 7.392, 29.044, 118.621)


def fresh(config: DiTConfig = SMALL) -> DiT:
    torch.manual_seed(0)
    return DiT(config)


def drawn(config: DiTConfig = SMALL, std: float = 0.1) -> DiT:
    network = fresh(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return network.eval()


def inputs(config: DiTConfig = SMALL, batch: int = 2) -> tuple[Tensor, Tensor, Condition]:
    x = torch.randn(batch, config.in_channels, config.size, config.size)
    return x, torch.tensor([3.0, 700.0])[:batch], Condition(vector=torch.randn(batch, config.vector_dim))


def on_meta(config: DiTConfig) -> tuple[DiT, tuple[Any, ...]]:
    with torch.device("meta"):
        x = torch.empty(1, config.in_channels, config.size, config.size)
        return DiT(config), (x, torch.empty(1), Condition(vector=torch.empty(1, config.vector_dim)))


# -- the start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skips", ["none", "long"])
@pytest.mark.parametrize("design", DESIGNS)
def test_a_fresh_network_gives_zero_and_every_weight_learns(design, skips):
    config = replace(SMALL, block_type=design, skips=skips)
    with torch.no_grad():
        assert torch.equal(fresh(config)(*inputs(config)), torch.zeros(2, 8, 8, 8))
    network = drawn(config)
    result = network(*inputs(config))
    assert result.shape == (2, 8, 8, 8)
    result.square().sum().backward()
    still = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    still += [key for key, parameter in network.named_parameters() if not parameter.grad.abs().max() > 0]  # type: ignore[union-attr]
    assert not still


@pytest.mark.parametrize("skips", ["none", "long"])
def test_fresh_blocks_of_adaln_zero_are_the_identity(skips):
    network = fresh(replace(SMALL, skips=skips))
    _, t, condition = inputs()
    seen: list[tuple[Tensor, Tensor]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _m, given, found: seen.append((given[0], found)))
    network.forward_tokens(torch.randn(2, 16, 32), network.block_conditioning(t, condition))
    assert len(seen) == 3
    assert all(torch.equal(before, after) for before, after in seen)
    assert torch.equal(seen[0][0], seen[-1][1])  # long skips add nothing yet


def test_adaln_without_zeros_is_not_the_identity():
    network = fresh(replace(SMALL, block_type="adaln"))
    _, t, condition = inputs()
    h = torch.randn(2, 16, 32)
    assert not torch.equal(network.blocks[0](h, network.block_conditioning(t, condition), 0), h)


# -- sizes and costs ----------------------------------------------------------------------------------------------


QUICK = ("dit-s-8", "dit-xl-2")


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        pytest.param(name, cost, marks=() if name in QUICK else pytest.mark.release, id=name)
        for name, cost in zip(NAMES, COSTS, strict=True)
    ],
)
def test_multiply_adds_are_the_papers(name, cost):
    assert multiply_adds(*on_meta(get_preset(name))) / 1e9 == pytest.approx(cost, rel=1e-3)


@pytest.mark.slow
def test_attention_to_the_embeddings_costs_a_sixth_more():
    costs = {d: multiply_adds(*on_meta(replace(get_preset("dit-xl-2"), block_type=d))) for d in DESIGNS}
    # figure 5 of the paper: 119.4, 137.6, 118.6, 118.6 Gflops
    assert [round(costs[d] / 1e9, 1) for d in DESIGNS] == [119.4, 137.6, 118.5, 118.6]


def test_names():
    assert get_preset("dit-xl-2").name == "dit-xl-2"
    assert shape_of("dit-b-16") == {"depth": 12, "hidden_size": 768, "heads": 12, "patch": 16}
    assert expand_preset({"kind": "dit", "name": "dit-s-2", "depth": 3})["depth"] == 3
    for wrong in ("dit-x-2", "dit-xl", "dit-xl-0", "unet"):
        with pytest.raises(RecipeError, match="known are dit-s-8"):
            shape_of(wrong)


def test_positions_give_the_column_first_and_follow_the_size():
    table = positions(SMALL, 4, 4)  # the place of row 2, column 1
    speeds = 10000.0 ** -(torch.arange(8, dtype=torch.float64) / 8)
    row = torch.cat([(1 * speeds).sin(), (1 * speeds).cos(), (2 * speeds).sin(), (2 * speeds).cos()])
    torch.testing.assert_close(table[2 * 4 + 1].double(), row, rtol=0, atol=1e-6)
    twice = positions(SMALL, 8, 8)
    torch.testing.assert_close(twice[::2][:4], table[:4])  # the same ends, twice as dense
    beyond = positions(replace(SMALL, resize="extend"), 8, 8)
    torch.testing.assert_close(beyond[:4], table[:4])
    assert not torch.equal(beyond[:8], twice[:8])


@pytest.mark.parametrize("resize", ["interpolate", "extend"])
def test_any_latent_size_is_taken(resize):
    network = drawn(replace(SMALL, resize=resize))
    _, t, condition = inputs()
    with torch.no_grad():
        assert network(torch.randn(2, 4, 12, 6), t, condition).shape == (2, 8, 12, 6)


# -- conditions ---------------------------------------------------------------------------------------------------


def test_time_and_label_are_summed():
    network = drawn()
    x, t, condition = inputs()
    label = condition.vector
    assert label is not None
    with torch.no_grad():
        modulation = network.block_conditioning(t, condition).modulation
        alone = network.block_conditioning(t, Condition()).modulation
        embedded = network.time[0](t) + label
        expected = network.blocks[0].modulation(nn.functional.silu(embedded))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(modulation[0].flatten(1), expected)
        assert not torch.equal(modulation[0], alone[0])
        assert not torch.equal(network(x, t, condition), network(x, t))


@pytest.mark.parametrize("design", ["in-context", "cross-attention"])
def test_tokens_are_seen_and_masked_ones_are_not(design):
    network = drawn(replace(SMALL, block_type=design))
    x, t, condition = inputs()
    tokens, mask = torch.randn(2, 5, 32), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with torch.no_grad():
        given = network(x, t, replace(condition, tokens=tokens, mask=mask))
        changed = torch.cat([tokens[:, :3], torch.randn(2, 2, 32)], dim=1)
        other = network(x, t, replace(condition, tokens=changed, mask=mask))
        short = network(x[1:], t[1:], Condition(vector=condition.vector[1:], tokens=tokens[1:, :3]))  # type: ignore[index]
    assert not torch.allclose(given[0], other[0])
    torch.testing.assert_close(given[1], other[1])
    torch.testing.assert_close(given[1:], short, rtol=0, atol=1e-5)


# -- speed --------------------------------------------------------------------------------------------------------


def test_modulation_of_all_levels_is_computed_in_one_call():
    network = drawn()
    x, _, condition = inputs()
    other = Condition(vector=condition.vector[[0, 0]])  # type: ignore[index]
    calls: list[int] = []
    network.blocks[0].modulation.register_forward_hook(lambda _m, given, _r: calls.append(len(given[0])))  # type: ignore[union-attr]
    levels = [torch.full((2,), float(index)) for index in (900, 500, 100)]
    with torch.no_grad():
        expected = [network(x, t, one) for t in levels for one in (condition, other, Condition())]
        calls.clear()
        with network.precompute([900, 500, 100]):
            found = [network(x, t, one) for t in levels for one in (condition, other, Condition())]
            assert calls == [6, 3, 3]  # levels times different rows, for each of the conditions
            network(x, torch.tensor([7.0, 8.0]), condition)
            assert calls[3:] == [2]  # a level that was not named is computed as always
        network(x, levels[0], condition)
        assert calls[4:] == [2]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_packed_images_get_the_same_outputs_as_single_images():
    config = replace(SMALL, skips="long")
    network, alone = drawn(config), drawn(config)
    sizes = [(8, 8), (4, 6), (12, 4), (2, 2)]
    images = [torch.randn(4, *size) for size in sizes]
    t, vector = torch.tensor([3.0, 700.0, 30.0, 999.0]), torch.randn(4, 32)
    found, waste = network.packed(images, t, Condition(vector=vector), length=16)
    # 16, 12 and the rest of 6 + 1 tokens fill three rows of 16
    assert waste == pytest.approx(1 - (16 + 6 + 12 + 1) / 48)
    expected = [
        alone(image[None], t[n : n + 1], Condition(vector=vector[n : n + 1]))[0] for n, image in enumerate(images)
    ]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    sum(one.square().sum() for one in found).backward()  # type: ignore[union-attr]
    sum(one.square().sum() for one in expected).backward()  # type: ignore[union-attr]
    for got, want in zip(network.parameters(), alone.parameters(), strict=True):
        assert got.grad is not None
        assert want.grad is not None
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-4)
    with pytest.raises(RecipeError, match="only adaln and adaln-zero"):
        drawn(replace(SMALL, block_type="in-context")).packed(images, t)


def test_recomputing_changes_no_gradient():
    kept, again = drawn(), drawn(replace(SMALL, gradient_checkpointing=True))
    given = inputs()
    for network in (kept, again):
        network.train()(*given).square().sum().backward()
    for one, other in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_bfloat16_is_near():
    network = drawn()
    given = inputs()
    with torch.no_grad():
        exact = network(*given)
        with torch.autocast("cpu", torch.bfloat16):
            near = network(*given).float()
    assert (near - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.slow
def test_the_whole_network_is_one_graph():
    network = drawn()
    given = inputs()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), network(*given), rtol=0, atol=1e-5)


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 9}, "size 9: must be a multiple of the patch, 2; nearest 8 or 10"),
        ({"heads": 5}, "must be a multiple of the 5 heads"),
        ({"depth": 0}, "depth = 0: must be at least 1"),
        ({"block_type": "adaln-zeros"}, "nearest: 'adaln-zero'"),
        ({"embedders": "per-block", "block_type": "adaln"}, "only with block_type adaln-zero"),
    ],
)
def test_settings_that_cannot_work(changes: Mapping[str, Any], words: str):
    with pytest.raises(RecipeError, match=words):
        replace(SMALL, **changes)


def test_inputs_that_do_not_fit():
    network = drawn()
    x, t, condition = inputs()
    with pytest.raises(ShapeError, match=r"height 7 px: must be a multiple of 2; nearest 6 or 8"):
        network(x[:, :, :7], t, condition)
    with pytest.raises(ShapeError, match=r"x \(2, 3, 8, 8\): must be \(B, 4, H, W\)"):
        network(x[:, :3], t, condition)
    with pytest.raises(ShapeError, match=r"condition.vector \(2, 5\): must be \(2, 32\)"):
        network(x, t, Condition(vector=torch.zeros(2, 5)))
    with pytest.raises(ShapeError, match="in-context and cross-attention"):
        network(x, t, Condition(tokens=torch.zeros(2, 3, 32)))
    assert BlockConditioning().modulation == ()
