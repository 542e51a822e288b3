"""Networks without memory: for their keys and shapes, or to be filled from a file."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Undrawn(TorchFunctionMode):
    """Inside, initial values are not drawn into tensors of the meta device, and no garbage is looked for.

    Drawing there does nothing, but it imports all of torch's compiler: a second, and 70 MB. And the many modules make
    Python look for garbage in all that was imported, which takes as long as making them.
    """

    def __enter__(self) -> Self:
        """Begins."""
        self.collects = gc.isenabled()
        gc.disable()
        return super().__enter__()

    def __exit__(self, *problem: Any) -> None:
        """Ends; garbage is looked for as before."""
        super().__exit__(*problem)
        if self.collects:
            gc.enable()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__module__", None) == "torch.nn.init" and isinstance(given, Tensor) and given.is_meta:
            return given
        return func(*args, **kwargs)


class Unfilled(Undrawn):
    """Parameters made inside have a shape and no memory; tables and buffers, which are computed, are real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return super().__torch_function__(func, types, args, kwargs)


@contextmanager
def weightless() -> Iterator[None]:
    """Whatever is made inside has a shape and no memory, tables and buffers too."""
    with torch.device("meta"), Undrawn():
        yield
