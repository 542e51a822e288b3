"""Precision of training: Lightning's name of a setting on a device."""

from __future__ import annotations

import torch

from unveil.errors import RecipeError
from unveil.model.config.train import Precision


def resolve_precision(wanted: Precision, device: torch.device) -> str:
    """Return Lightning's name of a precision: "32-true", "bf16-mixed" or "16-mixed".

    Raises:
        RecipeError: The setting is 16-mixed on a device without loss scaling.
    """
    if wanted == "auto":
        return "bf16-mixed" if multiplies_bf16(device) else "32-true"
    if wanted == "16-mixed" and device.type != "cuda":
        raise RecipeError(f"precision 16-mixed on {device.type}: needs a CUDA device; use bf16, float32 or auto")
    return {"float32": "32-true", "bf16": "bf16-mixed", "16-mixed": "16-mixed"}[wanted]


def multiplies_bf16(device: torch.device) -> bool:
    """Return True if the device multiplies bf16 in hardware, which is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
