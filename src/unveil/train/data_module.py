"""The data of a run as a LightningDataModule: batches by example number, from a given step on."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from unveil.errors import Error
from unveil.model.config import TrainConfig
from unveil.train.data_order import Batch, BatchPlan, BatchSampler, FixedBatch
from unveil.train.lightning_module import TrainingModule
from unveil.train.signals import ignore_in_worker


class DataWorkerError(NamedTuple):
    """An error of a process that reads data; the training process raises it with its message unchanged."""

    fault: Error


class _Reading(Dataset[Batch | DataWorkerError]):
    """Batches by example numbers, or the error of reading one."""

    def __init__(self, examples: Dataset[Batch]) -> None:
        self._examples: Any = examples

    def __getitems__(self, numbers: list[int]) -> Batch | DataWorkerError:
        try:
            return self._examples.__getitems__(numbers)
        except Error as problem:
            return DataWorkerError(problem)


class TrainingData(LightningDataModule):
    """Batches of this process up to the last optimiser step.

    Args:
        examples: Batches by example numbers, as `Learner.dataset` returns them.
        config: Settings of training.
        first: Optimiser step that the Trainer counts from; 0 in a Trainer that starts or resumes a run itself.
        steps: Plan of the examples of each step; None: `config.batch_size` examples each.
    """

    def __init__(
        self, examples: Dataset[Batch], config: TrainConfig, first: int = 0, steps: BatchPlan | None = None
    ) -> None:
        super().__init__()
        self.steps: BatchPlan = steps or FixedBatch(config.batch_size)
        self.examples = examples
        self.config = config
        self.first = first

    def train_dataloader(self) -> DataLoader[Batch | DataWorkerError]:
        """Return one pass over the rest of the run, which is Lightning's epoch."""
        config, trainer = self.config, self.trainer
        assert trainer is not None
        numbers = BatchSampler(
            self.first,
            config.steps,
            batch=self.steps,
            parts=config.grad_accum_steps,
            rank=trainer.global_rank,
            world=trainer.world_size,
            start=cast(TrainingModule, trainer.lightning_module).step,
        )
        return DataLoader(
            _Reading(self.examples),
            batch_sampler=numbers,
            num_workers=config.num_workers,
            collate_fn=_as_is,
            worker_init_fn=ignore_in_worker,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )

    def on_before_batch_transfer(self, batch: Batch | DataWorkerError, dataloader_idx: int) -> Batch:
        """Return the batch, or raise the error of reading it.

        Raises:
            Error: The batch could not be read.
        """
        if isinstance(batch, DataWorkerError):
            raise batch.fault
        return batch


def _as_is(batch: Any) -> Any:
    return batch  # the data set has collated it
