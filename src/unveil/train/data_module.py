"""The data of a run as Lightning asks for it: batches by example number, from the step that a run starts at."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from unveil.errors import Error
from unveil.model.config import TrainConfig
from unveil.train.data_order import Batch, BatchPlan, BatchSampler, IndexedDataset
from unveil.train.signals import ignore_in_worker


class DataWorkerError(NamedTuple):
    """What a process that reads data found wrong: the training raises it, whom its words reach as they are."""

    fault: Error


class _Reading(Dataset[Batch | DataWorkerError]):
    """Batches, or what was wrong with one."""

    def __init__(self, numbered: IndexedDataset) -> None:
        self._numbered = numbered

    def __getitems__(self, numbers: list[int]) -> Batch | DataWorkerError:
        try:
            return self._numbered.__getitems__(numbers)
        except Error as problem:
            return DataWorkerError(problem)


class TrainingData(LightningDataModule):
    """Batches of this process from optimiser step `first` to the last one.

    steps: which examples each step takes.
    """

    def __init__(self, numbered: IndexedDataset, config: TrainConfig, first: int, steps: BatchPlan) -> None:
        super().__init__()
        self.steps = steps
        self.numbered = numbered
        self.config = config
        self.first = first

    def train_dataloader(self) -> DataLoader[Batch | DataWorkerError]:
        """One pass over all that is left of the run; what Lightning calls an epoch is the whole of it."""
        config, trainer = self.config, self.trainer
        assert trainer is not None
        numbers = BatchSampler(
            self.first,
            config.steps,
            batch=self.steps,
            parts=config.grad_accum_steps,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return DataLoader(
            _Reading(self.numbered),
            batch_sampler=numbers,
            num_workers=config.num_workers,
            collate_fn=_as_is,
            worker_init_fn=ignore_in_worker,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def on_before_batch_transfer(self, batch: Batch | DataWorkerError, dataloader_idx: int) -> Batch:
        """The batch.

        Raises:
            Error: it could not be read.
        """
        if isinstance(batch, DataWorkerError):
            raise batch.fault
        return batch


def _as_is(batch: Any) -> Any:
    return batch  # `IndexedDataset` has collated it
