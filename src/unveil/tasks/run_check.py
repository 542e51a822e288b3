"""What a run takes, before it begins: memory for its results, space on the disk, and time.

The memory of the network's calls is compared with what is free where a batch begins, see `model.memory_estimate`.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from unveil.errors import Cancelled, Error, OutOfResources
from unveil.io.console import duration
from unveil.io.console import size as shown
from unveil.io.system_resources import existing_folder, free_disk
from unveil.model import memory_estimate
from unveil.model.model import Model, with_last_dims
from unveil.model.shapes import vae_scale_factor
from unveil.tasks.task import Task, TaskContext, Workload
from unveil.types import format_size

if TYPE_CHECKING:
    from unveil.types import Condition

LONG = 600.0  # seconds from which on a run needs a confirmation
SPEED = {"cpu": 1e10, "mps": 3e11, "cuda": 1e12}  # operations per second that any machine has
CALLS = 500  # of a sampler that decides while it runs
RECORD = 1000  # bytes that a result takes in the lists of a run: its name, seed and metadata
BLOCK = 4096  # bytes of a disk that a file takes at least
METADATA = 2000  # bytes of an image's metadata
VIDEO_SHARE = {".png": 1.0, "": 1.0, ".apng": 1.0, ".gif": 0.7, ".webp": 0.3}  # of the pixels' bytes; else a tenth
_log = logging.getLogger(__name__)


class PlannedRun(NamedTuple):
    """A run that is to begin.

    Attributes:
        results: Number of results.
        size: Height and width of a result, of a video its frames before them.
        at_once: Frames of a video that are generated at once; 1 of images.
        inputs: (frames, height, width) of the input files, by field.
        cond: Conditions of the request, by key.
        out: File or folder of the results.
        batch: Number of results that are generated at once.
        tiled: Share of the network calls that a result takes in tiles of the model's own size; None: it takes none.
    """

    results: int
    size: tuple[int, ...]
    at_once: int
    inputs: Mapping[str, tuple[int, int, int]]
    cond: Mapping[str, Sequence[Any]]
    out: Path
    batch: int = 1
    tiled: float | None = None


def check_run(task: Task, model: Model, context: TaskContext, planned: PlannedRun) -> None:
    """Refuse a run that is impossible here, and ask about one that takes more than ten minutes.

    Raises:
        OutOfResources: Memory or disk are too small, or the run is long and was not confirmed.
        Cancelled: The answer was no.
    """
    _require_memory(model, planned)
    _require_disk(model, planned)
    seconds = estimated_seconds(task, model, planned)
    if context.confirmed or seconds is None or seconds <= LONG:
        return
    what = f"{_described(planned)} will take about {duration(seconds)} on this {model.device.type}"
    answer = context.console.ask(f"{what}. Start?")
    if answer is None:
        raise OutOfResources(f"{what}; start it with --yes, or use a smaller number, size or length, or fewer steps")
    if not answer:
        raise Cancelled(f"{what}; not started")


def estimated_seconds(task: Task, model: Model, planned: PlannedRun) -> float | None:
    """Estimate the duration of a run, of one or two calls of the network; None: surely short, or unknown.

    Raises:
        OutOfResources: The network takes more memory at this size than is free.
    """
    settings = model.sampling.changed(getattr(task, "sampling_changes", {}))
    calls = (settings.nfe or CALLS) * (2 if settings.guidance.scale != 1 else 1)
    load = Workload(model.shape, lambda length, times: calls * (times if length else 1), planned.inputs)
    inputs = planned.results / getattr(task, "results", planned.results)
    pixels = task.cost(load) * inputs * 1e6  # of all calls
    parameters = sum(weight.numel() for weight in model.denoiser.network.parameters())
    if 2 * parameters * pixels / vae_scale_factor(model) ** 2 <= LONG * SPEED[model.device.type]:
        return None
    try:
        return pixels * _seconds_per_pixel(model, planned)
    except OutOfResources:
        raise
    except (Error, RuntimeError, TypeError, ValueError, AttributeError) as problem:  # a network of others
        _log.debug("the time of the network is unknown: %s", problem)
        return None


def _seconds_per_pixel(model: Model, planned: PlannedRun) -> float:
    """Return the time of a call by its pixels: that of the model's own size, more where attention sees more.

    Raises:
        OutOfResources: The network takes more memory at this size than is free.
    """
    rows = max(1, min(planned.batch, planned.results))
    condition = _condition(model, planned, rows)
    trained = model.autoencoder.latent_shape(model.shape)
    each = min(_seconds(model, trained, condition, rows) for _ in range(2)) / rows / math.prod(model.shape[1:])
    size = _at_once(model, planned)
    if planned.tiled is not None:
        return each * planned.tiled
    if math.prod(size) <= 1.2 * math.prod(model.shape[1:]):
        return each
    pixels = with_last_dims(model.shape, size)
    shape = model.autoencoder.latent_shape(pixels)
    here, base = (memory_estimate.network_cost(model, condition, 1, shape) for shape in (shape, trained))
    free = memory_estimate.free_device_memory(model.device)
    if free and (needed := here.peak + memory_estimate.state_bytes(model, 1, shape, pixels)) > free:
        raise memory_estimate.too_little_memory(1, pixels, needed, free)
    growth = here.multiply_adds / base.multiply_adds * math.prod(trained[1:]) / math.prod(shape[1:])
    return each * max(1.0, growth)


def _condition(model: Model, planned: PlannedRun, rows: int) -> Condition | None:
    """Return the condition of the first result, for a number of rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.encode({key: list(values[:1]) * rows for key, values in planned.cond.items()}, rows)[0]


