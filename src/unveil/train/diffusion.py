"""Training of diffusion models: the learner of a denoiser with its conditioners, for any objective."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from unveil.conditioning.class_label import Label
from unveil.conditioning.controlnet import with_controlnets
from unveil.conditioning.diffusion_forcing import DiffusionForcingLoss
from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import SecondMoment
from unveil.errors import WeightsError
from unveil.model import Model, checkpoint_store, model_folder
from unveil.model.config.train import Batching
from unveil.model.model_card import card
from unveil.train.batch_preparation import fixed_subset, prepare
from unveil.train.data_order import Batch, IndexableItems
from unveil.train.learner import Learner
from unveil.train.signals import Stop
from unveil.train.variable_size import VariableSizeLoss
from unveil.train.vocabulary import drop_unknown_captions

if TYPE_CHECKING:  # with these comes Lightning, which takes seconds
    from unveil.train.callbacks import Samples, ValidationLoss
    from unveil.train.lightning_module import Objective

SHEET = 16  # samples on a sheet, or two rows of the classes


class DiffusionLearner(Learner):
    """Learner of a diffusion model: a denoiser with its conditioners.

    Args:
        model: Model that is trained.
        objective: Loss that is minimised.
        key: Key of the item's training data.
        batching: Method of computing videos of different sizes together; None: all have the model's size.
    """

    def __init__(self, model: Model, objective: Objective, key: str, batching: Batching | None = None) -> None:
        super().__init__(model)
        self.objective: Any = (
            objective if batching is None else VariableSizeLoss(cast(DiffusionForcingLoss, objective), batching)
        )
        self.batching: Batching | None = batching
        self.key = key
        conditioners: list[Any] = list(model.conditioners.values())
        self.raw_keys = [str(conditioner.key) for conditioner in conditioners]
        self.shape = model.shape

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def loss(self, batch: Batch, streams: SampleRNG, step: int, flip: bool) -> LossOutput:
        """Loss of the objective."""
        x0, condition = prepare(self.model, batch, streams, step, flip)
        return self.objective(with_controlnets(self.model.denoiser, self.model.controls), x0, condition, streams, step)

    def observe(self, step: int, t: Tensor, per_sample: Tensor) -> None:
        """Update the objective with times and losses."""
        self.objective.observe(self.model.process, t, per_sample)

    def state(self) -> dict[str, Tensor]:
        """Statistics of the timestep sampling."""
        time = self._time()
        return {} if time is None else {f"time.{key}": value for key, value in time.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the statistics of the timestep sampling.

        Raises:
            WeightsError: A tensor is missing.
        """
        time = self._time()
        if time is None:
            return
        wanted = [f"time.{key}" for key in time.state_dict()]
        if missing := [key for key in wanted if key not in state]:
            raise WeightsError(f"the state of training lacks {', '.join(missing)}; use another checkpoint")
        time.load_state_dict({key.removeprefix("time."): state[key] for key in wanted})

    def compile(self) -> None:
        """Compile the network."""
        self.model.compile_network()

    def validator(self, items: IndexableItems, at_once: int, count: int, seed: int) -> ValidationLoss:
        """Validation by the objective at fixed times and noise."""
        from unveil.train.callbacks import ValidationLoss

        controls = self.model.controls
        hints = [] if controls is None else [control.key for control in controls.controls]
        batch = self._fixed(items, count)
        return ValidationLoss(batch, self.objective, seed, at_once, hints)

    def sample_sheets(self, items: IndexableItems, seed: int, stop: Stop) -> tuple[Samples, int | None] | None:
        """Sample sheets with two rows of the classes, or with images for the conditions of some items."""
        from unveil.train.callbacks import Samples

        if len(self.shape) not in (3, 4) or self.shape[0] not in (1, 3):
            return None
        conditioners: list[Any] = list(self.model.conditioners.values())
        if len(conditioners) == 1 and isinstance(conditioners[0], Label):
            classes = min(conditioners[0].classes, SHEET)
            raw: Mapping[str, Any] = {conditioners[0].key: list(range(classes)) * 2}
            return Samples(raw, 2 * classes, seed, stop), classes
        count = min(SHEET, len(items))
        return Samples(self._fixed(items, count).raw, count, seed, stop), None

    def _fixed(self, items: IndexableItems, count: int) -> Batch:
        """Return some items, spread evenly."""
        batch = fixed_subset(items, count, self.key, self.raw_keys, self.batching)
        return batch._replace(raw=drop_unknown_captions(self.model, batch.raw))

    def ema_tensors(self, average: Model) -> dict[str, dict[str, Tensor]]:
        """Tensors of denoiser and conditioners by file name; the autoencoder is frozen."""
        return {
            name: tensors
            for name, tensors in checkpoint_store.weight_files(average).items()
            if name != checkpoint_store.AUTOENCODER
        }

    def files(self, about: str) -> dict[str, checkpoint_store.Content]:
        """Files of the model with the trained weights."""
        return checkpoint_store.model_files(self.model, about=about)

    def load(self, model: Model, folder: Path, which: model_folder.WeightSet) -> None:
        """Copy the weights of a folder into the model."""
        model_folder.load_into(model, folder, which)

    def card(self, about: str) -> str:
        """Card of the model."""
        return card(self.model, about)

    def _time(self) -> SecondMoment | None:
        time = getattr(self.objective, "time", None)
        return time if isinstance(time, SecondMoment) else None
