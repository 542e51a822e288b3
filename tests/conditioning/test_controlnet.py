"""ControlNets on a model: silent at first, of their base model, for pixels in patches and for latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.conditioning.controlnet import AttachedControlNet, with_controlnets
from unveil.core.denoiser import Denoiser
from unveil.core.process import DiscreteVP, betas
from unveil.errors import RecipeError, WeightsError
from unveil.model import Model
from unveil.nn.controlnet import HINT_WIDTHS, ControlNet, hint_widths
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition

PLAIN = UNetConfig(1, 1, 64, (1, 2), 1, groups=16)
PATCHED = replace(PLAIN, patch=2)


def drawn(module: torch.nn.Module, seed: int = 0) -> None:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)


def model_of(config: UNetConfig) -> Model:
    network = UNet(config)
    drawn(network)
    return Model(Denoiser(network, DiscreteVP(betas("cosine", 10))), (1, 16, 16)).eval()


def control_of(model: Model, factor: int) -> ControlNet:
    network = model.denoiser.network
    assert isinstance(network, UNet)
    return ControlNet.from_unet(network, hint_widths=hint_widths(factor))


def hint() -> Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def sampled(model: Model, **more: Tensor) -> Tensor:
    return model.generate(count=2, seed=3, steps=2, cond=more)


@pytest.mark.parametrize(("config", "factor"), [(PLAIN, 1), (PATCHED, 2)], ids=["pixels", "patches"])
def test_a_new_one_changes_no_bit_and_a_trained_one_does(config: UNetConfig, factor: int):
    model = model_of(config)
    before = sampled(model)
    control = control_of(model, factor)
    model.with_controlnets(AttachedControlNet("edges", control))
    assert torch.equal(sampled(model, edges=hint()), before)
    drawn(control)
    assert not torch.equal(sampled(model, edges=hint()), before)
    assert not torch.equal(sampled(model, edges=hint()), sampled(model, edges=255 - hint()))
    assert torch.equal(sampled(model.with_controlnets()), before)


def test_two_add_up_with_their_weights():
    model = model_of(PATCHED)
    control = control_of(model, 2)
    drawn(control)
    whole = sampled(model.with_controlnets(AttachedControlNet("one", control)), one=hint())
    parts = [AttachedControlNet("one", control, 0.25), AttachedControlNet("two", control, 0.75)]
    both = sampled(model.with_controlnets(*parts), one=hint(), two=hint())
    torch.testing.assert_close(both, whole, atol=1e-4, rtol=0)
    half = sampled(model.with_controlnets(AttachedControlNet("one", control, 0.25)), one=hint())
    assert (half - whole).abs().max() > 1e-2


def test_the_network_that_trains_is_the_one_that_samples():
    model = model_of(PATCHED)
    control = control_of(model, 2)
    drawn(control)
    model.with_controlnets(AttachedControlNet("edges", control))
    level = model.process.at(torch.tensor([0.3, 0.7], dtype=torch.float64))
    condition, _ = model.encode({"edges": hint()})
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(
        with_controlnets(model.denoiser, model.controls)(x, level, condition).x0,
        model.denoise_fn(condition)(x, level).x0,
    )
    assert with_controlnets(model.denoiser, None) is model.denoiser


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_channels": 32}, "widths of the levels 32, 64, here 64, 128"),
        ({"num_res_blocks": 2}, "blocks of a level 2, here 1"),
        ({"in_channels": 4}, "channels of x 4, here 1"),
        ({"patch": 1}, "patch 1, here 2"),
    ],
)
def test_one_of_another_base_is_refused(change: dict[str, int], message: str):
    other = ControlNet(replace(PATCHED, **change), hint_widths=hint_widths(2))
    with pytest.raises(WeightsError, match=rf"edges: a ControlNet of another base \(.*{message}"):
        model_of(PATCHED).with_controlnets(AttachedControlNet("edges", other))


def test_hints_of_another_size_are_refused():
    model = model_of(PATCHED)
    with pytest.raises(WeightsError, match="hints are 4 times the size of x; here images are 1 times"):
        model.with_controlnets(AttachedControlNet("edges", control_of(model, 8)))
    with pytest.raises(RecipeError, match="patches of 2 need a multiple of 2"):
        control_of(model, 1)


def test_control_image_encoders_halve_the_configured_number_of_times():
    assert hint_widths(1) == (16,)
    assert hint_widths(8) == HINT_WIDTHS
    assert hint_widths(32) == (16, 32, 96, 256, 256, 256)
    with pytest.raises(RecipeError, match="power of two"):
        hint_widths(3)


def test_residuals_hold_for_patches_too():
    model = model_of(PATCHED)
    control = control_of(model, 2)
    found = control(torch.zeros(2, 1, 16, 16), torch.zeros(2), Condition(control_image=hint() / 255))
    assert [tuple(one.shape[1:]) for one in found][:2] == [(64, 8, 8), (64, 8, 8)]
    assert not any(bool(one.any()) for one in found)
