"""Estimate of the memory, disk and time of a run, from its recipe and one measured step; nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unveil.core.rng import SampleRNG
from unveil.io.console import duration, size
from unveil.model.checkpoint_store import versions
from unveil.model.config import AutoencoderRecipe, Recipe
from unveil.model.config.train import Batching
from unveil.train.batch_preparation import to_device
from unveil.train.callbacks import KEEP
from unveil.train.data_order import IndexableItems, check_items, collate
from unveil.train.learner import Learner
from unveil.train.precision import resolve_precision
from unveil.train.variable_size import token_counts

FLOAT = 4  # bytes; weights, gradients, moments and averages are float32
SECONDS = 4.0  # that the measured step may take


@dataclass(frozen=True)
class ResourceEstimate:
    """Estimate of a run; counts of bytes are approximate, and the time is that of this machine."""

    name: str
    items: int
    shape: tuple[int, ...]
    parameters: int
    device: str
    precision: str
    batch: int
    accumulate: int
    steps: int
    activations: int  # bytes for one item
    step_seconds: float

    @property
    def memory(self) -> int:
        """Weights, gradients, two moments and the average, and what one part of a batch keeps for its gradient."""
        return 5 * FLOAT * self.parameters + self.activations * (self.batch // self.accumulate)

    @property
    def checkpoint(self) -> int:
        """Weights, average and moments."""
        return 4 * FLOAT * self.parameters

    @property
    def disk(self) -> int:
        """The checkpoints that are kept and the one being written."""
        return (KEEP + 1) * self.checkpoint

    @property
    def seconds(self) -> float:
        """Time of the whole run, without samples and validation."""
        return self.steps * self.step_seconds

    def facts(self) -> dict[str, Any]:
        """Return the values for JSON."""
        derived = {"memory_bytes": self.memory, "checkpoint_bytes": self.checkpoint, "disk_bytes": self.disk}
        return {**vars(self), **derived, "seconds": round(self.seconds, 1), "versions": versions()}

    def text(self) -> str:
        """Return a text for a person."""
        part = self.batch // self.accumulate
        return "\n".join(
            [
                f"{self.name}: nothing was written",
                f"data         {self.items} items of shape {self.shape}",
                f"parameters   {self.parameters:,}",
                f"batch        {self.batch} = {self.accumulate} x {part}, {self.precision} on {self.device}",
                f"memory       about {size(self.memory)}, of which {size(self.activations * part)} for activations",
                f"disk         about {size(self.disk)}, {size(self.checkpoint)} a checkpoint",
                f"time         {duration(self.seconds)}: {self.steps} steps of {duration(self.step_seconds)} each",
            ]
        )


def estimate(
    recipe: Recipe | AutoencoderRecipe, learner: Learner, dataset: IndexableItems, device: torch.device
) -> ResourceEstimate:
    """Measure one optimiser step with as many items as fit a few seconds, and extrapolate.

    Raises:
        ShapeError: The model does not take items of this shape.
    """
    batching, batch = recipe.train.batching, recipe.train.batch_size
    check_items(dataset, learner.key, learner.raw_keys, None if batching else learner.shape)
    if recipe.train.tokens is not None:
        batch = max(1, round(recipe.train.tokens / float(token_counts(learner.model, dataset).double().mean())))
    precision = resolve_precision(recipe.train.precision, device)
    measured = _Step(learner, dataset, precision, recipe, device)
    activations = measured.activations()
    seconds = measured.seconds(1)
    part = max(1, batch // recipe.train.grad_accum_steps)
    count = max(1, min(part, int(SECONDS / max(seconds, 1e-4))))
    if count > 1:
        measured.seconds(count)  # the first of a size pays for its set-up
        seconds = measured.seconds(count)
    return ResourceEstimate(
        name=recipe.name,
        items=len(dataset),
        shape=learner.shape,
        parameters=sum(p.numel() for p in measured.trained),
        device=str(device),
        precision=precision,
        batch=batch,
        accumulate=recipe.train.grad_accum_steps,
        steps=recipe.train.steps,
        activations=activations,
        step_seconds=seconds * batch / count,
    )


class _Step:
    """Optimiser step with any number of items, at the last step of training, where every part of the loss is active."""

    def __init__(
        self,
        learner: Learner,
        dataset: IndexableItems,
        precision: str,
        recipe: Recipe | AutoencoderRecipe,
        device: torch.device,
    ) -> None:
        self.learner, self.dataset, self.device = learner, dataset, device
        self.step = recipe.train.steps - 1
        self.batching: Batching | None = recipe.train.batching
        parts = [part.to(device).train() for part in (learner.model, learner.auxiliary)]
        self.trained = [parameter for part in parts for parameter in part.parameters()]
        self.optimiser = torch.optim.AdamW(self.trained, lr=0.0)
        self.optimiser.step()  # of no gradient: the first one imports what takes seconds
        half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        self.dtype = half.get(precision)

    def loss(self, count: int) -> Tensor:
        """Return the loss of the first items."""
        learner = self.learner
        indices = [n % len(self.dataset) for n in range(count)]
        items = [self.dataset[n] for n in indices]
        batch = collate(list(range(count)), indices, items, learner.key, learner.raw_keys, self.batching)
        batch = batch._replace(data=to_device(batch.data, self.device))
        streams = SampleRNG(0, batch.numbers, device=self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return learner.loss(batch, streams, self.step, flip=False).value

    def seconds(self, count: int) -> float:
        """Return the wall time of a step."""
        start = time.perf_counter()
        self.loss(count).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def activations(self) -> int:
        """Return the number of bytes that one item stores for the gradient."""
        weights = {p.untyped_storage().data_ptr() for p in self.trained}
        stored: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                stored[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss(1)
        return sum(stored.values())
