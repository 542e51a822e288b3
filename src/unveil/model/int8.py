"""Weights in eight bits, for what is shipped or sent: each row rounded to whole numbers of a step of its own.

A row is the weights of one output. A step of 1/127 of a row's largest weight is off by about 0.7 % of the spread of
normal weights, which is more than bfloat16 is (0.2 %), and takes half of its room.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

STEP = ".step"  # after a tensor's name: those of its rows
LEAST = 4096  # numbers of a tensor that is rounded; biases and gains are as they were
_MOST = 127


def quantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each that is large as int8 beside the steps of its rows (name + ".step", float32).

    Args:
        tensors: of finite numbers, any shapes; rows are along the first dimension.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() < LEAST:
            found[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        step = rows.abs().amax(dim=1) / _MOST
        whole = (rows / step.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
        found |= {name: whole.clamp(-_MOST, _MOST).to(torch.int8).view(tensor.shape), name + STEP: step}
    return found


def is_scale(name: str, others: Collection[str]) -> bool:
    """Whether a tensor of this name is the steps of another one."""
    return name.endswith(STEP) and name.removesuffix(STEP) in others


def dequantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of which some may be rounded, these as float32; others as they are."""
    return {
        name: _times(tensor, tensors[name + STEP]) if name + STEP in tensors else tensor
        for name, tensor in tensors.items()
        if not is_scale(name, tensors)
    }


def _times(whole: Tensor, step: Tensor) -> Tensor:
    """A tensor that was rounded; where the steps are not those of its rows, none of it, which the network refuses."""
    if step.shape != whole.shape[:1]:
        return whole[:0]
    return whole.float() * step.float().view(-1, *[1] * (whole.ndim - 1))
