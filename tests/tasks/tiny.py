"""Models small enough to draw in milliseconds: of pixels, and of latents that are half as large and lose something."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unveil
from unveil import data
from unveil.config import ModelConfig, validate
from unveil.model import Model, build
from unveil.tasks.edit import PLAIN, Edit
from unveil.tasks.generate import Request, generate

LABEL = {"kind": "label", "classes": 3, "drop": 0.1}


class Halved(nn.Module):
    """A codec of factor 2: means of squares, scaled."""

    def encode(self, pixels: Tensor) -> Tensor:
        return 1.5 * F.avg_pool2d(pixels, 2)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate(latents / 1.5, scale_factor=2.0, mode="nearest")

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], shape[-2] // 2, shape[-1] // 2)


def tiny(codec: nn.Module | None = None, condition: list[dict[str, Any]] | None = None, **network: Any) -> Model:
    """A random model of 1 x 8 x 8 pictures."""
    config = validate(
        ModelConfig,
        {
            "shape": [1, 8, 8],
            "network": {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "groups": 4, **network},
            "process": {"kind": "discrete-vp", "betas": "cosine", "steps": 50},
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
        model.codec = codec  # pyright: ignore
    return model


@cache
def digits_model() -> Model:
    return unveil.load("ddpm-digits")


@cache
def digits(count: int = 8) -> tuple[Tensor, list[int]]:
    """Held-out digits, uint8 (N, 1, 8, 8), and their labels."""
    held_out = data.open(data.DigitsConfig(), "held-out")
    items = [held_out[n] for n in range(count)]
    return torch.stack([item["pixels"] for item in items]), [int(item["label"]) for item in items]


def pictures(count: int, height: int = 8, width: int = 8) -> Tensor:
    """Random ones, uint8."""
    return torch.randint(
        0, 256, (count, 1, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def drawn(model: Model, request: Request | None = None, edit: Edit = PLAIN) -> Tensor:
    """The samples of a request."""
    return torch.stack([one.sample for one in generate(model, request or Request(), edit=edit)])


def seen(model: Model, request: Request | None = None, edit: Edit = PLAIN) -> Tensor:
    """The same as they are written."""
    return torch.stack([one.pixels for one in generate(model, request or Request(), edit=edit)])
