"""Memory of a sampling run, compared with what is free before the run begins.

The peak is that of one call of the network at the size of the run, and of the states of the run besides. A bound
suffices for small runs; otherwise the network is followed on the meta device, which computes nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unveil.autoencoders import Identity
from unveil.conditioning.tiled_denoising import MAX_SHARED_SIDE
from unveil.core import guidance
from unveil.errors import OutOfResources
from unveil.io.console import size as shown
from unveil.io.system_resources import free_memory
from unveil.types import Condition, format_size

if TYPE_CHECKING:
    from unveil.core.samplers.loop import SamplingRun
    from unveil.model.model import Model
    from unveil.nn.flops import CallCost

_log = logging.getLogger(__name__)
FLOAT = 4  # bytes
STATES = 8  # tensors of a run besides its network: x, its noise, the estimates, and the history of a multistep sampler
IMAGES = 4  # tensors of the pixels: decoded, limited, rounded to bytes, and those of the batches before
WIDTHS = 16  # bound of the tensors of a network's widest layer that a call holds at once, at every position


def require_memory(
    model: Model, run: SamplingRun, pixels: Sequence[int], tile: Sequence[int] | None = None, *, guided: bool = False
) -> None:
    """Refuse a run for which the memory is too small.

    Args:
        model: Model that generates.
        run: Prepared run of one batch.
        pixels: Shape of one sample in pixels.
        tile: Height and width that the network takes in one call, if it works in tiles.
        guided: The null condition is evaluated too.

    Raises:
        OutOfResources: States what is needed, what is free, and the largest size that fits.
    """
    free, count = free_device_memory(model.device), len(run)
    states = state_bytes(model, count, run.shape, pixels)
    rows = count * (2 if guided and guidance.should_batch(model.device, count) else 1)
    shape = run.shape if tile is None else _tile_shape(model, run.shape, pixels, tile)
    if not free or states + _bound(model.denoiser.network, rows, shape) <= free:
        return
    needed = states
    if states <= free:
        try:
            needed += network_cost(model, run.condition, rows, shape).peak
        except (RuntimeError, TypeError, ValueError, AttributeError) as problem:  # a network of others may need values
            _log.debug("the memory of the network is unknown: %s", problem)
    if needed > free:
        raise too_little_memory(count, pixels, needed, free)


def too_little_memory(count: int, pixels: Sequence[int], needed: float, free: int) -> OutOfResources:
    """Return the error of a run that needs more memory than is free."""
    scale = (free / needed) ** 0.5
    largest = [max(1, math.floor(side * scale / 16) * 16) for side in pixels[-2:]]
    of_frames = f" of {pixels[1]} frames" if len(pixels) == 4 else ""
    what = (
        f"one sample of {format_size(pixels)}" if count == 1 else f"{count:,} samples of {format_size(pixels)} at once"
    )
    fewer = f"a size up to about {format_size(largest)}" if count == 1 else "a smaller batch or size"
    fewer += ", or shorter windows" if of_frames else ""
    return OutOfResources(
        f"not enough memory: {what}{of_frames} takes about {shown(needed)}, and {shown(free)} are free; use {fewer}"
    )


def state_bytes(model: Model, count: int, shape: Sequence[int], pixels: Sequence[int]) -> int:
    """Return the bytes of the states of a run and of its results: samples of a shape of latents, and one in pixels."""
    decoded = 0 if isinstance(model.autoencoder, Identity) else math.prod(pixels)
    return count * FLOAT * (STATES * math.prod(shape) + IMAGES * (decoded or math.prod(pixels)))


def network_cost(model: Model, condition: Condition | None, rows: int, shape: Sequence[int]) -> CallCost:
    """Return the cost of a call of the network for `rows` samples; the memory is that of the model's precision.

    Args:
        model: Model.
        condition: Condition of one or more samples.
        rows: Number of samples.
        shape: Shape of one sample of the network.
    """
    from unveil.nn.flops import CallCost, call_cost  # takes a second, which most runs do not need

    def on_meta(route: Tensor) -> Tensor:
        return torch.empty(rows, *route.shape[1:], device="meta", dtype=route.dtype)

    if condition is not None:
        condition = condition.map(on_meta)
        if condition.concat is not None:
            channels = condition.concat.shape[1]
            condition = replace(condition, concat=torch.empty(rows, channels, *shape[1:], device="meta"))
    inputs = torch.empty(rows, *shape, device="meta"), torch.empty(rows, device="meta"), condition
    cost = call_cost(model.denoiser.network, inputs)
    controls = 0 if model.controls is None else len(model.controls.controls)
    share = 1.0 if model.precision == torch.float32 else 0.75  # norms and sums stay in float32
    return CallCost(cost.multiply_adds, int(cost.peak * share * (1 + controls / 2)))


def free_device_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device; 0: unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_memory()


def _bound(network: nn.Module, rows: int, shape: Sequence[int]) -> int:
    """Return a bound of the memory of a call, of the widest layer."""
    widest = max((max(weight.shape[:2]) for weight in network.parameters() if weight.ndim > 1), default=1)
    return WIDTHS * FLOAT * widest * rows * math.prod(shape[1:])


def _tile_shape(model: Model, shape: Sequence[int], pixels: Sequence[int], tile: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of what the network takes in one call: a tile, or several small ones together."""
    tile_shape = model.autoencoder.latent_shape((*pixels[: len(pixels) - len(tile)], *tile))
    sides = [min(whole, max(side, MAX_SHARED_SIDE)) for whole, side in zip(shape[-2:], tile_shape[-2:], strict=True)]
    return (*tile_shape[:-2], *sides)
