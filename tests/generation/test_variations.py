"""Variations, interpolation and upscaling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.generation.tiny import LABEL, Halved, digits_model, drawn, random_images, tiny
from unveil.core.samplers import slerp
from unveil.data.tensor_dataset import bicubic_upsample
from unveil.errors import RecipeError, ShapeError
from unveil.generation.generate import Request
from unveil.generation.img2img import from_latents
from unveil.generation.invert import invert
from unveil.generation.upscale import upscale
from unveil.generation.variations import interpolate, interpolate_images, lerp, seed_variations
from unveil.io.images import to_unit
from unveil.types import Condition

CODECS = pytest.mark.parametrize("codec", [None, Halved()], ids=["pixels", "latents"])


@CODECS
def test_amount_0_is_the_same_image_and_1_another(codec: nn.Module | None):
    model = tiny(codec)  # its sampler adds noise on the way
    own, other = (drawn(model, Request(seed=seed, first=first)) for seed, first in ((3, 2), (9, 0)))
    assert torch.equal(drawn(model, Request(seed=9), seed_variations((3, 2), amount=0.0)), own)
    assert torch.equal(drawn(model, Request(seed=9), seed_variations((3, 2), amount=1.0)), other)


def test_a_larger_amount_changes_more():
    model = digits_model()
    own = drawn(model, Request({"label": [4]}, seed=3))
    request = Request({"label": [4]}, seed=5, count=8)
    far = [
        float((drawn(model, request, seed_variations((3, 0), amount=a)) - own).abs().mean())
        for a in (0.05, 0.2, 0.5, 1.0)
    ]
    assert far == sorted(far)


@CODECS
def test_the_ends_of_an_interpolation_are_the_two_samples(codec: nn.Module | None):
    model = tiny(codec)
    way = interpolate(model, ((3, 1), (9, 1)), frames=4, to={"label": [2]})
    frames = drawn(model, Request({"label": [0]}, count=4, batch=1), way)
    ends = [drawn(model, Request({"label": [label]}, seed=seed, first=1))[0] for label, seed in ((0, 3), (2, 9))]
    assert torch.equal(frames[0], ends[0])
    assert torch.equal(frames[-1], ends[1])
    assert not torch.equal(frames[1], ends[0])
    assert torch.allclose(drawn(model, Request({"label": [0]}, count=4, batch=4), way), frames, atol=1e-5)


@CODECS
def test_the_ends_between_two_images_come_from_the_noise_of_these(codec: nn.Module | None):
    model, given = tiny(codec), random_images(2, 12, 8)
    how: dict[str, object] = {"sampler": "ddim", "eta": 0.0, "steps": 5}
    first, last = (Request({"label": [label]}, sampling=how) for label in (0, 2))
    way = interpolate_images(model, given[:1], given[1:], first, frames=3, to={"label": [2]})
    frames = drawn(model, Request({"label": [0]}, count=3, batch=1, sampling=how), way)
    for image, request, frame in ((given[:1], first, frames[0]), (given[1:], last, frames[-1])):
        noise = invert(model, image, request).noise
        back = drawn(model, replace(request, size=(12, 8)), from_latents(noise))[0]
        assert torch.equal(frame, back)
    assert not torch.equal(frames[1], frames[0])
    with pytest.raises(ShapeError, match=r"images \(1, 12, 8\) and \(1, 8, 8\): must have one size"):
        interpolate_images(model, given[:1], random_images(1), first, frames=3)


def test_an_interpolation_is_smooth():
    model = digits_model()
    way = interpolate(model, ((3, 0), (9, 0)), frames=9, to={"label": [3]})
    frames = drawn(model, Request({"label": [3]}, count=9, sampling={"eta": 0.0}), way)
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    assert steps.max() < 0.6 * (frames[-1] - frames[0]).abs().mean()


def test_weights_of_slerp_are_one_for_all_or_one_each():
    a, b = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    each = slerp(a, b, torch.tensor([0.0, 0.4, 1.0]))
    assert torch.equal(each[0], a[0])
    assert torch.equal(each[2], b[2])
    assert torch.equal(each[1], slerp(a, b, 0.4)[1])


def test_conditions_are_interpolated_linearly():
    one = Condition(tokens=torch.zeros(2, 3, 4), mask=torch.tensor([[True, True, False]] * 2))
    other = Condition(tokens=torch.ones(2, 3, 4), mask=torch.tensor([[True, False, False]] * 2))
    found = lerp(one, other, torch.tensor([0.0, 0.25]))
    assert found.tokens is not None
    assert found.mask is not None
    assert found.tokens[:, 0, 0].tolist() == [0.0, 0.25]
    assert found.mask.tolist() == [[True, True, False]] * 2
    with pytest.raises(ShapeError, match="differ in their tokens"):
        lerp(one, Condition(tokens=torch.ones(2, 5, 4)), torch.zeros(2))


def test_invalid_inputs_are_refused():
    with pytest.raises(RecipeError, match=r"amount -0\.1: must lie in \[0, 1\]"):
        seed_variations((0, 0), amount=-0.1)
    with pytest.raises(RecipeError, match="frames 1: at least 2"):
        interpolate(tiny(), ((0, 0), (1, 0)), frames=1)
    with pytest.raises(RecipeError, match="factor 0: at least 1"):
        upscale(tiny(), random_images(1), factor=0)
    with pytest.raises(RecipeError, match="overlap = 1"):
        upscale(tiny(), random_images(1), factor=2, overlap=1.0)


# ---------------------------------------------------------------------- upscaling


@CODECS
def test_upscaling_is_img2img_of_the_bicubic_upsampling(codec: nn.Module | None):
    model, given = tiny(codec), random_images(2)
    made = drawn(model, Request(count=2), upscale(model, given, factor=2, strength=0.0))
    plain = bicubic_upsample(to_unit(given), (16, 16))
    assert torch.equal(made, model.autoencoder.decode(model.autoencoder.encode(plain)).clamp(-1, 1))
    edited = drawn(model, Request(count=2), upscale(model, given, factor=2, strength=0.5))
    assert edited.shape == (2, 1, 16, 16)
    assert not torch.equal(edited, made)


def test_a_super_resolution_model_receives_the_image():
    shown = [LABEL, {"kind": "concat", "key": "low", "channels": 1}]
    model, given = tiny(condition=shown, context_size="smaller"), random_images(2, 4, 4)
    request = Request(count=2, seed=3)
    made = drawn(model, request, upscale(model, given, factor=2))
    assert torch.equal(made, model.generate(cond={"low": given}, count=2, seed=3))
    large = drawn(model, request, upscale(model, random_images(2, 8, 6), factor=2))
    assert large.shape == (2, 1, 16, 12)


def test_tiles_of_a_large_image_are_conditioned_on_their_region():
    """Tiles are shown their own part: what is far away changes nothing."""
    shown = [{"kind": "concat", "key": "low", "channels": 1}]
    model, given = tiny(condition=shown, context_size="smaller"), random_images(1, 4, 12)
    other = given.clone()
    other[..., 8:] = 255 - other[..., 8:]
    one, two = (drawn(model, Request(seed=3), upscale(model, part, factor=2, overlap=0.0)) for part in (given, other))
    assert torch.equal(one[..., :8], two[..., :8])
    assert not torch.equal(one[..., 16:], two[..., 16:])
