"""Spatial transformers in the U-Net: what they read, what is kept of a text, and what does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import Attention
from unveil.nn.layers import REMEMBERED, Memo
from unveil.nn.spatial_transformer import SpatialTransformer
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition

CONFIG = UNetConfig(
    in_channels=4,
    out_channels=4,
    model_channels=64,
    channel_mult=(1, 1),
    num_res_blocks=1,
    attention=(2,),
    heads=4,
    transformer_depth=(1,),
    cross_attention_dim=24,
)


def unet(config: UNetConfig = CONFIG) -> UNet:
    torch.manual_seed(0)
    network = UNet(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def inputs(rows: int = 2, words: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, 8, 8, generator=generator)
    return x, torch.full((rows,), 300.0), torch.randn(rows, words, 24, generator=generator)


class Calls:
    """How often keys of a context were computed."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        layers = [one for one in network.modules() if isinstance(one, Attention) and one.context_width is not None]
        assert layers
        for layer in layers:
            layer.key.register_forward_hook(self._seen)
        self.layers = len(layers)

    def _seen(self, *_: object) -> None:
        self.count += 1


@torch.no_grad()
def test_every_token_is_read_unless_the_mask_hides_it():
    network, (x, t, tokens) = unet(), inputs()
    plain = network(x, t, Condition(tokens=tokens))
    changed = tokens.clone()
    changed[:, 4] += 1
    assert not torch.allclose(network(x, t, Condition(tokens=changed)), plain)
    mask = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(network(x, t, Condition(tokens=tokens, mask=mask)), plain)
    mask[:, 4] = False
    hidden = network(x, t, Condition(tokens=changed, mask=mask))
    torch.testing.assert_close(hidden, network(x, t, Condition(tokens=tokens[:, :4])))
    mask[1] = torch.tensor([True, False, True, False, False])
    rows = network(x, t, Condition(tokens=tokens, mask=mask))
    torch.testing.assert_close(rows[:1], hidden[:1])
    torch.testing.assert_close(rows[1:], network(x[1:], t[1:], Condition(tokens=tokens[1:, [0, 2]])))


@torch.no_grad()
def test_keys_and_values_of_a_text_are_computed_once_in_a_run():
    network, (x, t, tokens) = unet(), inputs()
    want = [network(x, t + i, Condition(tokens=tokens)) for i in range(4)]
    calls = Calls(network)
    with network.precompute([]):
        got = [network(x, t + i, Condition(tokens=tokens, mask=None)) for i in range(4)]
        assert calls.count == calls.layers
        for mine, other in zip(got, want, strict=True):
            torch.testing.assert_close(mine, other)
        network(x, t, Condition(tokens=tokens))
        assert calls.count == calls.layers
    network(x, t, Condition(tokens=tokens))
    assert calls.count == 2 * calls.layers  # outside nothing is kept


@torch.no_grad()
def test_what_is_kept_is_of_this_text_and_of_its_values_now():
    network, (x, t, tokens) = unet(), inputs()
    other = tokens.flip(0).clone()
    want = network(x, t, Condition(tokens=other))
    with network.precompute([]):
        network(x, t, Condition(tokens=tokens))
        torch.testing.assert_close(network(x, t, Condition(tokens=other)), want)
        network(x[:1], t[:1], Condition(tokens=tokens[:1]))  # other rows are another text
        tokens.copy_(other)  # and one that was written to is another too
        torch.testing.assert_close(network(x, t, Condition(tokens=tokens)), want)


def test_keeping_a_text_leaves_the_gradient_of_x():
    network, (x, t, tokens) = unet(), inputs()
    x.requires_grad_()
    (want,) = torch.autograd.grad(network(x, t, Condition(tokens=tokens)).square().sum(), x)
    with network.precompute([]):
        for _ in range(2):
            (got,) = torch.autograd.grad(network(x, t, Condition(tokens=tokens)).square().sum(), x)
            torch.testing.assert_close(got, want)


def test_only_so_many_tensors_are_remembered_the_oldest_goes():
    known, made = Memo[int](), []
    tensors = [torch.zeros(1) for _ in range(REMEMBERED + 1)]

    def make() -> int:
        made.append(0)
        return len(made)

    assert [known.get(one, make) for one in tensors] == list(range(1, REMEMBERED + 2))
    assert known.get(tensors[1], make) == 2
    assert known.get(tensors[0], make) == REMEMBERED + 2


