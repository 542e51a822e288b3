"""What a run trains: the part of training that differs between a diffusion model and an autoencoder.

`fit` and the module, the callbacks and the checkpoints know a learner alone; each kind of model has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.model import checkpoint_store
from unveil.train.data_order import Batch, IndexableItems
from unveil.train.signals import Stop


class SampleSheets(Protocol):
    """Sheets of pictures that a run shows as it goes."""

    def draw(self, model: Any, path: Path, columns: int | None) -> None:
        """Writes one sheet, made with the averaged weights."""
        ...


class Validator(Protocol):
    """What a run says of items that never train.

    Attributes:
        from_start: whether it says it before the first step too.
    """

    @property
    def from_start(self) -> bool:
        """Whether there is a line of step 0."""
        ...

    def line(self, model: Any) -> dict[str, Any]:
        """Numbers for the log, by the averaged weights; `validation` is the loss."""
        ...


class Learner(Protocol):
    """How a batch becomes a loss, and what is averaged, kept and shown of a model.

    Attributes:
        model: trained, averaged and saved; `beside` is trained with it, and kept for going on alone: a discriminator.
        key: of the items, what is learned; `raw_keys` of them are read too.
        shape: of one item's data.
        logged: names of the loss's terms that the log states.
    """

    model: Any
    key: str
    raw_keys: list[str]
    shape: tuple[int, ...]
    logged: tuple[str, ...]

    @property
    def beside(self) -> nn.Module:
        """What is trained with the model; without parameters where there is nothing."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        ...

    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """The loss of a batch at a training step; every random number is keyed by step and example.

        Its `t` is NaN where the loss is at no level of noise.
        """
        ...

    def observe(self, step: int, t: Tensor, per_sample: Tensor) -> None:
        """Is shown every finished step: its number, and by example the times and losses."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors that going on needs, beside weights and moments."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts them back.

        Raises:
            WeightsError: one is missing.
        """
        ...

    def compile(self) -> None:
        """Compiles what is trained."""
        ...

    def held_out(self, items: IndexableItems, at_once: int, count: int, seed: int) -> Validator:
        """What says how well items that never train are learned."""
        ...

    def samples(self, items: IndexableItems, seed: int, stop: Stop) -> tuple[SampleSheets, int | None] | None:
        """What draws sheets, and the pictures in a row of them; None where there is nothing to see."""
        ...

    def finish(self, average: Any, items: IndexableItems) -> None:
        """The last thing that is done to the averaged weights, before the last checkpoint."""
        ...

    def averaged(self, average: Any) -> dict[str, dict[str, Tensor]]:
        """The tensors of the averaged model by file name, but for frozen parts, which lie among `files`."""
        ...

    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Everything that a folder of the model holds, but for the manifest."""
        ...

    def load(self, model: Any, folder: Path, which: Any) -> None:
        """Copies the weights of a verified folder into a model: the averaged ones ("ema") or those "trained".

        Raises:
            WeightsError: weights of another shape.
        """
        ...

    def card(self, about: str) -> str:
        """The model's card in Markdown."""
        ...
