"""Models that sample in milliseconds: of pixels, and of latents of a lossy codec that halves the size."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unveil
from unveil import data
from unveil.generation.generate import PLAIN, Request, TaskSpec, generate
from unveil.model import Model, build
from unveil.model.config import ModelConfig, validate

LABEL = {"kind": "class-label", "num_classes": 3, "drop_prob": 0.1}


class Halved(nn.Module):
    """A codec of factor 2: means of squares, scaled."""

    def encode(self, pixels: Tensor) -> Tensor:
        return 1.5 * F.avg_pool2d(pixels, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents / 1.5, scale_factor=2.0, mode="nearest")

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], shape[-2] // 2, shape[-1] // 2)


def tiny(codec: nn.Module | None = None, condition: list[dict[str, Any]] | None = None, **network: Any) -> Model:
    """A random model of 1 x 8 x 8 images."""
    config = validate(
        ModelConfig,
        {
            "shape": [1, 8, 8],
            "network": {
                "kind": "unet",
                "model_channels": 16,
                "channel_mult": [1, 2],
                "num_res_blocks": 1,
                "groups": 4,
                **network,
            },
            "process": {"kind": "discrete-vp", "beta_schedule": "cosine", "timesteps": 50},
            "condition": [LABEL] if condition is None else condition,
            "sample": {"steps": 6, "eta": 1.0},
        },
        "test",
    )
    model = build(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.08)
    if codec is not None:
        model.autoencoder = codec  # pyright: ignore
    return model


class Paired(nn.Module):
    """A codec of videos: the first frame alone, then pairs of frames, and squares of 2 x 2 pixels, each averaged."""

    def encode(self, pixels: Tensor) -> Tensor:
        small = F.avg_pool3d(pixels, (1, 2, 2))
        later = small[:, :, 1:].unflatten(2, (-1, 2)).mean(3)
        return 1.5 * torch.cat([small[:, :, :1], later], dim=2)

    def decode(self, latents: Tensor) -> Tensor:
        frames = torch.cat([latents[:, :, :1], latents[:, :, 1:].repeat_interleave(2, 2)], dim=2)
        return F.interpolate(frames / 1.5, scale_factor=(1.0, 2.0, 2.0), mode="nearest")

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-3], 1 + (shape[-3] - 1) // 2, shape[-2] // 2, shape[-1] // 2)


WORDS = ["a small red circle moves left", "a large blue square on green"]


def tiny_clips(codec: nn.Module | None = None, frames: int = 5, **sample: Any) -> Model:
    """A random model of 3 x frames x 8 x 8 videos with a text condition; with a codec, of latents half as large."""
    config = validate(
        ModelConfig,
        {
            "shape": [3, frames, 8, 8],
            "network": {
                "kind": "video-dit", "patch": [1, 2, 2] if codec else [1, 4, 4], "depth": 2, "hidden_size": 32,
                "heads": 2, "cross_attention_dim": 16,
            },
            "process": {"kind": "rectified-flow"},
            "prediction": "x0",
            "condition": [
                {"kind": "learned-text", "vocab_size": 40, "max_length": 8, "hidden_size": 16, "depth": 1, "heads": 2,
                 "vector": True, "drop_prob": 0.1}
            ],
            "sample": {"sampler": "euler-time", "steps": 4, "clip": "none", "guidance": {"scale": 2.0}, **sample},
        },
        "test",
    )  # fmt: skip
    model = build(config).eval()
    words: Any = model.conditioners["prompt"]
    words.build_vocabulary(WORDS)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    if codec is not None:
        model.autoencoder = codec  # pyright: ignore
    return model


def clips(count: int, frames: int = 5, height: int = 8, width: int = 8, seed: int = 1) -> Tensor:
    """Random uint8 values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, frames, height, width), dtype=torch.uint8, generator=generator)


@cache
def digits_model() -> Model:
    return unveil.load("ddpm-digits")


@cache
def digits(count: int = 8) -> tuple[Tensor, list[int]]:
    """Held-out digits, uint8 (N, 1, 8, 8), and their labels."""
    held_out = data.open(data.DigitsConfig(), "held-out")
    items = [held_out[n] for n in range(count)]
    return torch.stack([item["pixels"] for item in items]), [int(item["label"]) for item in items]


def random_images(count: int, height: int = 8, width: int = 8) -> Tensor:
    """Random uint8 values."""
    return torch.randint(
        0, 256, (count, 1, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def drawn(model: Model, request: Request | None = None, edit: TaskSpec = PLAIN) -> Tensor:
    """Generate the float samples of a request."""
    return torch.stack([one.sample for one in generate(model, request or Request(), edit=edit)])


def seen(model: Model, request: Request | None = None, edit: TaskSpec = PLAIN) -> Tensor:
    """Generate the samples of a request as uint8 pixels."""
    return torch.stack([one.pixels for one in generate(model, request or Request(), edit=edit)])
