"""Inpainting and outpainting: known pixels stay exact with every method, in pixel and in latent space."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.generation.tiny import LABEL, Halved, digits, digits_model, drawn, random_images, seen, tiny
from unveil.errors import RecipeError, ShapeError
from unveil.generation.generate import Request
from unveil.generation.inpaint import Method, Padding, RePaintConfig, fit_padding, inpaint, outpaint
from unveil.io.images import to_unit
from unveil.model import Model

METHODS: tuple[Method, ...] = ("replace", "repaint")


def hole(height: int = 8, width: int = 8) -> torch.Tensor:
    """The right half and a pixel more in one row, which cuts latents in two."""
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    mask[..., width // 2 :] = True
    mask[..., 3, width // 2 - 1] = True
    return mask


def trained() -> Model:
    """The condition of an inpainting network: the mask and the latents of the masked image."""
    shown = [{"kind": "concat", "key": key, "channels": 1} for key in ("mask", "masked")]
    return tiny(Halved(), [LABEL, *shown])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("codec", [None, Halved()], ids=["pixels", "latents"])
def test_known_pixels_are_exact_and_others_are_new(codec: nn.Module | None, method: Method):
    model, given, mask = tiny(codec), random_images(3), hole()
    edit = inpaint(model, given, mask, method=method, jumps=RePaintConfig(2, 2))
    made = seen(model, Request(count=3, batch=2), edit)
    assert torch.equal(made[~mask.expand_as(made)], given[~mask.expand_as(made)])
    changed = (made != given)[mask.expand_as(made)].float().mean()
    assert changed > 0.9


def test_an_inpainting_network_receives_mask_and_masked_image():
    model, given, mask = trained(), random_images(2), hole()
    edit = inpaint(model, given, mask)
    assert edit.settings["method"] == "network"
    shown = edit.image_conditions(slice(0, 2))
    assert torch.equal(shown["mask"], torch.nn.functional.interpolate(mask.float(), (4, 4)).expand(2, -1, -1, -1))
    masked = to_unit(given).masked_fill(mask, 0.0)
    assert torch.equal(shown["masked"], Halved().encode(masked))
    made = seen(model, Request(count=2, seed=1), edit)
    assert torch.equal(made[~mask.expand_as(made)], given[~mask.expand_as(made)])
    other = seen(model, Request(count=2, seed=1), inpaint(model, given.flip(0), mask))
    assert not torch.equal(made[mask.expand_as(made)], other[mask.expand_as(made)]), "it looks at what it is shown"


def test_guidance_does_not_change_the_mask_condition():
    model, given = trained(), random_images(2)
    edit = inpaint(model, given, hole())
    plain, guided = (
        drawn(model, Request({"label": [1]}, count=2, sampling={"scale": scale}), edit) for scale in (1.0, 3.0)
    )
    assert not torch.allclose(plain, guided)


def test_repaint_differs_from_replacement():
    model, given = tiny(), random_images(2)
    one, other = (
        seen(model, Request(count=2), inpaint(model, given, hole(), method=method, jumps=RePaintConfig(2, 3)))
        for method in METHODS
    )
    assert not torch.equal(one, other)


def test_known_pixels_influence_the_generated_ones():
    given, labels = digits(8)
    model, mask = digits_model(), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:6, 2:6] = True
    request = Request({"label": labels}, count=8, seed=2)
    made = seen(model, request, inpaint(model, given, mask)).float()
    free = seen(model, request).float()
    inside = mask.expand_as(made)
    assert (made - given)[inside].abs().mean() < 0.9 * (free - given)[inside].abs().mean()


def test_a_feather_blends_within_its_reach_and_nowhere_else():
    model, given, mask = tiny(), random_images(2), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 6:] = True
    made = seen(model, Request(count=2), inpaint(model, given, mask, feather=2))
    assert torch.equal(made[..., :4], given[..., :4])
    assert not torch.equal(made[..., 4:6], given[..., 4:6])


def test_strength_0_changes_nothing_and_less_than_1_shines_through():
    model, given, mask = tiny(), random_images(4), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    far = []
    for strength in (0.0, 0.3, 1.0):
        made = seen(model, Request(count=4), inpaint(model, given, mask, strength=strength))
        far.append(float((made.float() - given.float()).abs().mean()))
    assert far[0] == 0 < far[1] < far[2]


@pytest.mark.parametrize("codec", [None, Halved()], ids=["pixels", "latents"])
def test_batches_of_1_and_8_give_the_same(codec: nn.Module | None):
    model = tiny(codec)
    edit = inpaint(model, random_images(8), hole(), method="repaint", jumps=RePaintConfig(2, 2))
    one, eight = (drawn(model, Request(count=8, batch=batch), edit) for batch in (1, 8))
    assert torch.allclose(one, eight, atol=1e-5)


@pytest.mark.parametrize("codec", [None, Halved()], ids=["pixels", "latents"])
def test_outpainting_extends_an_image_beyond_its_edges(codec: nn.Module | None):
    model, given = tiny(codec), random_images(2)
    made = seen(model, Request(count=2), outpaint(model, given, Padding(left=3, right=1, bottom=4)))
    assert made.shape == (2, 1, 12, 12)
    assert torch.equal(made[..., :8, 3:11], given)
    assert not torch.equal(made[..., :8, :1].expand(-1, -1, -1, 3), made[..., :8, :3]), "the margin is not its edge"


def test_padding_is_rounded_up_to_the_networks_multiple():
    model = tiny(Halved())  # multiples of 4
    assert fit_padding(model, (8, 8), Padding(left=1, right=2)) == Padding(left=1, right=3)
    assert fit_padding(model, (8, 8), Padding(left=1)) == Padding(left=4)
    assert fit_padding(model, (8, 8), Padding(top=5, right=4)) == Padding(top=8, right=4)
    with pytest.raises(RecipeError, match=r"size 11x8 .*both sides must be multiples of 4 px; nearest 8x8 or 12x8"):
        seen(model, edit=outpaint(model, random_images(1), Padding(right=3)))


def test_invalid_inputs_are_refused():
    model, given = tiny(), random_images(1)
    with pytest.raises(ShapeError, match="a mask of 8x4 for an image of 8x8: must be of the same size"):
        inpaint(model, given, hole(4, 8))
    with pytest.raises(ShapeError, match=r"a mask of torch\.float32: must be boolean"):
        inpaint(model, given, hole().float())
    with pytest.raises(RecipeError, match="method 'repant': must be one of auto, network, replace, repaint; nearest"):
        inpaint(model, given, hole(), method="repant")  # pyright: ignore
    with pytest.raises(RecipeError, match="this model was not trained with masks"):
        inpaint(model, given, hole(), method="network")
    with pytest.raises(RecipeError, match="feather -1: at least 0"):
        inpaint(model, given, hole(), feather=-1)
    with pytest.raises(RecipeError, match="left 0, right 0, top 0, bottom 0: each at least 0 pixels, and one of them"):
        outpaint(model, given, Padding())
