"""ControlNets in a model: nothing changes at first, then weights, ranges, places and modes do what they say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from unveil.conditioning.controlnet import AttachedControlNet, MultiControlNet
from unveil.errors import RecipeError, ShapeError
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate
from unveil.nn.controlnet import ControlNet
from unveil.nn.unet import UNet
from unveil.types import Condition, NoiseLevel

RECIPE = {
    "shape": [4, 8, 8],
    "network": {
        "kind": "unet",
        "channels": 64,
        "multipliers": [1, 1],
        "blocks": 1,
        "attention": [2],
        "heads": 4,
        "transformer_depth": [1],
        "context_width": 24,
    },
    "process": {"kind": "discrete-vp", "beta_schedule": "cosine", "timesteps": 50},
    "condition": [{"kind": "class-label-token", "num_classes": 4, "drop_prob": 0.1}],
    "sample": {"sampler": "ddim", "steps": 4, "clip": "none"},
}


def shaken(module: nn.Module, seed: int) -> None:
    """Weights that matter: published networks start as the zero function."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = build(validate(ModelConfig, RECIPE, "test"))
    shaken(model, 1)
    return model


def unet_of(model: Model) -> UNet:
    network = model.denoiser.network
    assert isinstance(network, UNet)
    return network


def controlnet(model: Model, seed: int = 2, *, channels: int = 3) -> ControlNet:
    """One whose every weight differs from the U-Net's."""
    network = ControlNet.from_unet(unet_of(model), hint_channels=channels)
    shaken(network, seed)
    return network


def images(channels: int = 3, count: int = 2, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, 64, 64), generator=generator, dtype=torch.uint8)


@contextmanager
def counted(network: nn.Module) -> Iterator[list[int]]:
    """The rows of each of its calls."""
    rows: list[int] = []
    hook = network.register_forward_hook(lambda _module, inputs, _result: rows.append(len(inputs[0])))
    yield rows
    hook.remove()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_new_controlnet_leaves_every_sample_what_it_was_bit_for_bit(model: Model, scale: float):
    plain = model.generate(cond={"label": [0, 1]}, count=2, guidance_scale=scale)
    new = ControlNet.from_unet(unet_of(model))
    own, copied = unet_of(model).state_dict(), new.state_dict()
    assert all(torch.equal(copied[key], own[key]) for key in copied if key in own)
    assert own["enter.weight"].data_ptr() != copied["enter.weight"].data_ptr()
    model.with_controlnets(AttachedControlNet("edges", new))
    cond = {"label": [0, 1], "edges": images()}
    assert torch.equal(model.generate(cond=cond, count=2, guidance_scale=scale), plain)


def test_a_control_moves_the_sample_by_its_hint_and_goes_again(model: Model):
    plain = model.generate(cond={"label": 1}, guidance_scale=3.0)
    model.with_controlnets(AttachedControlNet("edges", controlnet(model)))
    one, other = (
        model.generate(cond={"label": 1, "edges": images(count=1, seed=s)}, guidance_scale=3.0) for s in (3, 4)
    )
    assert not torch.allclose(one, plain)
    assert not torch.allclose(one, other)
    assert torch.equal(model.with_controlnets().generate(cond={"label": 1}, guidance_scale=3.0), plain)
    with pytest.raises(RecipeError, match="edges"):
        model.generate(cond={"label": 1, "edges": images(count=1)})


def test_every_sampler_and_one_call_or_two_give_the_same_control(model: Model, monkeypatch: pytest.MonkeyPatch):
    model.with_controlnets(AttachedControlNet("edges", controlnet(model)))
    cond = {"label": 1, "edges": images(count=1)}
    samples = {}
    for together in (True, False):
        monkeypatch.setattr("unveil.core.guidance.should_batch", lambda *_, together=together: together)
        for sampler in ("ddim", "heun", "dpmpp-2m"):
            samples[sampler, together] = model.generate(
                cond=cond, guidance_scale=3.0, sampler=sampler, threshold="static"
            )
    for sampler in ("ddim", "heun", "dpmpp-2m"):
        torch.testing.assert_close(samples[sampler, True], samples[sampler, False], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_weights_scale_the_residuals_and_several_controls_add_up(model: Model):
    networks = controlnet(model), controlnet(model, 5, channels=1)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 10.0])
    tokens, hint = torch.randn(2, 3, 24), torch.rand(2, 4, 64, 64)
    text = Condition(tokens=tokens)
    alone = [
        network(x, t, Condition(tokens=tokens, control_image=part))
        for network, part in zip(networks, hint.split([3, 1], dim=1), strict=True)
    ]
    count = len(alone[0])
    each = tuple(range(count))

    def residuals(*controls: AttachedControlNet, mode: str = "balanced") -> tuple[Tensor, ...]:
        conditioned = Condition(tokens=tokens, control_image=hint if len(controls) == 2 else hint[:, :3])
        found = MultiControlNet(controls, mode)(x, t, conditioned, NoiseLevel(0.5, 0.5, 0.5))  # type: ignore[arg-type]
        assert found.control_image is None
        assert found.tokens is tokens
        return found.residuals or ()

    both = residuals(AttachedControlNet("a", networks[0], 0.5), AttachedControlNet("b", networks[1], 2.0))
    for got, a, b in zip(both, *alone, strict=True):
        torch.testing.assert_close(got, 0.5 * a + 2 * b)
    for i, got in enumerate(residuals(AttachedControlNet("a", networks[0], tuple(float(one) for one in each)))):
        torch.testing.assert_close(got, i * alone[0][i])
    for i, got in enumerate(residuals(AttachedControlNet("a", networks[0], 0.7), mode="guess")):
        torch.testing.assert_close(got, 0.7 * 0.825 ** (count - 1 - i) * alone[0][i])
    (middle,) = residuals(AttachedControlNet("a", networks[0], blocks="middle"))
    torch.testing.assert_close(middle, alone[0][-1])
    mixed = residuals(AttachedControlNet("a", networks[0], blocks="middle"), AttachedControlNet("b", networks[1]))
    torch.testing.assert_close(mixed[0], alone[1][0])
    torch.testing.assert_close(mixed[-1], alone[0][-1] + alone[1][-1])
    plain = unet_of(model)(x, t, text)
    zeros = tuple(torch.zeros_like(one) for one in alone[0][:-1])
    everywhere = unet_of(model)(x, t, Condition(tokens=tokens, residuals=(*zeros, middle)))
    assert torch.equal(unet_of(model)(x, t, Condition(tokens=tokens, residuals=(middle,))), everywhere)
    assert not torch.allclose(everywhere, plain)


