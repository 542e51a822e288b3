"""Layouts as tokens: which rows they make, what they follow from, and what is refused."""

from __future__ import annotations

import pytest
import torch

from unveil.conditioning.layout import BoxTokens, fourier_features
from unveil.errors import RecipeError, ShapeError

NAMES = ["circle", "square", "ring"]
ONE = [("circle", 0.25, 0.5, 0.2, 0.2)]
TWO = [*ONE, ("ring", 0.75, 0.5, 0.3, 0.3)]


def tokens(drop: float = 0.1) -> BoxTokens:
    torch.manual_seed(0)
    return BoxTokens(3, 16, 2, drop, NAMES).requires_grad_(False)


def test_a_token_for_each_object_behind_the_first():
    encoded = tokens().encode([ONE, TWO, []])
    assert encoded.tokens is not None
    assert encoded.mask is not None
    assert encoded.tokens.shape == (3, 3, 16)
    assert encoded.mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert torch.equal(encoded.tokens[0, :2], encoded.tokens[1, :2])
    assert not torch.equal(encoded.tokens[1, 1], encoded.tokens[1, 2])


@pytest.mark.parametrize("place", range(5))
def test_class_and_every_number_of_a_box_make_the_token(place: int):
    row = [0.0, 0.25, 0.5, 0.2, 0.2]
    other = [*row[:place], row[place] + (1 if place == 0 else 0.03), *row[place + 1 :]]
    found = tokens().encode([[row], [other]]).tokens
    assert found is not None
    assert float((found[0, 1] - found[1, 1]).abs().max()) > 1e-3


def test_names_numbers_tensors_and_text_mean_the_same():
    own = tokens()
    rows = torch.tensor([[0, 0.25, 0.5, 0.2, 0.2], [2, 0.75, 0.5, 0.3, 0.3]])
    text = "circle 0.25 0.5 0.2 0.2; ring 0.75 0.5 0.3 0.3"
    ways = [TWO, [(0, *ONE[0][1:]), (2, *TWO[1][1:])], rows, text]
    found = own.encode(ways).tokens
    assert found is not None
    assert all(torch.equal(found[0], one) for one in found[1:])


def test_none_is_the_layout_without_objects():
    own = tokens()
    none, empty = own.null(2), own.encode([[], []])
    assert none.mask is not None
    assert none.mask.tolist() == [[True, False, False]] * 2
    assert none.tokens is not None
    assert empty.tokens is not None
    assert torch.equal(none.tokens, empty.tokens)
    with pytest.raises(RecipeError, match="no null layout; set drop"):
        tokens(drop=0.0).null(1)


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        ([("circel", 0.5, 0.5, 0.1, 0.1)], RecipeError, "'circel'.*nearest: 'circle'"),
        ([*TWO, *ONE], RecipeError, "3 objects; this model was trained with 2 at most"),
        ([("circle", 0.5, 0.5, 0.1)], ShapeError, "give class, x, y, width, height"),
        ([("circle", 16.0, 0.5, 0.1, 0.1)], RecipeError, "shares of the image, from 0 to 1"),
        ("circle a 0.5 0.1 0.1", RecipeError, "'a' is not a number"),
    ],
)
def test_what_is_no_layout_is_refused(layout: object, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        tokens().encode([layout])


def test_waves_tell_places_apart():
    found = fourier_features(torch.tensor([[0.0, 0.5, 1.0, 0.25]]))
    assert found.shape == (1, 48)
    torch.testing.assert_close(found[0, 24], torch.tensor(1.0))  # cos 0
    torch.testing.assert_close(found[0, 6], torch.tensor(1.0))  # sin of a quarter turn, at 0.5
