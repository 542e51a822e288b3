"""Time embeddings, held against their formulas written out."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.errors import RecipeError, ShapeError
from unveil.nn.embeddings import LearnedPositions, even_split, grid_coordinates, sin_cos_positions, sinusoid


@pytest.mark.parametrize("t", [0.0, 0.25, 871.25])
def test_each_order_is_its_published_formula(t):
    # Ho et al.: 10000^(-i / (half - 1)), sines first; Nichol & Dhariwal: 10000^(-i / half), cosines first
    ddpm = [t * 10000 ** (-i / 3) for i in range(4)]
    improved = [t * 10000 ** (-i / 4) for i in range(4)]
    got = sinusoid(torch.tensor([t]), 8, "sin-cos")[0]
    want = torch.tensor([math.sin(a) for a in ddpm] + [math.cos(a) for a in ddpm])
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)
    got = sinusoid(torch.tensor([t]), 8, "cos-sin")[0]
    want = torch.tensor([math.cos(a) for a in improved] + [math.sin(a) for a in improved])
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)


def test_an_odd_width_ends_in_zero_and_integers_are_taken():
    got = sinusoid(torch.tensor([3, 4]), 5, "cos-sin")
    assert got.shape == (2, 5)
    assert got.dtype == torch.float32
    assert (got[:, 4] == 0).all()


def test_positions_in_the_order_of_2017():
    got = sin_cos_positions(torch.tensor([[0.0], [3.5]]), 6, "interleaved")
    speeds = [10000 ** (-2 * i / 6) for i in range(3)]
    want = [wave(3.5 * speed) for speed in speeds for wave in (math.sin, math.cos)]
    assert got[0].tolist() == [0, 1, 0, 1, 0, 1]
    torch.testing.assert_close(got[1], torch.tensor(want), rtol=0, atol=1e-6)


def test_a_shift_of_positions_is_a_rotation():
    speeds = 10000 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    for k in (1, 17):
        cos, sin = (k * speeds).cos(), (k * speeds).sin()
        turn = torch.zeros(64, 64, dtype=torch.float64)
        for i in range(32):  # sin(a + b) = sin a cos b + cos a sin b, and cos likewise
            turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[cos[i], sin[i]], [-sin[i], cos[i]]])
        places = torch.arange(0, 400, 7)[:, None]
        here, there = (sin_cos_positions(places + step, 64, "interleaved").double() for step in (0, k))
        torch.testing.assert_close(here @ turn.T, there, rtol=0, atol=1e-6)


def test_positions_of_an_image_in_the_order_of_dit():
    # each axis: all sines, then all cosines; the column comes first
    rows_columns = grid_coordinates((2, 3))
    assert rows_columns.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    got = sin_cos_positions(rows_columns.flip(1), 8, "sin-cos")[5]  # row 1, column 2
    want = [wave(place * speed) for place in (2, 1) for wave in (math.sin, math.cos) for speed in (1, 0.01)]
    torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=1e-6)


def test_the_first_of_three_axes_takes_the_rest():
    got = sin_cos_positions(torch.tensor([[5.0, 0.0, 0.0]]), 16, "sin-cos")
    assert even_split(16, 3) == (8, 4, 4)
    torch.testing.assert_close(got[:, :8], sin_cos_positions(torch.tensor([[5.0]]), 8, "sin-cos"))
    assert got[0, 8:].tolist() == [0, 0, 1, 1] * 2


@pytest.mark.parametrize(
    ("size", "wanted", "mode"),
    [((4,), (7,), "linear"), ((4, 6), (8, 3), "bicubic"), ((2, 3, 2), (3, 4, 5), "trilinear")],
)
def test_learned_positions_of_another_size(size, wanted, mode):
    positions = LearnedPositions(size, 5, first=1)
    grid = positions.table[1:].detach().T.reshape(1, 5, *size)
    want = torch.nn.functional.interpolate(grid, wanted, mode=mode, align_corners=False)[0].flatten(1).T
    got = positions(wanted)
    torch.testing.assert_close(got, torch.cat([positions.table[:1], want]))
    assert positions(size) is positions.table
    got.sum().backward()
    assert positions.table.grad is not None
    assert positions.table.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sin_cos_positions(torch.zeros(3, 2), 7, "sin-cos"), "even parts"),
        (lambda: sin_cos_positions(torch.zeros(3, 2), 8, "sin_cos"), "nearest: 'sin-cos'"),  # type: ignore[arg-type]
        (lambda: sin_cos_positions(torch.zeros(3, 4), 8, "sin-cos"), "1 to 3 axes"),
        (lambda: sin_cos_positions(torch.zeros(3), 8, "sin-cos"), r"must be \(N, axes\)"),
        (lambda: LearnedPositions((4, 4), 8)((4,)), "as many axes"),
        (lambda: LearnedPositions((4, 4), 8)((4, 0)), "at least one place"),
    ],
)
def test_positions_that_cannot_be(call, message):
    with pytest.raises((RecipeError, ShapeError), match=message):
        call()
