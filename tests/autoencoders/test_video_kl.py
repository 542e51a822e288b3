"""The codec of clips: causal, the same in pieces as whole, out of the middle, in a ring and in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from unveil.autoencoders import VideoAutoencoderKL, VideoAutoencoderKLConfig, tiling
from unveil.autoencoders.tiling import TilingConfig, decode_with_fallback, tiling_difference
from unveil.errors import RecipeError, ShapeError

# all of space and time on entry; halvings in levels; both; space alone
LAYOUTS: dict[str, dict[str, Any]] = {
    "boxes": {"channel_mult": (1,), "patch": 4, "span": 4, "time": 4},
    "levels": {"channel_mult": (1, 1, 2), "time": 4},
    "both": {"channel_mult": (1, 2), "time": 4, "span": 2, "patch": 2},
    "space": {"channel_mult": (1, 2), "time": 1},
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def video(layout: str = "both", **changes: Any) -> VideoAutoencoderKL:
    """A codec in which every weight counts, those too that begin at 0."""
    torch.manual_seed(0)
    codec = VideoAutoencoderKL(
        VideoAutoencoderKLConfig(
            3, 3, **{"model_channels": 8, "num_res_blocks": 1, "z_channels": 4} | LAYOUTS[layout] | changes
        )
    )
    for part in (codec.encoder, codec.decoder):
        nn.init.normal_(part.leave.weight, 0, 0.05)
    return codec.eval()


def clip(codec: VideoAutoencoderKL, pieces: int = 6, rows: int = 2) -> Tensor:
    """Random frames (rows, 3, 1 + pieces time, 2 factor, 3 factor)."""
    side, chosen = codec.config.factor, torch.Generator().manual_seed(1)
    return torch.rand(rows, 3, 1 + pieces * codec.config.time, 2 * side, 3 * side, generator=chosen) * 2 - 1


# ---------------------------------------------------------------------- causality and pieces


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(layout):
    codec = video(layout)
    x = clip(codec)
    with torch.enable_grad():  # in one piece, as in training
        z = codec.encode(x).detach()
        y = codec.decode(z).detach()
    assert z.shape == (2, *codec.latent_shape(tuple(x.shape[1:])))
    assert y.shape == x.shape
    torch.testing.assert_close(codec.encode(x), z, **CLOSE)
    torch.testing.assert_close(codec.decode(z), y, **CLOSE)
    for length in (1, 3, 5, 64):
        found = list(codec.encode_stream(x.split(length, 2)))
        torch.testing.assert_close(torch.cat(found, 2), z, **CLOSE)
    torch.testing.assert_close(torch.cat(list(codec.decode_stream(z.split(1, 2))), 2), y, **CLOSE)
    torch.testing.assert_close(torch.cat(list(codec.decode_stream(z.split(3, 2))), 2), y, **CLOSE)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_no_latent_sees_a_later_frame_and_no_frame_a_later_latent(layout):
    codec = video(layout)
    time, x = codec.config.time, clip(codec, rows=1)
    z = codec.encode(x)
    for last in (0, 1, 3):
        other = x.clone()
        other[:, :, 1 + last * time :] = 0
        torch.testing.assert_close(codec.encode(other)[:, :, : 1 + last], z[:, :, : 1 + last], **CLOSE)
        assert (codec.encode(other)[:, :, 1 + last :] - z[:, :, 1 + last :]).abs().max() > 1e-2
        later = z.clone()
        later[:, :, 1 + last :] = 0
        seen = 1 + last * time
        torch.testing.assert_close(codec.decode(later)[:, :, :seen], codec.decode(z)[:, :, :seen], **CLOSE)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_an_image_is_a_video_of_one_frame_and_a_still_video(layout):
    codec = video(layout)
    x = clip(codec)
    z = codec.encode(x)
    image = codec.encode(x[:, :, :1])
    assert codec.latent_shape(tuple(x[0, :, :1].shape)) == tuple(image.shape[1:])
    torch.testing.assert_close(image, z[:, :, :1], **CLOSE)
    torch.testing.assert_close(codec.decode(image), codec.decode(z)[:, :, :1], **CLOSE)


@torch.no_grad()
def test_calls_share_nothing_but_the_cache_they_are_given():
    codec = video()
    first, second = clip(codec).split(1)
    whole = [codec.encode(one) for one in (first, second)]
    streams = [codec.encode_stream(one.split(4, 2)) for one in (first, second)]
    found: list[list[Tensor]] = [[], []]
    alive = [True, True]
    while any(alive):  # a piece of either in turn
        for number, stream in enumerate(streams):
            piece = next(stream, None)
            alive[number] = piece is not None
            found[number] += [] if piece is None else [piece]
    for mine, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(torch.cat(mine, 2), expected, **CLOSE)
    piece, cache = codec.decoder.step(codec.z_of(whole[0][:, :, :2]))
    again = [codec.decoder.step(codec.z_of(whole[0][:, :, 2:4]), cache)[0] for _ in range(2)]
    torch.testing.assert_close(again[0], again[1], rtol=0, atol=0)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else (made,):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self.known[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.known = {key: known for key, known in self.known.items() if not known[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.known.values()))
        return made


def test_memory_of_a_stream_is_that_of_a_piece_however_long_the_clip():
    codec = video("boxes")

    def frames(pieces: int) -> Iterator[Tensor]:
        for number in range(1 + pieces):
            yield torch.full((1, 3, 4 if number else 1, 16, 16), 0.1)

    def latents(pieces: int) -> Iterator[Tensor]:
        for _ in range(1 + pieces):
            yield torch.full((1, 4, 1, 4, 4), 0.1)

    most: dict[str, list[int]] = {"encode": [], "decode": []}
    for pieces in (3, 12):
        for name, stream in (
            ("encode", codec.encode_stream(frames(pieces))),
            ("decode", codec.decode_stream(latents(pieces))),
        ):
            with Live() as live:
                for _ in stream:
                    pass
            most[name].append(live.most)
    for name, (short, long) in most.items():
        assert long <= 1.02 * short, name
    with Live() as live, torch.no_grad():
        codec.decode(torch.zeros(1, 4, 13, 4, 4))
    assert live.most > 1.5 * most["decode"][1]  # the whole clip is more


# ---------------------------------------------------------------------- segments and rings


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_segment_behind_its_context_is_encoded_as_in_the_whole(layout):
    codec = video(layout)
    x = clip(codec)
    cut = 1 + 2 * codec.config.time
    whole = codec.encode(x)[:, :, 3:]
    torch.testing.assert_close(codec.encode_segment(x[:, :, cut:], x[:, :, :cut]), whole, **CLOSE)
    alone = codec.encode_segment(x[:, :, cut:])
    still = torch.cat([x[:, :, cut : cut + 1], x[:, :, cut:]], 2)
    torch.testing.assert_close(alone, codec.encode(still)[:, :, 1:], **CLOSE)
    assert (alone - whole).abs().max() > 1e-2


@torch.no_grad()
def test_context_of_another_length_stands_still_before():
    codec = video()
    x = clip(codec)
    found = codec.encode_segment(x[:, :, 9:], x[:, :, 3:9])
    whole = torch.cat([x[:, :, 3:4].expand(-1, -1, 3, -1, -1), x[:, :, 3:]], 2)
    torch.testing.assert_close(found, codec.encode(whole)[:, :, 3:], **CLOSE)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_ring_has_no_seam(layout):
    codec = video(layout)
    z = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    frames, time = codec.decode_cyclic(z), codec.config.time
    assert frames.shape[2] == 3 * time
    torch.testing.assert_close(codec.decode_cyclic(z.roll(1, 2)), frames.roll(time, 2), **CLOSE)
    # many rounds of the ring as one clip come to the same frames
    rounds = codec.decode(torch.cat([z] * 14, 2))
    torch.testing.assert_close(rounds[:, :, -3 * time :], frames, **CLOSE)
    again = codec.encode_cyclic(frames)
    torch.testing.assert_close(codec.encode_cyclic(frames.roll(time, 2)), again.roll(1, 2), **CLOSE)
    assert again.shape == z.shape


# ---------------------------------------------------------------------- tiles


@pytest.mark.parametrize("layout", ["boxes", "both"])
@torch.no_grad()
def test_tiles_of_clips_are_the_whole(layout):
    codec = video(layout)
    z = torch.randn(1, 4, 3, 30, 34, generator=torch.Generator().manual_seed(1))
    assert tiling_difference(codec, z, TilingConfig(side=112)).largest < 0.01
    assert tiling_difference(codec, z, TilingConfig(side=40, overlap=0)).largest > 0.1
    x = torch.rand(1, 3, 5, 120, 136, generator=torch.Generator().manual_seed(2)) * 2 - 1
    torch.testing.assert_close(tiling.encode(codec, x, TilingConfig(side=112)), codec.encode(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_clips_are_decoded_in_tiles_where_memory_ends(monkeypatch):
    codec = video()
    z = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    whole = codec.decode(z)

    def full(latents: Tensor) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(codec, "decode", full)
    torch.testing.assert_close(decode_with_fallback(codec, z), whole, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- bad input


def test_lengths_sizes_and_ranks_that_do_not_fit_are_named():
    codec = video()
    assert codec.latent_shape((3, 17, 16, 32)) == (4, 5, 4, 8)
    with pytest.raises(ShapeError, match=r"16 frames: must be 1 \+ a multiple of 4; nearest 13 or 17"):
        codec.latent_shape((3, 16, 16, 32))
    with pytest.raises(ShapeError, match=r"2 frames.*nearest 1 or 5"):
        codec.encode(torch.zeros(1, 3, 2, 16, 16))
    with pytest.raises(ShapeError, match="width 18 px: must be a multiple of 4; nearest 16 or 20"):
        codec.encode(torch.zeros(1, 3, 5, 16, 18))
    with pytest.raises(ShapeError, match="an image is a clip of one frame; give x"):
        codec.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ShapeError, match=r"clips of shape \(3, 16, 16\)"):
        codec.latent_shape((3, 16, 16))
    with pytest.raises(ShapeError, match=r"latents \(1, 3, 2, 4, 4\): must be \(B, 4, T, H, W\)"):
        codec.decode(torch.zeros(1, 3, 2, 4, 4))
    with pytest.raises(ShapeError, match="at least one frame"):
        codec.encode(torch.zeros(1, 3, 0, 16, 16))
    with pytest.raises(ShapeError, match=r"a segment .*multiple of 4 frames; nearest 4 or 8"):
        codec.encode_segment(torch.zeros(1, 3, 6, 16, 16))
    with pytest.raises(ShapeError, match=r"7 frames: must be 1 \+ a multiple of 4; nearest 5 or 9"):
        list(codec.encode_stream(torch.zeros(1, 3, 7, 16, 16).split(2, 2)))
    _, cache = codec.encoder.step(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(ShapeError, match="3 frames behind others: must be a multiple of 4"):
        codec.encoder.step(torch.zeros(1, 3, 3, 16, 16), cache)
    with pytest.raises(ShapeError, match=r"cache: \(1, 24, 2, 8, 8\) for \(2, 24, 2, 8, 8\): give the cache that came"):
        codec.encoder.step(torch.zeros(2, 3, 4, 16, 16), cache)
    with pytest.raises(ShapeError, match="cache: nothing for"):
        codec.encoder.step(torch.zeros(1, 3, 4, 16, 16), cache[:-1])
    with pytest.raises(ShapeError, match="at least one frame"):
        codec.decode_cyclic(torch.zeros(1, 4, 0, 4, 4))


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(RecipeError, match="time = 6: must be a power of two; nearest: "):
        video(time=6)
    with pytest.raises(RecipeError, match="time = 16: 2 levels and span 2 reach 2 to 4 frames"):
        video(time=16)
    with pytest.raises(RecipeError, match="time = 1: 2 levels and span 2"):
        video(time=1)
