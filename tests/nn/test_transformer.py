"""The transformer against torch's own, and what it promises: causality, caches, contexts, sizes, losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import Packing
from unveil.nn.transformer import (
    AttentionMaps,
    BlockConfig,
    EncoderStates,
    Transformer,
    TransformerBlock,
    TransformerConfig,
    TransformerDecoder,
    TransformerStack,
    token_loss,
)

SMALL = TransformerConfig(
    source=11, target=13, hidden_size=16, heads=2, intermediate_size=32, depth=2, dropout=0.0, max_length=20
)
NAMES = {"own": "self_attn", "context": "multihead_attn", "up": "linear1", "down": "linear2"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(rows: int, length: int, vocabulary: int = 11, seed: int = 0) -> Tensor:
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def small(**changes: object) -> Transformer:
    torch.manual_seed(3)
    return Transformer(TransformerConfig(**(vars(SMALL) | changes))).eval()


def fill(ours: TransformerBlock, theirs: nn.Module, norms: dict[str, str]) -> None:
    """Gives torch's layer our weights."""
    state = {}
    for name, their_name in norms.items():
        for end in ("weight", "bias"):
            state[f"{their_name}.{end}"] = getattr(getattr(ours, name), end)
    for end in ("weight", "bias"):
        state |= {f"linear1.{end}": getattr(ours.mlp.up, end), f"linear2.{end}": getattr(ours.mlp.down, end)}
        state[f"self_attn.in_proj_{end}"] = getattr(ours.own.qkv, end)
        state[f"self_attn.out_proj.{end}"] = getattr(ours.own.out, end)
        if ours.context is not None:
            parts = [getattr(part, end) for part in (ours.context.query, ours.context.key, ours.context.value)]
            state[f"multihead_attn.in_proj_{end}"] = torch.cat(parts)
            state[f"multihead_attn.out_proj.{end}"] = getattr(ours.context.out, end)
    theirs.load_state_dict(state)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_blocks_are_torchs(norm: str, activation: str):
    config = BlockConfig(16, 2, 32, norm=norm, activation=activation)  # type: ignore[arg-type]
    settings = {"dropout": 0.0, "activation": activation, "batch_first": True, "norm_first": norm == "pre"}
    torch.manual_seed(0)
    ours, theirs = TransformerBlock(config), nn.TransformerEncoderLayer(16, 2, 32, **settings)  # type: ignore[arg-type]
    fill(ours, theirs, {"own_norm": "norm1", "mlp_norm": "norm2"})
    x, context = drawn(2, 5, 16), drawn(2, 7, 16, seed=1)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    ours, theirs = TransformerBlock(config, context_width=16), nn.TransformerDecoderLayer(16, 2, 32, **settings)  # type: ignore[arg-type]
    fill(ours, theirs, {"own_norm": "norm1", "context_norm": "norm2", "mlp_norm": "norm3"})
    counts = torch.arange(7)[None] < torch.tensor([[3], [7]])
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    wanted = theirs(x, context, tgt_mask=hidden, memory_key_padding_mask=~counts)
    found = ours(x, context=EncoderStates(context, counts), causal=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_the_base_model_is_of_the_published_size():
    with torch.device("meta"):
        ours = Transformer(TransformerConfig(source=37000, target=37000, tie="all"))
        theirs = nn.Transformer(batch_first=True)
    count = sum(p.numel() for p in ours.parameters())
    # torch's has two last normalisations, which the paper's post-norm model lacks
    assert count == sum(p.numel() for p in theirs.parameters()) - 4 * 512 + 37000 * 512
    assert 63e6 < count < 66e6  # "65M"


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_one_masked_pass_is_what_a_cache_says_step_by_step(norm: str):
    model = small(norm=norm)
    source, target = tokens(3, 7), tokens(3, 9, 13, seed=1)
    mask = torch.arange(7)[None] < torch.tensor([[7], [4], [1]])
    whole = model(source, target, mask=mask)
    with torch.no_grad():
        reading = model.start(source, mask)
        steps = [reading.next(target[:, :2]), *(reading.next(target[:, i : i + 1]) for i in range(2, 9))]
    torch.testing.assert_close(torch.stack(steps, 1), whole[:, 1:], rtol=0, atol=1e-5)


def test_cached_decoding_continues_with_the_selected_rows():
    model, rows = small(), torch.tensor([1, 1, 0])
    source, target = tokens(2, 7), tokens(2, 4, 13, seed=1)
    mask = torch.arange(7)[None] < torch.tensor([[7], [4]])
    with torch.no_grad():
        reading = model.start(source, mask)
        reading.next(target[:, :3])
        reading.select(rows)
        found = reading.next(target[rows, 3:])
    torch.testing.assert_close(found, model(source[rows], target[rows], mask=mask[rows])[:, -1], rtol=0, atol=1e-5)


def test_a_later_token_changes_no_earlier_logit():
    model, source, target = small(), tokens(2, 6), tokens(2, 8, 13)
    changed = target.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 13
    before, after = model(source, target), model(source, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_padding_of_the_source_is_not_seen():
    model, source, target = small(), tokens(1, 4), tokens(1, 5, 13)
    padded = torch.cat([source, torch.full((1, 3), 9)], 1)
    mask = torch.arange(7)[None] < 4
    torch.testing.assert_close(model(padded, target, mask=mask), model(source, target), rtol=0, atol=1e-5)


def test_a_decoder_without_context_and_packed_sequences():
    torch.manual_seed(0)
    decoder = TransformerDecoder(9, 2, BlockConfig(16, 4, 32, kv_heads=2, qk_norm="rms"), limit=12)
    found = decoder.logits(decoder(tokens(2, 12, 9)))
    assert found.shape == (2, 12, 9)
    found.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
    packing = Packing([3, 5])
    alone = [drawn(n, 16) for n in packing.lengths]
    together = packing.unpack(decoder.stack(packing.pack(alone), packing=packing, causal=True))
    for got, one in zip(together, alone, strict=True):
        torch.testing.assert_close(got, decoder.stack(one[None], causal=True)[0], rtol=0, atol=1e-5)


def test_maps_of_every_head_sum_to_one():
    model, source, target = small(), tokens(2, 6), tokens(2, 4, 13)
    read: list[AttentionMaps] = []
    written: list[AttentionMaps] = []
    with torch.no_grad():
        context = model.encode(source, None, read)
        model.decoder(target, context=context, maps=written)
    assert [one.self_attention[0].shape for one in read] == [(2, 2, 6, 6)] * 2
    assert [one.context[0].shape for one in written] == [(2, 2, 4, 6)] * 2
    for one in [*read, *written]:
        for weights in [*one.self_attention, *one.context]:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize(("tie", "tables"), [("none", 3), ("output", 2), ("all", 1)])
def test_tied_tables_are_one(tie: str, tables: int):
    model = small(source=13, tie=tie)
    shapes = [tuple(p.shape) for p in model.state_dict().values()]
    assert shapes.count((13, 16)) == tables
    loss = token_loss(model(tokens(2, 4), tokens(2, 5)), tokens(2, 5, seed=1))
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.ndim > 1)


def test_the_loss_is_its_formula():
    logits, targets = drawn(2, 3, 5), torch.tensor([[1, 4, 0], [2, 0, 0]])
    logp = logits.log_softmax(-1)
    wanted = torch.full((2, 3, 5), 0.1 / 5)
    wanted.scatter_add_(2, targets[..., None], torch.full((2, 3, 1), 0.9))
    by_hand = -(wanted * logp).sum(-1)
    torch.testing.assert_close(token_loss(logits, targets, smoothing=0.1), by_hand.mean())
    torch.testing.assert_close(token_loss(logits, targets, smoothing=0.1, padding=0), by_hand[targets != 0].mean())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(tie="al"), "nearest: 'all'"),
        (lambda: small(tie="all"), "vocabularies of 11 and 13 words must be one"),
        (lambda: small(hidden_size=15), "hidden_size 15"),
        (lambda: small(norm="past"), "nearest: 'post'"),
        (lambda: small(dropout=1.0), "dropout 1.0"),
        (lambda: TransformerStack(0, SMALL.block), "at least 1 block"),
        (lambda: BlockConfig(8, 2, 8, activation="rel"), "nearest: 'relu'"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_work(build, message: str):
    with pytest.raises(RecipeError, match=message):
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(tokens(1, 21), tokens(1, 3)), "a sequence of 21 tokens: this model reads at most 20"),
        (lambda m: m(tokens(1, 3) + 11, tokens(1, 3)), "must be 0 to 10"),
        (lambda m: m(tokens(1, 3).float(), tokens(1, 3)), "whole numbers"),
        (lambda m: m.decoder(tokens(1, 3)), "must be given to a block"),
        (lambda m: token_loss(drawn(2, 3, 5), tokens(2, 4)), "those and V"),
    ],
)
def test_sequences_that_do_not_fit(call, message: str):
    with pytest.raises(ShapeError, match=message):
        call(small())


def test_a_cached_sequence_may_not_pass_the_limit():
    reading = small().start(tokens(1, 3))
    with torch.no_grad():
        reading.next(tokens(1, 20))
        with pytest.raises(ShapeError, match="a sequence of 21 tokens"):
            reading.next(tokens(1, 1))
