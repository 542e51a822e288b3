"""The data of a run as Lightning asks for it: batches by example number, from the step that a run starts at."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from unveil.config import TrainConfig
from unveil.train.order import Batch, Numbered, Numbers, Steps
from unveil.train.signals import ignore_in_worker


class TrainingData(LightningDataModule):
    """Batches of this process from optimiser step `first` to the last one.

    steps: which examples each step takes.
    """

    def __init__(self, numbered: Numbered, config: TrainConfig, first: int, steps: Steps) -> None:
        super().__init__()
        self.steps = steps
        self.numbered = numbered
        self.config = config
        self.first = first

    def train_dataloader(self) -> DataLoader[Batch]:
        """One pass over all that is left of the run; what Lightning calls an epoch is the whole of it."""
        config, trainer = self.config, self.trainer
        assert trainer is not None
        numbers = Numbers(
            self.first,
            config.steps,
            batch=self.steps,
            parts=config.accumulate,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return DataLoader(
            self.numbered,
            batch_sampler=numbers,
            num_workers=config.workers,
            collate_fn=_as_is,
            worker_init_fn=ignore_in_worker,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )


def _as_is(batch: Any) -> Any:
    return batch  # `Numbered` has collated it
