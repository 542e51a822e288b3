"""Tiles cover an image, and their mean is what each says of itself."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from unveil.conditioning.tiled_denoising import Tile, crop_condition, denoise_in_tiles, multidiffusion, tiles
from unveil.core.denoiser import DenoiseFn, Estimate
from unveil.core.process import CosineVP
from unveil.errors import RecipeError, ShapeError
from unveil.types import Condition, NoiseLevel, like

LEVEL = CosineVP().at(0.5)


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (20, 33), (5, 30)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_every_pixel_is_in_a_tile_and_neighbours_overlap(size: tuple[int, int], overlap: float):
    seen = torch.zeros(size)
    places = tiles(size, (8, 8), overlap=overlap)
    for place in places:
        assert place.crop(seen).shape == (min(8, size[0]), 8)
        place.crop(seen).add_(1)
    assert seen.min() >= 1
    lefts = sorted({place.left for place in places})
    assert all(b - a <= max(1, 8 * (1 - overlap)) for a, b in pairwise(lefts))


def test_places_are_multiples_of_a_unit():
    assert all(place.top % 4 == place.left % 4 == 0 for place in tiles((24, 40), (16, 16), unit=4))
    with pytest.raises(RecipeError, match="all must be multiples of 4"):
        tiles((24, 42), (16, 16), unit=4)


def test_a_step_that_acts_on_each_pixel_does_not_notice_tiles():
    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(0.3 * x + x**2, x, level)

    x = torch.randn(2, 3, 12, 21)
    places = tiles((12, 21), (8, 8))
    assert len(places) > 3
    found = multidiffusion([step] * len(places), places)(x, LEVEL)
    assert torch.allclose(found.x0, step(x, LEVEL).x0, atol=1e-6)
    assert torch.allclose(LEVEL.alpha * found.x0 + LEVEL.sigma * found.eps, x, atol=1e-5)


def test_one_tile_is_the_whole_bit_by_bit():
    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return Estimate.of_x0(x.sin(), x, level)

    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(multidiffusion([step], tiles((8, 8), (8, 8)))(x, LEVEL).x0, x.sin())


def test_a_condition_is_cut_where_its_tile_lies():
    condition = Condition(vector=torch.ones(1, 2), concat=torch.arange(36.0).reshape(1, 1, 6, 6))
    part = crop_condition(condition, Tile(4, 8, 8, 4), (12, 12))
    assert part is not None
    assert part.concat is not None
    assert part.concat[0, 0].tolist() == [[16.0, 17.0], [22.0, 23.0], [28.0, 29.0], [34.0, 35.0]]
    assert part.vector is condition.vector
    assert part.control_image is None
    hinted = crop_condition(
        Condition(control_image=torch.arange(24.0 * 24).reshape(1, 1, 24, 24)), Tile(4, 8, 8, 4), (12, 12)
    )
    assert hinted is not None
    assert hinted.control_image is not None
    assert hinted.control_image.shape == (1, 1, 16, 8)
    assert hinted.control_image[0, 0, 0, 0] == 8 * 24 + 16
    one = Condition(control_image=torch.zeros(1, 1, 1, 1))
    assert crop_condition(one, Tile(3, 8, 8, 4), (12, 12)) == one
    with pytest.raises(ShapeError, match="cut its pixels"):
        crop_condition(condition, Tile(3, 8, 8, 4), (12, 12))


def test_tiles_that_share_a_call_are_those_that_have_calls_of_their_own():
    condition = Condition(vector=torch.tensor([[0.3], [0.7]]), positions=torch.zeros(2, 2, 3))
    calls = []

    def guided(given: Condition | None, null: Condition | None) -> DenoiseFn:
        assert given is not None
        assert given.vector is not None
        assert null is None
        vector = given.vector

        def step(x: Tensor, level: NoiseLevel) -> Estimate:
            calls.append(len(x))
            wide = vector.view(-1, *(1,) * (x.ndim - 1))
            return Estimate.of_x0(x.sin() * wide + like(level.alpha, x) * x.mean((-2, -1), keepdim=True), x, level)

        return step

    x, size = torch.randn(2, 3, 5, 90, 110), (90, 110)
    places = tiles(size, (32, 32))
    level = CosineVP().at(torch.tensor([0.2, 0.6], dtype=torch.float64))
    found = denoise_in_tiles(guided, condition, None, places, size)(x, level).x0
    assert calls == [32, 8]  # 20 tiles of two clips, 16 tiles at a time
    alone = multidiffusion([guided(condition, None)] * len(places), places)(x, level).x0
    torch.testing.assert_close(found, alone)
