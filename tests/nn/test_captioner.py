"""The captioner's network: any size and length, time in seconds, causal words, step by step as at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unveil.errors import RecipeError, ShapeError
from unveil.nn.captioner import Captioner, CaptionerConfig
from unveil.nn.decoding import greedy
from unveil.nn.tokenizer import BEGIN, END

CONFIG = CaptionerConfig(vocab_size=11, patch=4, depth=1, decoder_depth=1, hidden_size=24, heads=2, max_length=9)


@pytest.fixture(scope="module")
def network() -> Captioner:
    torch.manual_seed(0)
    return Captioner(CONFIG).eval()


def clip(batch: int = 2, frames: int = 3, height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


WORDS = torch.tensor([[BEGIN, 5, 6, 7], [BEGIN, 9, 4, 5]])


@pytest.mark.parametrize("size", [(1, 8, 8), (5, 8, 16), (2, 12, 4)])
def test_it_reads_videos_and_images_of_any_size(network, size):
    logits = network(clip(2, *size), WORDS)
    assert logits.shape == (2, 4, 11)
    assert torch.isfinite(logits).all()


def test_a_word_sees_those_before_it_alone_and_every_frame(network):
    x = clip().requires_grad_()
    logits = network(x, WORDS)
    other = WORDS.clone()
    other[:, 3] = 8
    torch.testing.assert_close(network(x, other)[:, :3], logits[:, :3])
    (gradient,) = torch.autograd.grad(logits[:, 0].square().sum(), x)
    assert (gradient.abs().amax((0, 1, 3, 4)) > 0).all()


@torch.no_grad()
def test_word_by_word_is_as_at_once(network):
    reading = network.start(clip())
    steps = [reading.next(WORDS[:, k : k + 1]) for k in range(4)]
    torch.testing.assert_close(torch.stack(steps, 1), network(clip(), WORDS), atol=1e-5, rtol=1e-5)
    found = greedy(network.start(clip()), WORDS[:, :1], end=END, limit=5)
    assert len(found.tokens) == 2


def test_time_is_encoded_by_the_frame_rate(network):
    """A clip of half the rate is one whose frames lie twice as far apart."""
    x = clip(2, 4)
    plain = network.encode(x).tokens
    torch.testing.assert_close(network.encode(x, torch.tensor([8.0, 8.0])).tokens, plain)
    both = network.encode(x, torch.tensor([8.0, 4.0])).tokens
    torch.testing.assert_close(both[0], plain[0])
    assert not torch.allclose(both[1], plain[1], atol=1e-3)
    image = clip(2, 1)
    torch.testing.assert_close(network.encode(image, torch.tensor([1.0, 30.0])).tokens, network.encode(image).tokens)


def test_frames_in_another_order_are_another_clip(network):
    x = clip(1, 3)
    assert not torch.allclose(network(x, WORDS[:1]), network(x.flip(2), WORDS[:1]), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 20}, "must be a multiple of 6"),
        ({"hidden_size": 30, "heads": 4}, "and of the heads"),
        ({"max_length": 2}, "max_length = 2"),
        ({"patch": 3}, "convolutions halve the image"),
        ({"stem": "patch"}, "stem = 'patch': must be one of patches, convolutions; nearest: 'patches'"),
        ({"depth": 0}, "depth = 0: must be at least 1"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(RecipeError, match=words):
        replace(CONFIG, **changes)


def test_data_that_do_not_fit(network):
    with pytest.raises(ShapeError, match=r"reads clips \(B, 3, T, H, W\)"):
        network.encode(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ShapeError, match="multiple"):
        network.encode(clip(1, 1, 6, 8))
