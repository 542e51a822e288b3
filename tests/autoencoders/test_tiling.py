"""Tiles: exact where the layout allows it, seamless, of flat memory, and the way out when memory ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, tiling
from unveil.autoencoders.tiling import TilingConfig, decode_with_fallback, tile_boundaries, tiling_difference
from unveil.errors import OutOfResources, RecipeError


def local(**changes: object) -> AutoencoderKL:
    torch.manual_seed(0)
    settings = {"middle": "blocks", "norm": "pixel", "latent_channels": 4, "channel_mult": (1, 2, 2)} | changes
    return AutoencoderKL(AutoencoderKLConfig(3, 3, 8, num_res_blocks=1, z_channels=4, **settings)).eval()  # type: ignore[arg-type]


def ldm(**changes: object) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        AutoencoderKLConfig(3, 3, 16, (1, 2, 2), 1, 4, **{"latent_channels": 4, "groups": 4} | changes)
    ).eval()  # type: ignore[arg-type]


def uneven(height: int = 32, width: int = 48) -> Tensor:
    """Latents whose left half is flat and whose upper half is bright."""
    z = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))
    z[..., : width // 2] *= 0.1
    z[..., : height // 2, :] += 1.5
    return z


@pytest.mark.parametrize("patch", [1, 2])
def test_a_local_decoder_in_tiles_is_the_whole_one(patch):
    codec = local(patch=patch, channel_mult=(1, 2) if patch > 1 else (1, 2, 2))
    found = tiling_difference(codec, uneven(), TilingConfig(side=112))
    assert found.largest < 0.01
    assert found.seam < 1.1
    assert tiling_difference(codec, uneven(), TilingConfig(side=112, overlap=0)).largest > 1


@torch.no_grad()
def test_a_local_encoder_in_tiles_is_the_whole_one():
    codec = local()
    pixels = torch.rand(2, 3, 112, 176, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(2, 4, 28, 44, generator=torch.Generator().manual_seed(2))
    whole = codec.encode(pixels, noise)
    torch.testing.assert_close(
        tiling.encode(codec, pixels, TilingConfig(side=96), noise=noise), whole, rtol=1e-4, atol=1e-5
    )
    rough = tiling.encode(codec, pixels, TilingConfig(side=96, overlap=0), noise=noise)
    assert (rough - whole).abs().max() > 1e-3


@pytest.mark.parametrize("attention", [(), (4,), (2, 4)])
def test_shared_statistics_make_other_tilings_exact_and_those_of_the_shrunk_image_near(attention):
    codec = ldm(attention=attention)
    found = {
        norms: tiling_difference(codec, uneven(), TilingConfig(side=96, overlap=64, norms=norms))
        for norms in ("own", "shrunk", "exact")
    }
    assert found["exact"].largest < 0.01
    assert found["shrunk"].mean < 0.5 * found["own"].mean
    pixels = F.interpolate(uneven()[:, :3], scale_factor=4.0).clamp(-1, 1)
    whole = codec.encode(pixels)
    error = {
        norms: (tiling.encode(codec, pixels, TilingConfig(side=96, overlap=64, norms=norms)) - whole).abs().max().item()
        for norms in ("own", "exact")
    }
    assert error["exact"] < 1e-4
    assert error["own"] > 0.01 or attention == (2, 4)
    assert not any(type(module).__name__ == "SharedNorm" for module in codec.modules())


def test_tiles_cover_every_place_once():
    for length in (8, 9, 31, 100):
        for side, overlap, reach in ((8, 2, 1), (8, 4, 2), (10, 6, 5), (8, 0, 3)):
            made = tile_boundaries(length, side, overlap, reach)
            total = torch.zeros(length * 3)
            for number, (start, stop) in enumerate(made.tiles):
                weights = made.weights(number, 3)
                assert (weights > -1e-6).all()
                total[start * 3 : stop * 3] += weights
            torch.testing.assert_close(total, torch.ones_like(total))
            owned = sum(
                round((last - first) * (stop - start))
                for (first, last), (start, stop) in zip(
                    (made.share(n) for n in range(len(made.tiles))), made.tiles, strict=True
                )
            )
            assert owned == length


def test_one_sample_at_a_time_is_all_at_once():
    codec, z = ldm(), torch.randn(3, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(tiling.decode_slicing(codec, z), codec.decode(z), rtol=1e-4, atol=1e-5)
        pixels = torch.randn(3, 3, 8, 8)
        noise = torch.randn(3, 4, 2, 2)
        whole = codec.encode(pixels, noise)
        torch.testing.assert_close(tiling.encode_slicing(codec, pixels, noise=noise), whole, rtol=1e-4, atol=1e-5)


def test_memory_is_that_of_one_tile():
    codec = local()
    largest = [0]

    def watch(_module: nn.Module, _given: object, result: Tensor) -> None:
        largest[0] = max(largest[0], result.numel())

    for module in codec.decoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(watch)
    seen = []
    for side in (44, 64):
        largest[0] = 0
        tiling.decode(codec, torch.randn(1, 4, side, side), TilingConfig(side=144))
        seen.append(largest[0])
    assert seen[0] == seen[1]


def test_mistakes_are_named():
    with pytest.raises(RecipeError, match="tiles must be wider than their overlap of 104 px, in steps of 4; at least"):
        tiling.decode(local(), torch.randn(1, 4, 64, 64), TilingConfig(side=64))
    with pytest.raises(RecipeError, match="norms = 'share': must be one of own, shrunk, exact; nearest: 'shrunk'"):
        TilingConfig(norms="share")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- when memory ends


class Small(nn.Module):
    """A decoder on a device with room for that many pixels."""

    def __init__(self, inner: nn.Module, room: int, error: type[Exception], text: str) -> None:
        super().__init__()
        self.inner, self.room, self.problem = inner, room, error(text)

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[0] * z.shape[2] * z.shape[3] > self.room:
            raise self.problem
        return self.inner(z)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory."),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        (MemoryError, ""),
    ],
)
def test_what_does_not_fit_is_decoded_once_more_in_tiles(error, text):
    codec, z = local(), torch.randn(1, 4, 160, 16)
    with torch.no_grad():
        whole = codec.decode(z)
        codec.decoder = Small(codec.decoder, 130 * 16, error, text)  # type: ignore[assignment]
        with pytest.raises(error):
            codec.decode(z)
        torch.testing.assert_close(decode_with_fallback(codec, z), whole, rtol=1e-4, atol=1e-5)
        codec.decoder.room = 10  # type: ignore[assignment]
        with pytest.raises(OutOfResources, match="in tiles of 512 px too; lower the batch or the size"):
            decode_with_fallback(codec, z)


def test_other_errors_are_left_alone_and_other_codecs_say_what_to_lower():
    codec = local()
    codec.decoder = Small(codec.decoder, 0, RuntimeError, "shapes differ")  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="shapes differ"):
        decode_with_fallback(codec, torch.randn(1, 4, 8, 8))

    class Other:
        def decode(self, latents: Tensor) -> Tensor:
            raise MemoryError

    with pytest.raises(OutOfResources, match="lower the batch or the size of the images"):
        decode_with_fallback(Other(), torch.randn(1, 4, 8, 8))
