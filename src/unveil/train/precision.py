"""Precision of training: Lightning's name of a setting on a device."""

from __future__ import annotations

import logging
import time
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from unveil.errors import RecipeError
from unveil.model.config.train import Precision
from unveil.nn.cpu_kernels import cpu_computes_bf16

_log = logging.getLogger(__name__)

# Training also converts to bf16 and back, so that a smaller gain of the products gains nothing in a step.
MIN_BF16_SPEEDUP = 1.3


def resolve_precision(wanted: Precision, device: torch.device) -> str:
    """Return Lightning's name of a precision: "32-true", "bf16-mixed" or "16-mixed".

    bf16 becomes float32, with a warning, on a CPU on which torch would compute it without any instructions for it.

    Raises:
        RecipeError: The setting is 16-mixed on a device without loss scaling.
    """
    if wanted == "auto":
        return "bf16-mixed" if multiplies_bf16(device) else "32-true"
    if wanted == "bf16" and device.type == "cpu" and not cpu_computes_bf16():
        _log.warning(
            "precision bf16: this CPU has no instructions for it and would be many times slower; using float32"
        )
        return "32-true"
    if wanted == "16-mixed" and device.type != "cuda":
        raise RecipeError(f"precision 16-mixed on {device.type}: needs a CUDA device; use bf16, float32 or auto")
    return {"float32": "32-true", "bf16": "bf16-mixed", "16-mixed": "16-mixed"}[wanted]


def multiplies_bf16(device: torch.device) -> bool:
    """Return True if the device multiplies bf16 in hardware, and this is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return _cpu_has_bf16() and bf16_speedup() >= MIN_BF16_SPEEDUP
    return False


def _cpu_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def bf16_speedup() -> float:
    """Measure how much faster this CPU multiplies matrices in bf16 than in float32 (in about 0.1 s, once a process).

    The instructions alone do not decide it: of the processors with `avx512_bf16` some take half of float32's time,
    others half as long again.
    """
    x, weight = torch.ones(256, 768), torch.ones(768, 768)
    return _shortest(x, weight) / _shortest(x.bfloat16(), weight.bfloat16())


def _shortest(x: Tensor, weight: Tensor) -> float:
    """Return the shortest of several times of one product, in seconds; the shortest is the least disturbed."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return min(times)