@torch.no_grad()
def test_without_a_text_the_image_attends_to_itself_again():
    torch.manual_seed(0)
    layer = SpatialTransformer(64, 4)
    nn.init.normal_(layer.leave.weight, std=0.1)
    x = torch.randn(2, 64, 4, 4)
    before = layer(x)
    nn.init.zeros_(layer.get_parameter("blocks.0.context.out.weight"))
    assert not torch.allclose(layer(x), before)
    network = unet(replace(CONFIG, cross_attention_dim=None))
    assert network(*inputs()[:2]).shape == (2, 4, 8, 8)


@torch.no_grad()
def test_both_projections_are_one_product():
    conv, linear = unet(), unet(replace(CONFIG, projection="linear"))
    shapes = {key: value.shape for key, value in linear.state_dict().items()}
    linear.load_state_dict({key: value.view(shapes[key]) for key, value in conv.state_dict().items()})
    x, t, tokens = inputs()
    torch.testing.assert_close(linear(x, t, Condition(tokens=tokens)), conv(x, t, Condition(tokens=tokens)))


def test_depth_is_counted_for_each_level_and_the_last_is_the_middles():
    config = replace(CONFIG, attention=(1, 2), transformer_depth=(0, 3))
    network = UNet(config)
    kinds = [type(network.get_submodule(f"down.{level}.attention.0")).__name__ for level in (0, 1)]
    assert kinds == ["SelfAttention", "SpatialTransformer"]
    deep = [network.get_submodule(f"{place}.attention.0.blocks") for place in ("down.1", "middle")]
    assert [len([*one.children()]) for one in deep] == [3, 3]


def test_gradient_reaches_every_parameter_and_the_text():
    network, (x, t, tokens) = unet(), inputs()
    tokens.requires_grad_()
    network(x, t, Condition(tokens=tokens)).square().sum().backward()
    without = [name for name, one in network.named_parameters() if one.grad is None or not one.grad.any()]
    assert not without
    assert tokens.grad is not None
    assert bool(tokens.grad.abs().sum((0, 2)).all())


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(tokens=torch.zeros(2, 5, 32)), "of width 32, this network reads width 24"),
        (Condition(), "condition.tokens: missing"),
        (Condition(tokens=torch.zeros(3, 5, 24)), "3 rows for 2 of x"),
        (Condition(tokens=torch.zeros(2, 5, 24), mask=torch.ones(2, 4, dtype=torch.bool)), r"must be \(2, 5\)"),
        (Condition(tokens=torch.zeros(2, 5, 24), control_image=torch.zeros(2, 3, 64, 64)), "condition.control_image"),
        (Condition(tokens=torch.zeros(2, 5, 24), residuals=(torch.zeros(1),) * 2), "2 tensors; this U-Net takes 5"),
        (Condition(tokens=torch.zeros(2, 5, 24), residuals=(torch.zeros(2, 64, 2, 2),)), "for the middle"),
    ],
)
def test_a_condition_that_does_not_fit_is_one_clear_error(condition: Condition, message: str):
    x, t, _ = inputs()
    with pytest.raises(ShapeError, match=message):
        unet()(x, t, condition)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_depth": ()}, "set transformer_depth"),
        ({"transformer_depth": (1, 2, 3)}, "or 2, one for each level|one for each of 2"),
        ({"projection": "convolution"}, "nearest: 'conv'"),
        ({"heads": 5}, "heads"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(RecipeError, match=message):
        UNet(replace(CONFIG, **changes))  # type: ignore[arg-type]


def test_routes_are_mapped_chosen_and_joined_and_residuals_are_not():
    one = Condition(tokens=torch.zeros(2, 1, 4), control_image=torch.zeros(2, 3, 8, 8))
    two = Condition(tokens=torch.ones(2, 1, 4), control_image=torch.ones(2, 3, 8, 8))
    chosen = one.where(torch.tensor([True, False]), two)
    assert chosen.control_image is not None
    assert chosen.control_image.sum((1, 2, 3)).tolist() == [0, 192]
    joined = one.join(two).control_image
    assert joined is not None
    assert joined.shape == (2, 6, 8, 8)
    black = one.join(Condition(control_image=torch.ones(2, 1, 1, 1))).control_image
    assert black is not None
    assert black[:, 3].eq(1).all()
    assert one.map(lambda part: part + 1).control_image is not None
    with pytest.raises(ShapeError, match="residuals"):
        Condition(residuals=(torch.zeros(1),)).map(lambda part: part)
    both = one.join(Condition(tokens=torch.ones(2, 2, 4), mask=torch.tensor([[True, False]] * 2)))
    assert both.mask is not None
    assert both.mask.tolist() == [[True, True, False]] * 2
