"""Time embeddings, held against their formulas written out."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.nn.embed import sinusoid


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
