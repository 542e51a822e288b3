"""Two operations in one pass over memory, where torch has a kernel for both and no gradient is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear_gelu(x: Tensor, layer: nn.Linear, approximate: str = "none") -> Tensor:
    """The GELU of layer(x): (..., in_features) to (..., out_features).

    On a processor and without gradients this is one call of oneDNN, which computes the GELU while the products are
    at hand. Apart from them it costs a fifth of their time in float32, and half of it in bf16.

    Args:
        approximate: "none" or "tanh", as of `F.gelu`.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if _KERNEL is None or dtype not in (torch.float32, torch.bfloat16) or not _plain(x, layer):
        return F.gelu(layer(x), approximate=approximate)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return _KERNEL(x.to(dtype), layer.weight.to(dtype), bias, "gelu", [], approximate)


def formulas() -> dict[Any, Callable[..., int]]:
    """What these kernels cost, for torch's FlopCounterMode(custom_mapping=...)."""

    def products(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
        return 2 * math.prod(x) * weight[0]

    return {} if _KERNEL is None else {_KERNEL: products}


def _plain(x: Tensor, layer: nn.Linear) -> bool:
    """Whether nothing but the product is wanted: no gradient, no compiling, no hook, no other kind of layer."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    known = type(layer) is nn.Linear and type(x) is Tensor and x.is_cpu and layer.weight.is_cpu and x.numel() > 0
    return known and not wanted and not hooked and not torch.compiler.is_compiling()


def _found() -> Any:
    """The kernel that torch's compiler takes for the two; it is no documented one, so it may be missing."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


_KERNEL = _found()
