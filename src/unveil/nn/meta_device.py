"""Networks without memory: for their keys and shapes, or to be filled from a file."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SkipInit(TorchFunctionMode):
    """Inside, initial values are not drawn into tensors of the meta device.

    Drawing there does nothing, but it imports all of torch's compiler: a second, and 70 MB.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensor = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__module__", None) == "torch.nn.init" and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


class EmptyParameters(SkipInit):
    """Parameters made inside have a shape and no memory; tables and buffers, which are computed, are real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def meta_device() -> Iterator[None]:
    """Whatever is made inside has a shape and no memory, tables and buffers too."""
    with torch.device("meta"), SkipInit():
        yield


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Inside, Python collects no garbage.

    Thousands of new modules and tensors make it search all that was imported, which takes as long as they.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
