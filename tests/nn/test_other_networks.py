"""The denoisers of masks and of boxes: they start at zero, use all they have, and look at the image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.nn.box_denoiser import BoxDenoiser, BoxesConfig, regions_of
from unveil.nn.unet2015 import UNet2015, UNet2015Config
from unveil.types import Condition

MASKS = UNet2015Config(in_channels=2, out_channels=4, concat_channels=3, widths=(8, 16, 24), groups=4)
BOXES = BoxesConfig(slots=5, concat_channels=3, hidden_size=16, depth=2, heads=2, samples=2)


def drawn(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return network


def given(kind: str) -> tuple[nn.Module, Tensor, Tensor, Condition, tuple[int, ...]]:
    """A network, its inputs, and the shape of its result."""
    torch.manual_seed(1)
    t, image = torch.tensor([3.0, 700.0]), torch.randn(2, 3, 16, 24)
    if kind == "masks":
        condition = Condition(vector=torch.randn(2, MASKS.vector_dim), concat=image)
        return UNet2015(MASKS), torch.randn(2, 2, 16, 24), t, condition, (2, 4, 16, 24)
    condition = Condition(vector=torch.randn(2, BOXES.vector_dim), concat=image)
    return BoxDenoiser(BOXES), torch.randn(2, 5, 5), t, condition, (2, 5, 5)


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_a_new_network_gives_zero(kind):
    network, x, t, condition, shape = given(kind)
    result = network(x, t, condition)
    assert result.shape == shape
    assert (result == 0).all()


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_gradient_reaches_every_parameter_and_every_input(kind):
    network, x, t, condition, _ = given(kind)
    parts = condition.map(lambda tensor: tensor.requires_grad_())
    drawn(network)(x.requires_grad_(), t, parts).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    for tensor in (x, parts.vector, parts.concat):
        assert tensor is not None
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_samples_of_a_batch_do_not_touch_each_other(kind):
    network, x, t, condition, _ = given(kind)
    with torch.no_grad():
        whole = drawn(network)(x, t, condition)
        alone = network(x[1:], t[1:], condition.map(lambda tensor: tensor[1:]))
    torch.testing.assert_close(whole[1:], alone, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


def test_a_box_reads_what_lies_inside_it():
    # A map whose two channels hold x and y from -1 to 1: bilinear samples inside give the points themselves.
    ticks = (2 * torch.arange(32) + 1) / 32 - 1
    features = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"))[None]  # (1, 2, H, W)
    # centre (0.25, -0.5), a quarter of the image wide, half of it high
    box = torch.tensor([[[0.25, -0.5, 2 * 0.25 - 1, 2 * 0.5 - 1, 1.0]]])
    points = regions_of(box, features, samples=2).view(4, 2)
    want = torch.tensor([[0.125, -0.75], [0.375, -0.75], [0.125, -0.25], [0.375, -0.25]])
    torch.testing.assert_close(points, want)


def test_noisy_boxes_far_outside_are_read_at_the_border_and_stay_finite():
    network = drawn(BoxDenoiser(BOXES))
    x = torch.full((1, 5, 5), 1e3)
    assert torch.isfinite(network(x, torch.zeros(1), Condition(concat=torch.randn(1, 3, 16, 16)))).all()
    features = torch.randn(1, 4, 8, 8)
    assert torch.equal(regions_of(x, features, 3), regions_of(x.clamp(-1, 1), features, 3))


def test_the_image_is_encoded_once_for_many_steps():
    network, x, t, condition, _ = given("boxes")
    assert isinstance(network, BoxDenoiser)
    assert condition.concat is not None
    drawn(network)
    with torch.no_grad():
        features = network.features(condition.concat)
        time = network.time(t) + condition.vector
        torch.testing.assert_close(network.move(x, time, features), network(x, t, condition))


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match=r"widths \(8, 12\): at least one, each a multiple of the 8 groups"):
        UNet2015Config(1, 1, widths=(8, 12))
    with pytest.raises(RecipeError, match="hidden_size = 20: must be a multiple of heads = 3"):
        BoxesConfig(slots=2, concat_channels=3, hidden_size=20, heads=3)
    network, x, t, condition, _ = given("masks")
    with pytest.raises(ShapeError, match=r"condition.concat: 0 given, the network takes 3"):
        network(x, t)
    with pytest.raises(ShapeError, match=r"height 14 px: must be a multiple of 4; nearest 12 or 16"):
        network(x[:, :, :14], t, condition)
    network, x, t, condition, _ = given("boxes")
    with pytest.raises(ShapeError, match=r"condition.concat None: must be an image \(B, 3, H, W\)"):
        network(x, t)
    with pytest.raises(ShapeError, match=r"boxes \(2, 4, 5\): must be \(B, 5, 5\)"):
        network(x[:, :4], t, condition)
