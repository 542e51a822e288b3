"""Latents of shape (4, 32, 32) in random order, from one packed file or one file each; training with both.

A step is one of DiT-S/4 on 8 images of 128 x 128, whose latents a small KL codec makes at every step or has made
once.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unveil import data
from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig
from unveil.core.denoiser import Denoiser
from unveil.core.objective import DiffusionLoss
from unveil.core.process import DiscreteVP, betas
from unveil.core.rng import SampleRNG
from unveil.data.latent_cache import LatentCacheOptions
from unveil.model import Model
from unveil.nn.dit import DiT, get_preset
from unveil.train.batch_preparation import cache_dataset, prepare
from unveil.train.data_order import EpochShuffle, IndexedDataset
from unveil.train.ema import Ema

COUNT, READ, TOGETHER, BATCH, SIDE = 4096, 1024, 64, 8, 128


def order() -> list[int]:
    """The latents that are read, at random."""
    count = 512 if harness.short() else COUNT
    return random.Random(0).sample(range(count), min(READ, count))


def latents() -> torch.Tensor:
    """All of them."""
    torch.manual_seed(0)
    return torch.randn(512 if harness.short() else COUNT, 4, 32, 32)


def reading(read: Callable[[list[int]], list[torch.Tensor]]) -> dict[str, float]:
    """Latents a CPU second, read batch by batch, each batch one tensor; the files are in the system's memory."""
    rows = order()
    batches = [rows[first : first + TOGETHER] for first in range(0, len(rows), TOGETHER)]
    costs = harness.measure(lambda: [torch.stack(read(batch)) for batch in batches], repeats=8, warmup=1)
    return {**costs, "latents_per_s": len(rows) / costs["cpu_s"]}


def a_file_each() -> dict[str, float]:
    """One safetensors file per latent, as scripts that encode a folder write them."""
    with tempfile.TemporaryDirectory() as folder:
        for row, latent in enumerate(latents()):
            save_file({"latents": latent.contiguous()}, f"{folder}/{row}.safetensors")
        return reading(lambda rows: [load_file(f"{folder}/{row}.safetensors")["latents"] for row in rows])


def one_file() -> dict[str, float]:
    """All in one file, as the data set of kind `latents` and the cache read them."""
    with tempfile.TemporaryDirectory() as folder:
        path = data.write_latents(Path(folder) / "all.safetensors", [latents()])
        dataset = data.Latents(data.LatentsConfig(str(path), 0.0))
        return reading(lambda rows: [item["latents"] for item in dataset.__getitems__(rows)])


def step(*, cached: bool) -> dict[str, float]:
    """A whole step of training, the batch read and the average updated."""
    torch.manual_seed(0)
    config = AutoencoderKLConfig(
        in_channels=3,
        out_channels=3,
        model_channels=32,
        channel_mult=(1, 2, 4),
        num_res_blocks=1,
        z_channels=4,
        latent_channels=4,
    )
    network = DiT(replace(get_preset("dit-s-4"), out_channels=4))
    denoiser = Denoiser(network, DiscreteVP(betas("linear", 1000)))
    codec: Any = AutoencoderKL(config).requires_grad_(False)
    model = Model(denoiser, (3, SIDE, SIDE), autoencoder=codec).train()
    images: Any = data.ImageTensorDataset(torch.randint(0, 256, (2 * BATCH, 3, SIDE, SIDE), dtype=torch.uint8))
    with tempfile.TemporaryDirectory() as folder:
        items: Any = cache_dataset(model, images, LatentCacheOptions(folder=Path(folder)))[0] if cached else images
        numbered = IndexedDataset(items, EpochShuffle(len(items), 0), "pixels", [])
        parameters: list[nn.Parameter] = list(denoiser.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        average, objective, numbers = Ema(denoiser, 0.9999), DiffusionLoss(), list(range(BATCH))

        def loss() -> torch.Tensor:
            batch = numbered.__getitems__(numbers)
            streams = SampleRNG(0, numbers)
            x0, condition = prepare(model, batch, streams, 0)
            return objective(denoiser, x0, condition, streams, 0).value

        return harness.measure_step(loss, optimiser, average.update)


if __name__ == "__main__":
    harness.main(
        "latent_cache",
        {
            "a file each": a_file_each,
            "one file": one_file,
            "step, encoding": lambda: step(cached=False),
            "step, cached": lambda: step(cached=True),
        },
        [
            harness.Ratio(
                "latents/s, one file / a file each", "one file", "a file each", "latents_per_s", at_least=10.0
            ),
            harness.Ratio("step, encoding / cached", "step, encoding", "step, cached", at_least=1.2),
        ],
    )
