"""The transformer over videos: equal results of equivalent calls, attention patterns and errors."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.core.denoiser import Denoiser
from unveil.core.flow import RectifiedFlow
from unveil.core.prediction import flow
from unveil.core.process import partly
from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import Packing, scaled_dot_product_attention
from unveil.nn.attention_patterns import AttentionGroups, Pattern, TokenGrid, attention_mask
from unveil.nn.video_dit import MAX_LAYOUTS, VideoDiT, VideoDiTConfig
from unveil.types import Condition

PATTERNS: tuple[Pattern, ...] = ("full", "factorised", "windowed")
WINDOW = (2, 2, 2)
TEXT = 10


def network(pattern: Pattern = "full", causal: bool = False, **changes: object) -> VideoDiT:
    """With weights that are not the first ones, which draw nothing."""
    torch.manual_seed(0)
    settings: dict = {
        "patch": (1, 4, 4),
        "depth": 3,
        "hidden_size": 48,
        "heads": 4,
        "cross_attention_dim": TEXT,
        "pos_fourier_dim": 2,
    }
    settings |= changes
    made = VideoDiT(VideoDiTConfig(3, 3, attention_pattern=pattern, causal=causal, window=WINDOW, **settings))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def conditioning(count: int, seed: int = 1) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    mask = torch.ones(count, 7, dtype=torch.bool)
    mask[:, 5:] = False
    return Condition(vector=normal(count, 48), tokens=normal(count, 7, TEXT), mask=mask)


def of(condition: Condition, row: int) -> Condition:
    return condition.map(lambda route: route[row : row + 1])


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.detach().abs().max()))


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(2, 3, 5, 8, 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("causal", [False, True])
def test_groups_are_the_mask_of_their_pattern(pattern: Pattern, causal: bool):
    grid, generator = TokenGrid(3, 2, 4), torch.Generator().manual_seed(5)
    packing = Packing([grid.tokens] * 2, length=grid.tokens)
    query, key, value = (torch.randn(2, 4, grid.tokens, 12, generator=generator) for _ in range(3))
    for number in range(2):
        groups = AttentionGroups(packing, [grid] * 2, pattern, number, window=WINDOW, causal=causal)
        mask = attention_mask(grid, pattern, number, window=WINDOW, causal=causal)
        assert torch.equal(groups.mask, mask.expand(2, 1, -1, -1))
        close(groups.attend(query, key, value), scaled_dot_product_attention(query, key, value, mask=mask))


def test_what_the_patterns_show():
    grid = TokenGrid(2, 2, 2)
    of_frame, of_place = (attention_mask(grid, "factorised", number, window=WINDOW) for number in (0, 1))
    assert of_frame[0].tolist() == [True] * 4 + [False] * 4
    assert of_place[0].tolist() == [True, False, False, False] * 2
    boxes = attention_mask(TokenGrid(1, 1, 4), "windowed", 0, window=(1, 1, 2))
    moved = attention_mask(TokenGrid(1, 1, 4), "windowed", 1, window=(1, 1, 2))
    assert boxes[1].tolist() == [True, True, False, False]
    assert moved[1].tolist() == [False, True, True, False]
    later = attention_mask(grid, "full", 0, window=WINDOW, causal=True)
    assert later[0].tolist() == [True] * 4 + [False] * 4
    assert bool(later[4].all())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_equal_levels_per_part_equal_that_level(clips: Tensor, pattern: Pattern):
    model, t, condition = network(pattern), torch.tensor([100.0, 700.0]), conditioning(2)
    whole = model(clips, t, condition)
    for shape in ((1, 5, 1, 1), (1, 5, 8, 12)):
        close(model(clips, t.view(2, 1, 1, 1, 1).expand(2, *shape), condition), whole)


def test_a_level_reaches_its_own_token_first(clips: Tensor):
    model = network(depth=1)
    model.blocks[0].attention.out.weight.data.zero_()  # tokens do not see each other
    t = torch.full((2, 1, 5, 8, 12), 300.0)
    plain = model(clips, t, conditioning(2)).detach()
    t[:, :, 2, 4:, :4] = 0.0
    changed = (model(clips, t, conditioning(2)).detach() - plain).abs().amax((0, 1))  # (T, H, W)
    assert float(changed[2, 4:, :4].min()) > 0
    changed[2, 4:, :4] = 0
    assert float(changed.max()) == 0


def test_within_a_token_the_noisiest_level_counts(clips: Tensor):
    model, t = network(), torch.full((2, 1, 5, 8, 12), 300.0)
    whole = model(clips, t, conditioning(2))
    t[..., ::4, 1::4] = 0.0
    close(model(clips, t, conditioning(2)), whole)


def test_an_image_is_a_video_of_one_frame(clips: Tensor):
    model, t = network("factorised"), torch.tensor([100.0, 700.0])
    image = model(clips[:, :, 0], t, conditioning(2))
    assert image.shape == (2, 3, 8, 12)
    assert torch.equal(image, model(clips[:, :, :1], t, conditioning(2))[:, :, 0])
    each = t.view(2, 1, 1, 1).expand(2, 1, 8, 12)
    close(model(clips[:, :, 0], each, conditioning(2)), image)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [None, 40])
def test_packed_clips_get_what_they_get_alone_forward_and_back(clips: Tensor, pattern: Pattern, length: int | None):
    model, condition = network(pattern), conditioning(3)
    several = [clips[0], clips[1, :, :1], clips[1, :, 2, :4, :4]]  # a clip, one of one frame, an image
    t = [torch.linspace(0, 900, 5).view(1, 5, 1, 1), torch.tensor(9.0), torch.tensor(300.0)]
    found, waste = model.packed(several, t, condition, length=length)
    assert waste == pytest.approx(0 if length is None else 0.075)
    sum(one.square().mean() for one in found).backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for number, (clip, level) in enumerate(zip(several, t, strict=True)):
        alone = model(clip[None], level[None] if level.ndim else level.view(1), of(condition, number))
        close(alone[0], found[number])
        alone.square().mean().backward()
    for one, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-5 * max(1e-3, float(one.abs().max())))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_was_laid_out_before_a_run_serves_training_and_other_sizes(clips: Tensor, pattern: Pattern):
    model, t, condition = network(pattern), torch.tensor([100.0, 700.0]), conditioning(2)
    with torch.inference_mode():
        before = model(clips, t, condition), model.packed(clips, t, condition)[0]  # a batch is a list of clips, too
    for side in range(4, 4 * (MAX_LAYOUTS + 3), 4):  # more sizes than are remembered
        model(clips.new_zeros(2, 3, 1, 4, side), t, condition)
    for _ in range(2):
        close(model(clips, t, condition), before[0])
        found = model.packed(clips, t, condition)[0]
        for one, two in zip(found, before[1], strict=True):
            close(one, two)
    found[0].sum().backward()


def test_queries_and_keys_of_lower_precision_are_normalised_in_theirs(clips: Tensor):
    model, t = network(), torch.tensor([100.0, 700.0])
    exact = model(clips, t, conditioning(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.autocast("cpu", torch.bfloat16):
            found = model(clips, t, conditioning(2))
    assert float((found - exact).detach().abs().max()) < 0.05 * float(exact.detach().abs().max())


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_causal_frame_sees_no_later_one(clips: Tensor, pattern: Pattern):
    model, t = network(pattern, causal=True), torch.tensor([100.0, 700.0])
    before = model(clips, t, conditioning(2))
    clips[:, :, 3:] += 1
    after = model(clips, t, conditioning(2))
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert bool((before != after)[:, :, 3:].all())


def test_only_distances_of_places_count(clips: Tensor):
    model, t = network(pos_fourier_dim=0), torch.tensor([100.0, 700.0])
    at = lambda first, step: Condition(  # noqa: E731
        conditioning(2).vector,
        conditioning(2).tokens,
        conditioning(2).mask,
        positions=torch.tensor([[first, step]] * 2, dtype=torch.float64),
    )
    plain = model(clips, t, conditioning(2)).detach()
    close(model(clips, t, at((0, 0, 0), (1, 1, 1))), plain)
    close(model(clips, t, at((-7, 3, 2.5), (1, 1, 1))), plain)
    assert not torch.allclose(model(clips, t, at((0, 0, 0), (0.5, 1, 1))), plain, atol=1e-3)


def test_waves_tell_where_in_the_frame_and_how_long_after_the_start(clips: Tensor):
    t, even = torch.tensor([100.0, 700.0]), torch.ones(2, 3, 5, 8, 12)
    blind, model = network(pos_fourier_dim=0), network()
    same = blind(even, t, conditioning(2))[:, :, 0, :4, :4]
    for other in (model(even, t, conditioning(2))[:, :, 0, 4:, :4], model(even, t, conditioning(2))[:, :, 1, :4, :4]):
        assert not torch.allclose(model(even, t, conditioning(2))[:, :, 0, :4, :4], other, atol=1e-4)
    close(same, blind(even, t, conditioning(2))[:, :, 4, 4:, 8:])  # what is even everywhere looks alike from everywhere
    later = replace(conditioning(2), positions=torch.tensor([[[3.0, 0, 0], [1, 1, 1]]]).expand(2, 2, 3))
    assert not torch.allclose(model(clips, t, later), model(clips, t, conditioning(2)), atol=1e-4)


def test_the_text_is_read_and_what_does_not_count_is_not(clips: Tensor):
    model, t, condition = network(), torch.tensor([100.0, 700.0]), conditioning(2)
    plain = model(clips, t, condition)
    assert condition.tokens is not None
    condition.tokens[:, 5:] += 1  # masked
    assert torch.equal(model(clips, t, condition), plain)
    condition.tokens[:, 4] += 1
    assert not torch.equal(model(clips, t, condition), plain)


def test_it_begins_by_drawing_nothing(clips: Tensor):
    torch.manual_seed(0)
    fresh = VideoDiT(VideoDiTConfig(3, 3, (1, 4, 4), depth=2, hidden_size=48, heads=4))
    assert not fresh(clips, torch.tensor([1.0, 2.0])).any()


def test_blocks_computed_again_give_the_same_gradients(clips: Tensor):
    grads = []
    for recompute in (False, True):
        model = network(gradient_checkpointing=recompute).train()
        model(clips, torch.tensor([100.0, 700.0]), conditioning(2)).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


def test_a_denoiser_tells_it_the_level_of_each_frame(clips: Tensor):
    model = network()
    denoiser = Denoiser(model, RectifiedFlow(), prediction=flow)
    known = torch.tensor([False, True, True, True, True]).view(1, 1, 5, 1, 1)  # the first frame is given
    level = partly(denoiser.process.at(torch.tensor([0.5, 0.7], dtype=torch.float64)), known)
    estimate = denoiser(clips, level, conditioning(2))
    assert torch.equal(estimate.x0[:, :, 0], clips[:, :, 0])  # at the level of data x is x0
    index = denoiser.timestep(level, clips)
    assert index[:, 0, 0, 0, 0].tolist() == [0, 0]
    assert index[0, 0, 1, 0, 0] == denoiser.timestep(denoiser.process.at(0.5), clips)[0]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda x: network()(x[:, :2], torch.zeros(2)), r"must be clips \(B, 3, T, H, W\), or images"),
        (lambda x: network()(x[..., :10], torch.zeros(2)), "width 10: must be a multiple of 4; nearest 8 or 12"),
        (lambda x: network(patch=(2, 4, 4))(x, torch.zeros(2)), "frames 5: must be a multiple of 2; nearest 4 or 6"),
        (lambda x: network()(x, torch.zeros(2, 5)), r"t \(2, 5\): must be \(2,\), or broadcastable to x"),
        (lambda x: network()(x, torch.zeros(2)), "condition.tokens: missing"),
        (
            lambda x: network(cross_attention_dim=None)(x, torch.zeros(2), Condition(torch.zeros(2, 3))),
            r"must be \(2, 48\)",
        ),
    ],
)
def test_mismatched_shapes_are_reported(clips: Tensor, ask, message: str):
    with pytest.raises(ShapeError, match=message):
        ask(clips)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_pattern": "ful"}, "attention_pattern = 'ful'.*nearest: 'full'"),
        ({"patch": (1, 2)}, "patch = .1, 2.: needs frames, height and width"),
        ({"hidden_size": 16, "heads": 4}, "at least 6 wide"),
        ({"depth": 0}, "depth = 0: must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        VideoDiTConfig(3, 3, **changes)
