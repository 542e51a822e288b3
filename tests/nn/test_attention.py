"""Attention against torch's own, grouped heads, masks, rotations, caches, packing, maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import Attention, KVCache, Packing, attention_weights, scaled_dot_product_attention
from unveil.nn.embeddings import Rotary

WIDTH, HEADS = 24, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(**settings: object) -> Attention:
    torch.manual_seed(1)
    return Attention(WIDTH, HEADS, **settings)  # type: ignore[arg-type]


def reference(context_width: int | None = None) -> tuple[Attention, nn.MultiheadAttention]:
    """Our layer and torch's with the same weights."""
    ours = layer(context_width=context_width)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=context_width, vdim=context_width)
    state = {"out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias}
    if context_width is None:
        state |= {"in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias}
    else:
        parts = {"q": ours.query, "k": ours.key, "v": ours.value}
        state |= {f"{name}_proj_weight": part.weight for name, part in parts.items()}
        state["in_proj_bias"] = torch.cat([part.bias for part in parts.values()])
    theirs.load_state_dict(state)
    return ours, theirs


def test_self_attention_is_torchs():
    ours, theirs = reference()
    x = drawn(2, 7, WIDTH)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-5)
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    assert torch.allclose(ours(x, causal=True), theirs(x, x, x, attn_mask=hidden)[0], atol=1e-5)


def test_cross_attention_and_its_maps_are_torchs():
    ours, theirs = reference(10)
    x, context = drawn(2, 5, WIDTH), drawn(2, 9, 10, seed=1)
    padding = torch.arange(9)[None] >= torch.tensor([[4], [9]])
    maps: list[Tensor] = []
    found = ours(x, context=context, mask=~padding[:, None, None], maps=maps)
    wanted, weights = theirs(x, context, context, key_padding_mask=padding, average_attn_weights=False)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(maps[0], weights, atol=1e-6)
    assert torch.allclose(ours(x, context=context, mask=~padding[:, None, None]), found, atol=1e-6)


def test_maps_sum_to_one_and_change_nothing():
    ours, x = layer(kv_heads=2, qk_norm="rms"), drawn(2, 6, WIDTH)
    maps: list[Tensor] = []
    assert torch.allclose(ours(x, causal=True, maps=maps), ours(x, causal=True), atol=1e-6)
    assert maps[0].shape == (2, HEADS, 6, 6)
    assert torch.allclose(maps[0].sum(-1), torch.ones(2, HEADS, 6), atol=1e-6)
    assert not maps[0].triu(1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_heads_are_repeated_ones(dtype: torch.dtype):
    query, key, value = drawn(2, 6, 5, 8).to(dtype), drawn(2, 2, 7, 8, seed=1).to(dtype), drawn(2, 2, 7, 8, seed=2)
    value = value.to(dtype)
    repeated = [x.repeat_interleave(3, dim=1) for x in (key, value)]
    assert torch.equal(scaled_dot_product_attention(query, key, value), scaled_dot_product_attention(query, *repeated))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_causal_block_continues_what_was_there(dtype: torch.dtype):
    query, key, value = (drawn(1, 2, 6, 8, seed=i).to(dtype) for i in range(3))
    whole = scaled_dot_product_attention(query, key, value, causal=True)
    last = scaled_dot_product_attention(query[:, :, 4:], key, value, causal=True)
    assert torch.allclose(whole[:, :, 4:].float(), last.float(), atol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_may_see_nothing_gathers_nothing(dtype: torch.dtype):
    query, key, value = (drawn(1, 2, 3, 4, seed=i).to(dtype).requires_grad_() for i in range(3))
    mask = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    found = scaled_dot_product_attention(query, key, value, mask=mask)
    found.float().sum().backward()
    assert not found[:, :, 1].any()
    assert query.grad is not None
    assert query.grad.isfinite().all()
    weights = attention_weights(query, key, mask=mask).sum(-1).float()
    assert torch.allclose(weights, torch.tensor([1.0, 0.0, 1.0]).expand(1, 2, 3), atol=1e-2)


@pytest.mark.parametrize("part", [40, 200, 2**19], ids=["some queries", "some heads", "all at once"])
@pytest.mark.parametrize("hidden", ["nothing", "later", "some"])
def test_parts_without_gradients_are_the_whole(part: int, hidden: str, monkeypatch: pytest.MonkeyPatch):
    """In bf16 on the CPU; with gradients, and in float32, nothing is computed in parts."""
    monkeypatch.setattr("unveil.nn.attention.PART", part)
    query, key, value = drawn(2, 4, 9, 8), drawn(2, 2, 11, 8, seed=1), drawn(2, 2, 11, 8, seed=2)
    mask = drawn(2, 1, 9, 11, seed=3) > 0 if hidden == "some" else None
    wanted = scaled_dot_product_attention(query, key, value, mask=mask, causal=hidden == "later")
    low = [x.bfloat16() for x in (query, key, value)]
    found = scaled_dot_product_attention(*low, mask=mask, causal=hidden == "later")
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), wanted, atol=0.03)
    kept = scaled_dot_product_attention(low[0].requires_grad_(), *low[1:], mask=mask, causal=hidden == "later")
    assert torch.allclose(found.float(), kept.detach().float(), atol=0.02)


def test_cached_steps_are_one_masked_pass():
    ours, x = layer(kv_heads=2, qk_norm="layer").eval(), drawn(3, 9, WIDTH)
    places = torch.arange(9.0)[:, None]
    whole = ours(x, causal=True, rotary=Rotary(places, 6))
    cache = KVCache()
    with torch.no_grad():
        steps = [ours(x[:, a:b], causal=True, rotary=Rotary(places[a:b], 6), cache=cache) for a, b in STEPS]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-5)
    assert cache.length == 9


