"""Decoding an image of 512 px by Stable Diffusion's VAE, against diffusers' AutoencoderKL of equal weights.

As bundled is float32 there, and `--dtype bfloat16` here, which a user asks for. A small latent is decoded first. The
peak of memory is of the process, with its imports and the weights of both halves; `above_mb` is what decoding added.

`mean` and `largest` tell how far the image is from diffusers' in float32, in 1/255 of its range, and `psnr` in dB.
The weights are random ones.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import harness
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig
from unveil.checkpoints.formats import autoencoder
from unveil.core.denoiser import Denoiser
from unveil.core.process import CosineVP
from unveil.model import Model
from unveil.nn.unet import UNet, UNetConfig

FOLDER = "UNVEIL_BENCH_CODEC"  # where the parent process put the weights
SCALE = 0.18215


def written(folder: Path) -> Path:
    """Stable Diffusion's autoencoder with random weights, as diffusers' folder."""
    torch.manual_seed(0)
    config = AutoencoderKLConfig(
        in_channels=3,
        out_channels=3,
        model_channels=128,
        channel_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        z_channels=4,
        latent_channels=4,
        scale=SCALE,
    )
    return autoencoder.write_folder(AutoencoderKL(config), folder)


def latent(side: int) -> Tensor:
    """One that has the deviation of trained ones."""
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1))


def measured(decode: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """CPU seconds and memory of decoding, and how far the image is from the peer's."""
    decode(latent(8))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = harness.resident_mb()
    cpu, wall = time.process_time(), time.perf_counter()
    image = decode(latent(32 if harness.short() else 64)).float()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = harness.peak_mb()
    return {"cpu_s": cpu, "wall_s": wall, "peak_mb": peak, "above_mb": peak - before, **_differences(image)}


def _differences(image: Tensor) -> dict[str, float]:
    path = Path(os.environ[FOLDER]) / "peer.safetensors"
    if not path.exists():
        save_file({"image": image.contiguous()}, path)
        return {}
    wanted = load_file(path)["image"]
    error = (image - wanted).abs() / (wanted.max() - wanted.min())
    psnr = -10 * math.log10(error.square().mean().item())
    return {"mean": 255 * error.mean().item(), "largest": 255 * error.max().item(), "psnr": psnr}


def diffusers() -> dict[str, float]:
    """The pipeline's call of it."""
    from diffusers import AutoencoderKL

    (Path(os.environ[FOLDER]) / "peer.safetensors").unlink(missing_ok=True)
    codec = AutoencoderKL.from_pretrained(os.environ[FOLDER])

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        return codec.decode(latents / SCALE, return_dict=False)[0]

    return measured(decode)


def ours(dtype: torch.dtype) -> dict[str, float]:
    """`Model.decode`, of a model with a network of next to no weights."""
    codec = autoencoder.read_folder(Path(os.environ[FOLDER]))
    network = UNet(UNetConfig(in_channels=4, out_channels=4, model_channels=32, channel_mult=(1,), num_res_blocks=1))
    model = Model(Denoiser(network, CosineVP()), (3, 512, 512), autoencoder=codec).eval().to_inference_dtype(dtype)
    return measured(model.decode)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = {
        "diffusers fp32": diffusers,
        "unveil fp32": lambda: ours(torch.float32),
        "unveil bf16": lambda: ours(torch.bfloat16),
    }
    bars = [
        harness.Ratio("default settings", "diffusers fp32", "unveil bf16", at_least=1.8, bf16=True),
        harness.Ratio("default settings, peak memory", "unveil bf16", "diffusers fp32", "peak_mb", at_most=0.7),
        harness.Ratio("equal precision", "diffusers fp32", "unveil fp32", at_least=1.0),
        harness.Ratio("equal precision, peak memory", "unveil fp32", "diffusers fp32", "peak_mb", at_most=1.0),
    ]
    with tempfile.TemporaryDirectory() as parent:
        if "--only" not in sys.argv:
            os.environ[FOLDER] = str(written(Path(parent) / "vae"))
        harness.main("decode", cases, bars)
