"""Data sets whose items hold a hint, as recipes ask for them."""

from __future__ import annotations

import pytest
import torch

from unveil import data, playground
from unveil.data.preprocessors import edges, segmentation
from unveil.errors import RecipeError
from unveil.model.config import dump, load_recipe, parse_recipe, read_yaml


def test_a_recipe_asks_for_hints():
    recipe = load_recipe("ddpm-scenes", ["data.control_image={kind: canny, low: 40, high: 80}"])
    plain = load_recipe("ddpm-scenes")
    assert parse_recipe(read_yaml(dump(recipe), "here"), "here") == recipe
    found, bare = (data.open(one.data.build()) for one in (recipe, plain))  # type: ignore[union-attr]
    assert isinstance(found, data.ControlImageDataset)
    assert (len(found), found.classes) == (len(bare), bare.classes)
    item = found[3]
    assert torch.equal(item["pixels"], bare[3]["pixels"])
    assert torch.equal(item[data.HINT], edges.canny(item["pixels"], low=40, high=80))
    assert data.HINT not in bare[3]
    assert not torch.equal(data.open(recipe.data.build(), "held-out")[3]["pixels"], item["pixels"])  # type: ignore[union-attr]


def test_masks_and_boxes_of_an_item_are_drawn():
    masks = data.ControlImageDataset(
        playground.Scenes(playground.ScenesConfig()), lambda item: segmentation.colours(item["mask"])
    )
    assert torch.equal(masks[0]["hint"], segmentation.colours(masks[0]["mask"]))
    recipe = load_recipe("ddpm-scenes", ["data.control_image={kind: boxes, labels: kinds, style: outlined}"])
    item = data.open(recipe.data.build())[0]  # type: ignore[union-attr]
    size = item["pixels"].shape[-1]
    assert torch.equal(item["hint"], segmentation.layout(item["boxes"], item["kinds"], size, size, style="outlined"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.control_image={kind: cany}",
            "data.control_image.kind = 'cany': must be one of canny, lines, .*; nearest: 'canny'",
        ),
        ("data.control_image={kind: canny, lo: 1}", "data.control_image.lo: unknown key"),
        ("data.control_image={kind: canny, low: 9, high: 3}", "data: control_image: thresholds low 9, high 3"),
        ("data={kind: latents, path: a, hint: {kind: canny}}", "data.control_image: unknown key"),
    ],
)
def test_a_wrong_hint_is_refused_where_it_stands(override: str, message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe("ddpm-scenes", [override])


def test_a_hint_that_cannot_be_drawn_names_the_item():
    recipe = load_recipe("ddpm-digits", ["data.control_image={kind: mask}"])
    with pytest.raises(RecipeError, match="item 5: hint: an item has no 'mask'"):
        data.open(recipe.data.build())[5]  # type: ignore[union-attr]