STEPS = [(0, 3), (3, 4), (4, 5), (5, 9)]


def test_a_cache_follows_its_rows():
    ours, x = layer().eval(), drawn(2, 4, WIDTH)
    cache, rows = KVCache(), torch.tensor([1, 1, 0])
    with torch.no_grad():
        ours(x[:, :3], causal=True, cache=cache)
        cache.select(rows)
        last = ours(x[rows, 3:], causal=True, cache=cache)
    assert torch.allclose(last, ours(x[rows], causal=True)[:, 3:], atol=1e-5)


def test_a_cache_refuses_gradients_and_other_rows():
    ours, cache = layer(), KVCache()
    with pytest.raises(ShapeError, match="no_grad"):
        ours(drawn(2, 4, WIDTH), cache=cache)
    with torch.no_grad():
        ours(drawn(2, 4, WIDTH), cache=cache)
        with pytest.raises(ShapeError, match="3 rows given, the cache holds 2"):
            ours(drawn(3, 4, WIDTH), cache=cache)


def test_a_contexts_keys_are_computed_once():
    ours, x, context = layer(context_width=10), drawn(2, 5, WIDTH), drawn(2, 9, 10)
    wanted = ours(x, context=context)
    cache = ours.precompute_context(context)
    seen: list[int] = []
    ours.key.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(ours(x, cache=cache), wanted)
    assert torch.equal(ours(x, context=context, cache=cache), wanted)
    assert not seen
    filled = KVCache()
    assert torch.equal(ours(x, context=context, cache=filled), wanted)
    assert torch.equal(ours(x, cache=filled), wanted)
    assert len(seen) == 1


