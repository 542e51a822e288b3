"""Two fused CPU operations, used if torch has a kernel for them and no gradient is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def linear_geglu(x: Tensor, layer: nn.Linear) -> Tensor:
    """GEGLU of layer(x), its first half times the GELU of the second: (..., in_features) to (..., out_features / 2).

    It uses the fused kernel of `linear_gelu` for each half under the same conditions.
    """
    if _KERNEL is None or not _plain(x, layer) or (dtype := _dtype(x)) is None:
        value, gate = layer(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
    x, weight = x.to(dtype), layer.weight.to(dtype).chunk(2)
    bias = (None, None) if layer.bias is None else layer.bias.to(dtype).chunk(2)
    gate = _KERNEL(x, weight[1], bias[1], "gelu", [], "none")
    if dtype == torch.bfloat16:
        return _KERNEL.binary(x, gate, weight[0], bias[0], "mul")
    return F.linear(x, weight[0], bias[0]).mul_(gate)


def linear_gelu(x: Tensor, layer: nn.Linear, approximate: str = "none") -> Tensor:
    """GELU of layer(x): (..., in_features) to (..., out_features).

    On a CPU without gradients this is one oneDNN call, which computes the GELU as part of the matrix product. A
    separate GELU costs a fifth of the product's time in float32, and half of it in bf16.

    Args:
        approximate: Form of the GELU, "none" or "tanh", as in `F.gelu`.
    """
    if _KERNEL is None or not _plain(x, layer) or (dtype := _dtype(x)) is None:
        return F.gelu(layer(x), approximate=approximate)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return _KERNEL(x.to(dtype), layer.weight.to(dtype), bias, "gelu", [], approximate)


def formulas() -> dict[Any, Callable[..., int]]:
    """Cost of these kernels in FLOPs, for torch's FlopCounterMode(custom_mapping=...)."""

    def products(x: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
        return 2 * math.prod(x) * out_shape[-1]

    return {} if _KERNEL is None else {_KERNEL: products}


def _dtype(x: Tensor) -> torch.dtype | None:
    """Type in which the product is computed; None if the kernel does not support the type."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_computes_bf16()) else None


@cache
def cpu_computes_bf16() -> bool:
    """Return True if oneDNN computes in bf16 on this CPU, which needs AVX-512; torch alone is many times slower."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _plain(x: Tensor, layer: nn.Linear) -> bool:
    """Return True if the kernel applies: no gradient, no compiling, no hook, and a plain linear layer."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    supported = type(layer) is nn.Linear and type(x) is Tensor and x.is_cpu and layer.weight.is_cpu and x.numel() > 0
    return supported and not wanted and not hooked and not torch.compiler.is_compiling()


def _kernel() -> Any:
    """Kernel that torch's compiler uses for both operations. It is undocumented, so it may be missing."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


_KERNEL = _kernel()
