"""The networks of the autoencoder of clips: what they begin as, what of them learns, and how far back they see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unveil.nn.dct import dct_matrix, lowpass_rows
from unveil.nn.layers import PixelRMS
from unveil.nn.video_autoencoder import CausalConv, StreamState, VideoAutoencoderConfig, VideoDecoder, VideoEncoder


def config(**changes: object) -> VideoAutoencoderConfig:
    settings = {
        "model_channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "z_channels": 4,
        "time": 2,
        "moments": 2,
    }
    return VideoAutoencoderConfig(3, 3, **settings | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_a_causal_convolution_is_one_over_a_clip_with_copies_of_its_first_frame(stride):
    torch.manual_seed(0)
    layer, x = CausalConv(2, 3, (3, 3), stride=stride), torch.randn(1, 2, 5, 4, 4)
    padded = torch.cat([x[:, :, :1], x[:, :, :1], x], 2)
    expected = nn.functional.conv3d(padded, layer.weight, layer.bias, stride=(stride, 1, 1), padding=(0, 1, 1))
    torch.testing.assert_close(layer(x, StreamState()), expected)
    past = StreamState()
    one = layer(x[:, :, :1], past)
    torch.testing.assert_close(one, expected[:, :, :1])
    assert [tuple(kept.shape) for kept in past.saved] == [(1, 2, 3 - stride, 4, 4)]


def test_the_norm_of_a_place_is_by_its_root_mean_square():
    x = torch.randn(2, 6, 3, 2, 2)
    ours = PixelRMS(6)(x)
    theirs = nn.functional.rms_norm(x.movedim(1, -1), (6,), eps=1e-6).movedim(-1, 1)
    torch.testing.assert_close(ours, theirs)


def test_the_lowest_frequencies_are_orthonormal_and_begin_with_the_means():
    rows = lowpass_rows(20, 3, 4, 2)
    torch.testing.assert_close(rows @ rows.T, torch.eye(20))
    torch.testing.assert_close(rows[:3].view(3, 3, 16).sum((1, 2)), torch.full((3,), 4.0))
    torch.testing.assert_close(dct_matrix(5) @ dct_matrix(5).T, torch.eye(5))
    assert not lowpass_rows(20, 3, 1, 2)[12:].any()


@torch.no_grad()
def test_before_training_a_clip_that_stands_still_in_one_colour_comes_back():
    torch.manual_seed(0)
    made = config()
    x = torch.tensor([0.5, -0.2, 0.1]).view(1, 3, 1, 1, 1).expand(1, 3, 5, 4, 4)
    moments = VideoEncoder(made)(x)
    assert bool((moments[:, 4:] == -6).all())
    torch.testing.assert_close(VideoDecoder(made)(moments[:, :4]), x, rtol=1e-5, atol=1e-5)


def test_every_weight_learns():
    torch.manual_seed(0)
    encoder, decoder = VideoEncoder(config()), VideoDecoder(config())
    for part in (encoder, decoder):
        nn.init.normal_(part.leave.weight, 0, 0.1)
    z = encoder(torch.randn(1, 3, 5, 4, 4))
    (decoder(z[:, :4]).square().sum() + z.square().sum()).backward()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize(
    "changes", [{}, {"time": 4, "channel_mult": (1, 1, 1)}, {"span": 2}, {"channel_mult": (1,), "span": 2, "patch": 2}]
)
def test_nothing_depends_on_more_of_the_past_than_the_receptive_field(changes):
    torch.manual_seed(0)
    made = config(**changes)
    encoder, decoder = VideoEncoder(made).double(), VideoDecoder(made).double()
    for part in (encoder, decoder):
        nn.init.normal_(part.leave.weight, 0, 0.1)
    side = made.factor
    x = torch.randn(1, 3, 1 + 32 * made.time, side, side, dtype=torch.float64, requires_grad=True)
    z = encoder(x)
    gradient = torch.autograd.grad(z[:, :, -1].square().sum(), x)[0].abs().sum((0, 1, 3, 4))
    first = int(gradient.nonzero()[0])
    seen = 32 - (first + made.time - 1) // made.time
    assert 0.5 * made.encoder_receptive_field_past < seen <= made.encoder_receptive_field_past
    latents = torch.randn(1, 4, 40, 1, 1, dtype=torch.float64, requires_grad=True)
    frames = decoder(latents)[:, :, -made.time :]
    gradient = torch.autograd.grad(frames.square().sum(), latents)[0].abs().sum((0, 1, 3, 4))
    seen = 39 - int(gradient.nonzero()[0])
    assert 0.5 * made.decoder_receptive_field_past < seen <= made.decoder_receptive_field_past
