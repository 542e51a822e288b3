"""Cost of one call of a network: multiply-adds, and the memory that training keeps for the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unveil.nn.cpu_kernels import formulas


def multiply_adds(model: nn.Module, inputs: Sequence[Any]) -> int:
    """Number of multiply-adds of one call, in matrix products and convolutions; meta tensors are possible."""
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2


def activations(model: nn.Module, inputs: Sequence[Any]) -> int:
    """Number of bytes that one call keeps for the gradient, in the type of the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        result = model(*inputs)
    del result
    return sum(sizes.values())
