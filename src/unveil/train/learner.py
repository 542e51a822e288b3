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
    """Sheets of images that a run writes as it goes."""

    def draw(self, model: Any, path: Path, columns: int | None) -> None:
        """Write one sheet, made with the EMA weights."""
        ...


class Validator(Protocol):
    """Measures a model on items that never train.

    Attributes:
        from_start: True if there is a measurement before the first step too.
    """

    @property
    def from_start(self) -> bool:
        """True if the log has a line of step 0."""
        ...

    def line(self, model: Any) -> dict[str, Any]:
        """Numbers for the log, by the EMA weights; `validation` is the loss."""
        ...


class AdamWOptions(NamedTuple):
    """Options of AdamW that belong to a kind of model, beside those of `TrainConfig`.

    eps: added to the root of the second moment. fused: one kernel for all weights; without a loss scaler only.
    """

    eps: float = 1e-8
    fused: bool = True


class Learner(ABC):
    """Loss of a batch, and the parts of a model that are averaged, saved and shown.

    A subclass defines `loss`, `averaged`, `files`, `load` and `card`; everything else has a default.

    Attributes:
        model: Model that is trained, averaged and saved.
        auxiliary: Modules that are trained with the model and saved only to resume, such as a discriminator.
        key: The items' key of the training data; `raw_keys` are read too.
        shape: Shape of one item's data.
        logged: Names of the loss's terms that the log has.
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
        """The batches of a run, by example numbers."""
        order = EpochShuffle(len(items), config.seed)
        return IndexedDataset(items, order, self.key, self.raw_keys, config.batching)

    @abstractmethod
    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """The loss of a batch at a training step.

        Args:
            batch: The step's examples, or those of one part of the step.
            streams: Random numbers keyed by seed, example, step and draw.
            step: Number of the step, from 0.
            flip: Mirror every second image.

        Returns:
            The loss, whose `t` is NaN where it is at no noise level.
        """

    def schedule(self, config: TrainConfig) -> Schedule:
        """The factor on the learning rate at each step."""
        return lr_schedule.linear(config.steps, warmup=config.warmup, decay=config.lr_decay_ratio)

    def clip(self, parameters: Sequence[nn.Parameter], norm: float, limit: float) -> None:
        """Scale a gradient whose norm is above the limit down to it."""
        if norm > limit:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, limit / norm)  # pyright: ignore[reportPrivateImportUsage]

    def observe(self, step: int, t: Tensor, per_sample: Tensor) -> None:  # noqa: B027 - a default
        """Follow a finished step: its number, and the times and losses of its examples."""

    def compile(self) -> None:
        """Compile the network."""
        self.model.compile()

    # ------------------------------------------------------------------ the state of a run

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs, beside weights and moments."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - a default
        """Restore what `state` returned.

        Raises:
            WeightsError: A tensor is missing.
        """

    # ------------------------------------------------------------------ what a run shows

    def validator(self, items: IndexableItems, at_once: int, count: int, seed: int) -> Validator | None:
        """A measurement on items that never train; None where there is none."""
        return None

    def sample_sheets(self, items: IndexableItems, seed: int, stop: Stop) -> tuple[SampleSheets, int | None] | None:
        """Return the sample sheets and their number of columns; None if there are none."""
        return None

    # ------------------------------------------------------------------ what a run leaves

    def finish(self, average: Any, items: IndexableItems) -> None:  # noqa: B027 - a default
        """Change the EMA weights one last time, before the last checkpoint."""

    @abstractmethod
    def ema_tensors(self, average: Any) -> dict[str, dict[str, Tensor]]:
        """Tensors of the averaged model by file name; frozen parts are among `files` only."""

    @abstractmethod
    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Everything that a folder of the model holds, except the manifest."""

    @abstractmethod
    def load(self, model: Any, folder: Path, which: Any) -> None:
        """Copy the weights of a verified folder into a model: the averaged ones ("ema") or those "trained".

        Raises:
            WeightsError: Weights of another shape.
        """

    @abstractmethod
    def card(self, about: str) -> str:
        """The model's card in Markdown."""