def test_the_thirteen_residuals_of_the_full_size_are_weighed_as_published(model: Model):
    weights = AttachedControlNet("a", controlnet(model), 0.5).weights(13, "guess")
    assert weights == pytest.approx([0.5 * 0.825 ** (12 - i) for i in range(13)])


def test_a_control_works_in_its_part_of_the_run_alone(model: Model):
    network = controlnet(model)
    cond = {"label": 1, "edges": images(count=1)}
    calls = {}
    for start, stop in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0), (0.0, 0.0)):
        model.with_controlnets(AttachedControlNet("edges", network, start=start, stop=stop))
        with counted(network) as rows:
            model.generate(cond=cond, guidance_scale=1.0, schedule="uniform", steps=8)
        calls[start, stop] = len(rows)
    assert calls[0.0, 1.0] == calls[0.0, 0.5] + calls[0.5, 1.0] == 8
    assert calls[0.0, 0.5] == 4
    assert calls[0.0, 0.0] == 0
    levels = torch.tensor([0.9, 0.2], dtype=torch.float64)
    control = AttachedControlNet("edges", network, stop=0.5)
    share = control.share(NoiseLevel(levels, levels, levels), 2)
    assert isinstance(share, Tensor)
    assert share.flatten().tolist() == [1, 0]


def test_in_guess_mode_what_guidance_goes_away_from_is_not_controlled(model: Model):
    network = controlnet(model)
    cond = {"label": [1, 2], "edges": images()}
    model.with_controlnets(AttachedControlNet("edges", network))
    with counted(network) as rows:
        model.generate(cond=cond, count=2, guidance_scale=3.0)
    assert set(rows) == {4}
    model.with_controlnets(AttachedControlNet("edges", network), mode="guess")
    with counted(network) as rows:
        model.generate(cond=cond, count=2, guidance_scale=3.0)
    assert rows == [2, 2, 2, 2]


def test_a_hint_is_the_same_on_both_sides_of_guidance_and_beside_a_negative(model: Model):
    model.with_controlnets(AttachedControlNet("edges", controlnet(model)))
    condition, null = model.encode({"label": 1, "edges": images(count=1)})
    assert condition is not None
    assert null is not None
    assert condition.control_image is not None
    assert null.control_image is not None
    assert torch.equal(condition.control_image, null.control_image)
    torch.testing.assert_close(condition.control_image, images(count=1) / 255)
    model.generate(cond={"label": 1, "edges": images(count=1)}, negative_cond={"label": 2}, guidance_scale=3.0)
    with pytest.raises(RecipeError, match="edges: missing"):
        model.generate(cond={"label": 1})


def test_hints_and_texts_are_read_once_in_a_run(model: Model):
    network = controlnet(model)
    model.with_controlnets(AttachedControlNet("edges", network))
    with counted(network.hint) as rows:
        model.generate(cond={"label": 1, "edges": images(count=1)}, guidance_scale=3.0)
    assert rows == [2]


def test_what_cannot_work_is_refused(model: Model):
    network = controlnet(model)
    with pytest.raises(RecipeError, match="0 <= start <= stop <= 1"):
        AttachedControlNet("edges", network, start=0.6, stop=0.5)
    with pytest.raises(RecipeError, match="nearest: 'middle'"):
        AttachedControlNet("edges", network, blocks="midle")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="the model has a condition of that name"):
        model.with_controlnets(AttachedControlNet("label", network))
    with pytest.raises(RecipeError, match="each under its own key"):
        model.with_controlnets(AttachedControlNet("a", network), AttachedControlNet("a", network))
    with pytest.raises(RecipeError, match="nearest: 'guess'"):
        model.with_controlnets(AttachedControlNet("a", network), mode="gues")  # type: ignore[arg-type]
    model.with_controlnets(AttachedControlNet("edges", network, (1.0, 2.0)))
    with pytest.raises(RecipeError, match="2 weights for 5 residuals"):
        model.generate(cond={"label": 1, "edges": images(count=1)})
    model.with_controlnets(AttachedControlNet("edges", network))
    with pytest.raises(ShapeError, match=r"must be \(1, 3, 64, 64\), 8 times the size of x"):
        model.generate(cond={"label": 1, "edges": images(count=1)[..., :32]}, guidance_scale=1.0)
    with pytest.raises(ShapeError, match="edges"):
        model.generate(cond={"label": 1, "edges": images(1, count=1)})
