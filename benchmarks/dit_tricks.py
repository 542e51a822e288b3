"""Gain of each optimisation of DiT-S/4: guided sampling of 4 latents in 5 steps, and the parts of a training step.

Each ratio is the time without the trick over the time with it:

- modulation ahead: time and class are turned into every block's shifts and scales for all steps in one call;
- fused GELU: computed by the kernel of the product before it;
- bf16 held: matrices are converted for good, not in every call;
- contiguous tokens: patches are put in order once, else each residual keeps the strides of the image;
- fused AdamW and joint EMA: one pass over each tensor, one call for all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import harness
import torch
from dit_sample import BATCH, guided
from torch import Tensor

from unveil.model import Model
from unveil.nn import cpu_kernels
from unveil.nn.dit import DiT, get_preset

STEPS = 5


def sampling(precision: torch.dtype = torch.float32, without: Callable[[], object] = lambda: None) -> Any:
    """A case: guided samples, after `without` took something away."""

    def case() -> dict[str, float]:
        without()
        model = guided(STEPS).to_inference_dtype(precision)
        return harness.measure(lambda: model.generate(cond={"label": 3}, count=BATCH), repeats=4, warmup=1)

    return case


def no_ahead() -> None:
    DiT.precompute = lambda *_: nullcontext()  # type: ignore[assignment]


def no_fusion() -> None:
    cpu_kernels._KERNEL = None


def no_lowering() -> None:
    """The matrices stay as they are; each call converts them."""
    Model.to_inference_dtype = lambda self, dtype: (setattr(self, "precision", dtype), self)[1]  # type: ignore[assignment]


def no_order() -> None:
    """Tokens as the convolution's result lies in memory."""
    original: Any = DiT.forward_tokens

    def strided(self: DiT, h: Tensor, conditioning: Any) -> Tensor:
        return original(self, h.transpose(1, 2).contiguous().transpose(1, 2), conditioning)

    DiT.forward_tokens = strided  # type: ignore[assignment]


def weights() -> list[torch.nn.Parameter]:
    """DiT-S/4's, with gradients."""
    torch.manual_seed(0)
    parameters = list(DiT(get_preset("dit-s-4")).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return parameters


def adamw(*, fused: bool) -> Any:
    def case() -> dict[str, float]:
        optimiser = torch.optim.AdamW(weights(), lr=1e-4, fused=fused, foreach=None if fused else False)
        return harness.measure(optimiser.step, repeats=8)

    return case


def average(*, joint: bool) -> Any:
    def case() -> dict[str, float]:
        parameters = weights()
        averages = [parameter.detach().clone() for parameter in parameters]

        @torch.no_grad()
        def update() -> None:
            if joint:
                torch._foreach_lerp_(averages, parameters, 1e-4)
                return
            for mean, parameter in zip(averages, parameters, strict=True):
                mean.sub_(1e-4 * (mean - parameter))

        return harness.measure(update, repeats=8)

    return case


HALF = torch.bfloat16
CASES = {
    "sampling": sampling(),
    "sampling, modulation in each step": sampling(without=no_ahead),
    "sampling, GELU apart": sampling(without=no_fusion),
    "sampling, strided tokens": sampling(without=no_order),
    "sampling bf16": sampling(HALF),
    "sampling bf16, GELU apart": sampling(HALF, no_fusion),
    "sampling bf16, converted in each call": sampling(HALF, no_lowering),
    "AdamW": adamw(fused=False),
    "AdamW, fused": adamw(fused=True),
    "EMA, tensor by tensor": average(joint=False),
    "EMA, joint": average(joint=True),
}
RATIOS = [
    harness.Ratio("modulation ahead", "sampling, modulation in each step", "sampling"),
    harness.Ratio("fused GELU", "sampling, GELU apart", "sampling"),
    harness.Ratio("fused GELU, bf16", "sampling bf16, GELU apart", "sampling bf16", bf16=True),
    harness.Ratio("contiguous tokens", "sampling, strided tokens", "sampling"),
    harness.Ratio("bf16", "sampling", "sampling bf16", bf16=True),
    harness.Ratio("bf16 held", "sampling bf16, converted in each call", "sampling bf16", bf16=True),
    harness.Ratio("fused AdamW", "AdamW", "AdamW, fused"),
    harness.Ratio("joint EMA", "EMA, tensor by tensor", "EMA, joint"),
]

if __name__ == "__main__":
    harness.main("dit_tricks", CASES, RATIOS)
