"""Learners: the part of training that differs between the kinds of models.

The loop (`trainer`, `lightning_module`, `callbacks`, `state`) uses only a `Learner`. There is one for each kind:
diffusion models, autoencoders, captioners, classifiers and sequence models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.model import checkpoint_store
from unveil.model.config import TrainConfig
from unveil.train import lr_schedule
from unveil.train.data_order import Batch, EpochShuffle, IndexableItems, IndexedDataset
from unveil.train.lr_schedule import Schedule
from unveil.train.signals import Stop


class SampleSheets(Protocol):
    """Sheets of images that a run writes during training."""

    def draw(self, model: Any, path: Path, columns: int | None) -> None:
        """Write one sheet, generated with the EMA weights."""
        ...


class Validator(Protocol):
    """Validation of a model on held-out items.

    Attributes:
        from_start: True if there is also a measurement before the first step.
    """

    @property
    def from_start(self) -> bool:
        """True if there is a measurement at step 0."""
        ...

    def line(self, model: Any) -> dict[str, Any]:
        """Return numbers for the log, measured with the EMA weights; `validation` is the loss."""
        ...


class AdamWOptions(NamedTuple):
    """Options of AdamW that depend on the kind of model, besides those of `TrainConfig`.

    Attributes:
        eps: Number added to the root of the second moment.
        fused: True if one kernel updates all weights; only without a loss scaler.
    """

    eps: float = 1e-8
    fused: bool = True


class Learner(ABC):
    """Loss of a batch, and the parts of a model that are averaged, saved and shown.

    A subclass defines `loss`, `ema_tensors`, `files`, `load` and `card`; the other methods have defaults.

    Attributes:
        model: Model that is trained, averaged and saved.
        auxiliary: Modules that are trained with the model and saved only to resume, such as a discriminator.
        key: Key of the item's training data; the values under `raw_keys` are read too.
        shape: Shape of one item's data.
        logged: Names of the terms of the loss that are logged.
        adamw: Options of the optimiser.
    """

    model: Any
    key: str = ""
    raw_keys: Sequence[str] = ()
    shape: tuple[int, ...] = ()
    logged: tuple[str, ...] = ()
    adamw: AdamWOptions = AdamWOptions()

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.auxiliary: Any = nn.Module()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    # ------------------------------------------------------------------ a step

    def dataset(self, items: IndexableItems, config: TrainConfig) -> Dataset[Batch]:
        """Data set of the batches of a run, by example numbers."""
        order = EpochShuffle(len(items), config.seed)
        return IndexedDataset(items, order, self.key, self.raw_keys, config.batching)

    @abstractmethod
    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """Loss of a batch at a training step.

        Args:
            batch: Examples of the step, or of one part of the step.
            streams: Random numbers keyed by seed, example, step and draw.
            step: Number of the step, from 0.
            flip: True if images are mirrored left-right with probability 1/2.

        Returns:
            Loss; its `t` is NaN if the loss is not at a noise level.
        """

    def schedule(self, config: TrainConfig) -> Schedule:
        """Learning rate schedule, the factor on the peak learning rate at each step."""
        warmup = lr_schedule.warmup_within(config.steps, config.warmup)
        return lr_schedule.linear(config.steps, warmup=warmup, decay=config.lr_decay_ratio)

    def clip(self, parameters: Sequence[nn.Parameter], norm: float, limit: float) -> None:
        """Scale the gradient down if its norm is above the limit."""
        if norm > limit:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)  # pyright: ignore[reportPrivateImportUsage]

    def observe(self, step: int, t: Tensor, per_sample: Tensor) -> None:  # noqa: B027 - a default
        """Record a finished step: its number, and the times and losses of its examples."""

    def compile(self) -> None:
        """Compile the network."""
        self.model.compile()

    # ------------------------------------------------------------------ the state of a run

    def state(self) -> dict[str, Tensor]:
        """Tensors that are needed to resume a run, besides weights and moments."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - a default
        """Restore what `state` returned.

        Raises:
            WeightsError: A tensor is missing.
        """

    # ------------------------------------------------------------------ what a run shows

    def validator(self, items: IndexableItems, at_once: int, count: int, seed: int) -> Validator | None:
        """Return the validation on held-out items; None if there is none."""
        return None

    def sample_sheets(self, items: IndexableItems, seed: int, stop: Stop) -> tuple[SampleSheets, int | None] | None:
        """Return the sample sheets and their number of columns; None if there are none."""
        return None

    # ------------------------------------------------------------------ what a run leaves

    def finish(self, average: Any, items: IndexableItems) -> None:  # noqa: B027 - a default
        """Change the EMA weights one last time, before the last checkpoint."""

    @abstractmethod
    def ema_tensors(self, average: Any) -> dict[str, dict[str, Tensor]]:
        """Tensors of the EMA model by file name; frozen parts are only among `files`."""

    @abstractmethod
    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Files of the model's folder, except the manifest."""

    @abstractmethod
    def load(self, model: Any, folder: Path, which: Any) -> None:
        """Copy the weights of a verified folder into a model: the EMA weights ("ema") or the "trained" ones.

        Raises:
            WeightsError: The weights have another shape.
        """

    @abstractmethod
    def card(self, about: str) -> str:
        """Card of the model in Markdown."""