@pytest.mark.parametrize("pairs", ["neighbours", "halves"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotations_leave_distances(axes: int, pairs: str):
    query, key = drawn(1, 2, 5, 20), drawn(1, 2, 5, 20, seed=1)
    places = drawn(5, axes, seed=2) * 10
    moved = places + drawn(axes, seed=3) * 7

    def products(at: Tensor) -> Tensor:
        rotary = Rotary(at, 20, pairs=pairs)  # type: ignore[arg-type]
        return rotary.apply(query) @ rotary.apply(key).transpose(2, 3)

    assert torch.allclose(products(places), products(moved), atol=1e-4)
    assert not torch.allclose(products(places), products(places * 1.5), atol=1e-1)
    assert torch.allclose(Rotary(places, 20).apply(query).norm(dim=-1), query.norm(dim=-1), atol=1e-5)


def test_rotations_by_the_formula():
    x = drawn(1, 1, 3, 6)
    places = torch.tensor([[0.0], [0.5], [2.0]])
    found = Rotary(places, 6, split=[4]).apply(x)
    speeds = torch.tensor([1.0, 0.01])  # 10000^(-2i/4)
    as_complex = torch.view_as_complex(x[..., :4].reshape(1, 1, 3, 2, 2).contiguous())
    turned = torch.view_as_real(as_complex * torch.exp(1j * places * speeds)).flatten(-2)
    assert torch.allclose(found[..., :4], turned, atol=1e-6)
    assert torch.equal(found[..., 4:], x[..., 4:])
    halves = Rotary(places, 4, pairs="halves").apply(x[..., [0, 2, 1, 3]])
    assert torch.allclose(halves[..., [0, 2, 1, 3]], turned, atol=1e-6)
    each_row = Rotary(torch.stack([places, places + 1]), 6).apply(x.expand(2, 1, 3, 6))
    assert torch.allclose(each_row[1:], Rotary(places + 1, 6).apply(x), atol=1e-6)


LENGTHS = [4, 9, 2, 6]


@pytest.mark.parametrize("length", [None, 11, 16])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_are_what_they_are_alone(length: int | None, causal: bool):
    ours = layer(kv_heads=2)
    packing = Packing(LENGTHS, length=length)
    alone = [drawn(n, WIDTH, seed=n).requires_grad_() for n in LENGTHS]
    together = [x.detach().clone().requires_grad_() for x in alone]
    wanted = [ours(x[None], causal=causal, rotary=Rotary(torch.arange(len(x))[:, None], 6))[0] for x in alone]
    places = packing.pack([torch.arange(n)[:, None] for n in LENGTHS])
    found = packing.unpack(ours(packing.pack(together), causal=causal, rotary=Rotary(places, 6), packing=packing))
    grads = []
    for outputs in (wanted, found):
        ours.zero_grad()
        sum((x * drawn(*x.shape, seed=7)).sum() for x in outputs).backward()  # type: ignore[union-attr]
        grads.append([p.grad for p in ours.parameters()])
    for got, want in zip(found, wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-5)
    for got, want in zip(together, alone, strict=True):
        assert got.grad is not None
        assert want.grad is not None
        assert torch.allclose(got.grad, want.grad, atol=1e-5)
    for got, want in zip(*grads, strict=True):
        assert got is not None
        assert want is not None
        assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # the CPU takes torch's slow way
def test_the_way_of_other_devices_agrees():
    packing = Packing(LENGTHS, length=11)
    rows = [drawn(*packing.shape, 2, 8, seed=i).transpose(1, 2) for i in range(3)]
    tokens = [packing._tokens(x.transpose(1, 2)) for x in rows]
    jagged = packing._rows(packing._jagged(tokens, False)).transpose(1, 2)
    assert torch.allclose(jagged, packing.attend(*rows), atol=1e-5)


def test_packing_is_a_mask_of_blocks():
    packing = Packing(LENGTHS, length=11)
    rows = [drawn(*packing.shape, 2, 8, seed=i).transpose(1, 2) for i in range(3)]
    assert torch.allclose(scaled_dot_product_attention(*rows, mask=packing.mask), packing.attend(*rows), atol=1e-5)
    ours, x, maps = layer(), packing.pack([drawn(n, WIDTH, seed=n) for n in LENGTHS]), []
    assert torch.allclose(ours(x, packing=packing, maps=maps), ours(x, packing=packing), atol=1e-5)


def test_packing_fills_rows_and_tells_its_waste():
    packing = Packing(LENGTHS, length=11)
    assert packing.shape == (2, 11)  # 9 + 2, then 6 + 4
    assert packing.waste == pytest.approx(1 / 22)
    assert packing.places == ((1, 6), (0, 0), (0, 9), (1, 0))
    assert packing.segments.tolist() == [[1] * 9 + [2] * 2, [3] * 6 + [0] * 4 + [-1]]
    assert packing.per_token(torch.tensor([10, 20, 30, 40]))[1].tolist() == [40] * 6 + [10] * 4 + [0]
    assert Packing(LENGTHS).waste == 0
    assert Packing(LENGTHS).segments[0, :5].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("length", [None, 11])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", ["_sequence_by_sequence", "_padded"])
def test_packed_sequences_read_each_its_own_context(
    length: int | None, masked: bool, way: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Packing, "_sequence_by_sequence", getattr(Packing, way))
    ours, packing = layer(context_width=10, kv_heads=2), Packing(LENGTHS, length=length)
    alone = [drawn(n, WIDTH, seed=n).requires_grad_() for n in LENGTHS]
    together = [x.detach().clone().requires_grad_() for x in alone]
    context = drawn(len(LENGTHS), 5, 10)
    mask = torch.arange(5) < torch.tensor([5, 2, 1, 3])[:, None] if masked else None
    seen = [None] * len(LENGTHS) if mask is None else list(mask[:, None, None].split(1))
    wanted = [ours(x[None], context=context[row : row + 1], mask=seen[row])[0] for row, x in enumerate(alone)]
    found = packing.unpack(ours(packing.pack(together), context=context, mask=mask, packing=packing))
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    torch.cat(found).square().sum().backward()
    torch.cat(wanted).square().sum().backward()
    for one, two in zip(together, alone, strict=True):
        assert torch.allclose(one.grad, two.grad, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Attention(10, 4), "width 10, 4 heads"),
        (lambda: Attention(12, 4, kv_heads=3), "3 of keys"),
        (lambda: Attention(12, 4, qk_norm="rsm"), "nearest: 'rms'"),
        (lambda: Rotary(torch.zeros(3, 2), 8, split=[3, 4]), "even part"),
        (lambda: Rotary(torch.zeros(3, 2), 8, split=[6, 4]), "at most the head's 8"),
    ],
)
def test_settings_that_cannot_work(build, message: str):
    with pytest.raises(RecipeError, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: layer()(x[..., :20]), r"must be \(B, N, 24\)"),
        (lambda x: layer()(x, context=x), "build it with context_width"),
        (lambda x: layer(context_width=10)(x), "context: missing"),
        (lambda x: layer(context_width=10)(x, context=x), r"must be \(B, M, 10\)"),
        (lambda x: layer()(x, mask=torch.zeros(5, 5)), "must be boolean"),
        (lambda x: layer()(x, packing=Packing([2, 4])), r"this packing is of \(1, 6\)"),
        (lambda x: Packing([2, 4]).pack([x[0], x[1]]), r"packed for \[2, 4\]"),
        (lambda x: Packing([3, 12], length=11), "each needs 1 to 11"),
        (lambda x: Packing([]), "each needs"),
        (lambda x: Rotary(torch.zeros(3, 4), 8), "1 to 3 axes"),
        (
            lambda x: scaled_dot_product_attention(x[None], x[None, :1].expand(1, 3, 5, 24), x[None]),
            "3 heads of keys for 2",
        ),
    ],
)
def test_tensors_that_do_not_fit(call, message: str):
    with pytest.raises(ShapeError, match=message):
        call(drawn(2, 5, WIDTH))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_normed_queries_and_keys_have_no_length(kind: str):
    x, context = drawn(2, 6, WIDTH), drawn(2, 5, 10)
    for ours, given in ((layer(qk_norm=kind), None), (layer(qk_norm=kind, context_width=10), context)):
        wanted = ours(x, context=given)
        with torch.no_grad():
            for part in [ours.qkv] if ours.fused else [ours.query, ours.key]:
                rows = slice(0, 2 * WIDTH if ours.fused else WIDTH)
                part.weight[rows] *= 50
                part.bias[rows] *= 50
        assert torch.allclose(ours(x, context=given), wanted, atol=1e-4)
