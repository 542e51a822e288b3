"""Cost of one call of a network: multiply-adds, the memory that it takes, and what training keeps for the gradient."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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


class CallCost(NamedTuple):
    """Cost of a call: its multiply-adds, and the most bytes that it holds at once besides weights and inputs."""

    multiply_adds: int
    peak: int


def call_cost(network: nn.Module, inputs: Sequence[Any]) -> CallCost:
    """Cost of a call of a network without gradients, in float32; nothing is computed or allocated.

    The network runs on the meta device. Attention is that of a fused kernel, which holds no matrix of all weights.

    Args:
        network: A network on any device; it is not changed.
        inputs: Arguments of the call, whose tensors are on the meta device.
    """
    model, fused = _meta_copy(network), _FusedAttention()
    with (
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        FlopCounterMode(display=False) as counter,
        _PeakMemory() as memory,
        fused,
    ):
        model(*inputs)
    return CallCost(counter.get_total_flops() // 2 + fused.multiply_adds, memory.peak)


def _meta_copy(network: nn.Module) -> nn.Module:
    """Copy of a network with its weights in float32 on the meta device; what is not a weight is shared or copied."""
    replaced: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        empty = torch.empty_like(tensor, device="meta", dtype=dtype)
        replaced[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, replaced)


class _FusedAttention(TorchFunctionMode):
    """Replaces attention by its output, and counts its multiply-adds."""

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3]
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        self.multiply_adds += (query.numel() + output.numel()) * key.shape[-2]
        return output


class _PeakMemory(TorchDispatchMode):
    """Follows the memory of the tensors of the meta device that operations make.

    A convolution counts its input and output once more while it runs: on a CPU it reorders both.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        del types
        result = function(*args, **(kwargs or {}))
        outputs = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor) and tensor.is_meta]
        for tensor in outputs:
            self._add(tensor.untyped_storage())
        extra = args[0].nbytes + outputs[0].nbytes if "convolution" in str(function) and outputs else 0
        self.peak = max(self.peak, self._live + extra)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._storages:
            return

        def gone(_: object) -> None:
            self._live -= size
            self._storages.pop(place, None)

        self._live += size
        self._storages[place] = weakref.ref(storage, gone)
