"""Decoding videos of 96 x 96 px with 17, 65 and 257 frames, one latent at a time, and the longest one at once.

The autoencoder is that of the recipe `ae-playground` with random weights. Frames are let go as soon as they are there,
as when a file is written. `above_mb` is what decoding added to the memory of the process at its peak, the frames that
were waiting included; a short video is decoded first. Blocks above 64 KiB go back to the system when they are let go
(MALLOC_MMAP_THRESHOLD_), so that what is measured is what is held, and not what glibc's allocator keeps for later,
which grows by fragments until some pieces are behind it. The quick form decodes videos of the same lengths, which are
what the ratios are about.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import harness
import torch
from torch import Tensor, nn

from unveil.autoencoders import VideoAutoencoderKL
from unveil.model.config import AutoencoderRecipe, load_recipe
from unveil.nn.video_autoencoder import StreamState

PLACES = 24  # of a latent, a side
LENGTHS = (16, 64, 256)  # frames behind the first


def codec() -> VideoAutoencoderKL:
    """The recipe's, every weight of which counts."""
    torch.manual_seed(0)
    recipe = load_recipe("ae-playground")
    assert isinstance(recipe, AutoencoderRecipe)
    autoencoder = recipe.build().eval()
    assert isinstance(autoencoder, VideoAutoencoderKL)
    nn.init.normal_(autoencoder.decoder.leave.weight, 0, 0.05)
    return autoencoder


def latents(frames: int, width: int) -> Iterator[Tensor]:
    """Those of a video, one after the other."""
    chosen = torch.Generator().manual_seed(1)
    for _ in range(1 + frames // 4):
        yield torch.randn(1, width, 1, PLACES, PLACES, generator=chosen)


def measured(
    frames: int, decode: Callable[[VideoAutoencoderKL, Iterable[Tensor]], Iterable[Tensor]]
) -> dict[str, float]:
    """CPU seconds, those of a frame, and memory of decoding a video."""
    autoencoder = codec()
    width = autoencoder.config.width
    list(decode(autoencoder, latents(4, width)))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what was before
    before = harness.resident_mb()
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    for piece in decode(autoencoder, latents(frames, width)):
        count += piece.shape[2]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert count == 1 + frames
    peak = harness.peak_mb()
    return {"cpu_s": cpu, "wall_s": wall, "frame_ms": 1000 * cpu / count, "peak_mb": peak, "above_mb": peak - before}


@torch.no_grad()
def whole(autoencoder: VideoAutoencoderKL, pieces: Iterable[Tensor]) -> list[Tensor]:
    """All latents through each layer before the next, as in training."""
    z = autoencoder.z_of(torch.cat(list(pieces), 2))
    return [autoencoder.decoder.run(z, StreamState())]


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes of the cases
    cases: dict[str, harness.Case] = {
        f"{1 + frames} frames": lambda frames=frames: measured(frames, VideoAutoencoderKL.decode_stream)
        for frames in LENGTHS
    }
    cases[f"{1 + LENGTHS[-1]} frames, whole"] = lambda: measured(LENGTHS[-1], whole)
    short, _, long, all_at_once = cases
    bars = [
        harness.Ratio("peak memory, 16 times as long", long, short, "above_mb", at_most=1.2),
        harness.Ratio("time of a frame, 16 times as long", long, short, "frame_ms", at_most=1.2),
        harness.Ratio("peak memory, whole against a latent at a time", all_at_once, long, "above_mb", at_least=3.0),
        harness.Ratio("time, whole against a latent at a time", all_at_once, long),
    ]
    harness.main("video_decode", cases, bars)