def _seconds(model: Model, shape: Sequence[int], condition: Condition | None, rows: int) -> float:
    """Measure one call of the network."""
    x, t = torch.zeros(rows, *shape, device=model.device), torch.zeros(rows, device=model.device)
    begun = time.perf_counter()
    with torch.no_grad(), torch.autocast(x.device.type, model.precision, enabled=model.precision != torch.float32):
        model.denoiser.network(x, t, condition)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _at_once(model: Model, planned: PlannedRun) -> tuple[int, ...]:
    """Return the size of what is generated at once, of a video with its frames."""
    return (planned.at_once, *planned.size[-2:]) if model.is_video else planned.size[-2:]


def _require_memory(model: Model, planned: PlannedRun) -> None:
    free = memory_estimate.free_device_memory(model.device)
    pixels = with_last_dims(model.shape, _at_once(model, planned))
    needed = memory_estimate.state_bytes(model, 1, (), pixels)
    if free and needed > free:
        with suppress(Error, RuntimeError, TypeError, ValueError, AttributeError):
            shape = model.autoencoder.latent_shape(pixels if planned.tiled is None else model.shape)
            needed += memory_estimate.network_cost(model, _condition(model, planned, 1), 1, shape).peak
        raise memory_estimate.too_little_memory(1, pixels, needed, free)
    if free and planned.results * RECORD > free:
        raise OutOfResources(
            f"not enough memory: the list of {planned.results:,} results alone takes about "
            f"{shown(planned.results * RECORD)}, and {shown(free)} are free; generate fewer at once, with --seed or "
            "--start-index for the next ones"
        )


def _require_disk(model: Model, planned: PlannedRun) -> None:
    channels, suffix = model.shape[0], planned.out.suffix.lower()
    values = channels * math.prod(planned.size)
    if len(planned.size) == 3:
        needed = planned.results * int(values * VIDEO_SHARE.get(suffix, 0.1))
    else:
        needed = (planned.results if suffix != ".png" else 1) * max(BLOCK, values + METADATA)
    free = free_disk(planned.out)
    if free is not None and needed > free:
        raise OutOfResources(
            f"{_described(planned)} take up to {shown(needed)} on the disk of {existing_folder(planned.out)}, and "
            f"{shown(free)} are free; free some space, use another --out, or generate fewer or smaller ones"
        )


def _described(planned: PlannedRun) -> str:
    what = "image" if len(planned.size) == 2 else f"video of {planned.size[0]:,} frames"
    several = what if planned.results == 1 else what.replace("image", "images").replace("video", "videos")
    return f"{planned.results:,} {several} of {format_size(planned.size)}"
