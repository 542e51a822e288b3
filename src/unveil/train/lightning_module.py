"""The LightningModule: from a batch to a loss, a checked gradient, one AdamW step and one step of the EMA.

`unveil.train.fit` uses it in a run folder. It can also be used in your own Lightning Trainer:

    module = TrainingModule(learner, config)
    Trainer(max_steps=config.steps, accumulate_grad_batches=config.grad_accum_steps).fit(
        module, datamodule=TrainingData(learner.dataset(items, config), config)
    )

Precision, devices, logging and checkpoints are then those of the Trainer; its checkpoints contain the EMA weights and
all that is needed to resume bit for bit.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from unveil.core.denoiser import Denoiser
from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.core.rng import key as hash_of
from unveil.errors import RecipeError
from unveil.model.config import TrainConfig
from unveil.train.batch_preparation import to_device
from unveil.train.data_order import Batch, BatchPlan, FixedBatch
from unveil.train.ema import Ema
from unveil.train.learner import Learner
from unveil.types import Condition

# Beyond it AdamW's second moment, a square in float32, would overflow.
LARGEST_NORM = 1e18


class Objective(Protocol):
    """Loss that training minimises, such as `core.objective.DiffusionLoss`."""

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, streams: SampleRNG, step: int
    ) -> LossOutput:
        """Return the loss of a batch at a training step."""
        ...

    def at(self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, t: Tensor, noise: Tensor) -> LossOutput:
        """Return the loss at given times and noise, for validation."""
        ...

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Record a finished step by its times and losses."""
        ...


class StepOutput(NamedTuple):
    """Result of one optimiser step, the same on every process.

    Attributes:
        step: Number of steps taken, this one included.
        loss: Mean loss over the batch.
        rate: Learning rate.
        norm: Norm of the model's gradient before clipping.
        numbers, t, per_sample: Numbers, times and losses of the examples, (batch,), in the order of the numbers; t is
            NaN if the loss is not at a noise level.
        terms: Means of the logged terms of the loss, NaN for a missing one.
        stop_requests: Requests to stop, summed over processes.
        fault: Description of what was not finite; None: all was.
    """

    step: int
    loss: float
    rate: float
    norm: float
    numbers: Tensor
    t: Tensor
    per_sample: Tensor
    terms: dict[str, float]
    stop_requests: list[float]
    fault: dict[str, Any] | None = None


class ReducedStats(NamedTuple):
    """Result of one exchange between the processes; the fields are those of `StepOutput`."""

    numbers: Tensor
    t: Tensor
    per_sample: Tensor
    loss: float
    terms: dict[str, float]
    stop_requests: list[float]


class StopSignals(Protocol):
    """Source of requests to stop a run; each entry above 0 is one."""

    def requests(self) -> list[float]:
        """Return the requests, always the same number of entries."""
        ...


class NoStopSignals:
    """Source without any request to stop."""

    def requests(self) -> list[float]:
        """Return an empty list."""
        return []


class TrainingModule(LightningModule):
    """A model in training.

    Args:
        learner: Model, its loss and its files.
        config: Settings of training; precision and devices are those of the Trainer.
        stop_signals: Reasons to stop that all processes exchange.
        steps: Plan of the examples of each step; None: `config.batch_size` examples each.

    Attributes:
        step: Number of optimiser steps taken, skipped ones included.
        outcome: Result of the optimiser step that the last forward pass completed; None inside a step.
        skipped: Number of non-finite steps; `in_a_row` is the number of the most recent ones in a row.
        rolled_back: Number of times that the run returned to an earlier checkpoint.
        ema: Averaged model; created when training starts, on the device of training.
        observed: True if callbacks or loggers beside those of a run get the metrics; the run writes the loggers.
    """

    def __init__(
        self,
        learner: Learner,
        config: TrainConfig,
        *,
        stop_signals: StopSignals | None = None,
        steps: BatchPlan | None = None,
    ) -> None:
        super().__init__()
        self.learner = learner
        self.steps: BatchPlan = steps or FixedBatch(config.batch_size)
        self.model: nn.Module = learner.model
        self.auxiliary: nn.Module = learner.auxiliary
        self.config = config
        self.schedule = learner.schedule(config)
        self._stop_signals = stop_signals or NoStopSignals()
        self.step = self.skipped = self.in_a_row = self.rolled_back = 0
        self.outcome: StepOutput | None = None
        self.ema: Ema[Any] | None = None
        self.observed = False
        self.optimizer: AdamW | None = None
        self._passes: list[tuple[list[int], LossOutput]] = []  # their losses are means over their parts of the step
        self._before: dict[str, Tensor] | None = None  # the learner's state before the step; None between steps
        self._first_sums: list[float] = []  # of the weights, before the optimiser's first step
        self._loaded: dict[str, Any] | None = None  # of a checkpoint of Lightning, until the average exists
        self.model.train()
        self.auxiliary.train()

    # ------------------------------------------------------------------ what Lightning calls

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW, fused if gradients need no unscaling before it.

        The auxiliary modules are a second parameter group, which is clipped separately. AdamW updates each value
        separately, so that one optimiser with two groups is equal to two optimisers.

        Raises:
            RecipeError: The Trainer accumulates another number of parts than the config.
        """
        config, options = self.config, self.learner.adamw
        if self.trainer.accumulate_grad_batches != config.grad_accum_steps:
            raise RecipeError(
                f"train.grad_accum_steps = {config.grad_accum_steps}: the Trainer has accumulate_grad_batches = "
                f"{self.trainer.accumulate_grad_batches}; make them equal"
            )
        trained = [[p for p in part.parameters() if p.requires_grad] for part in (self.model, self.auxiliary)]
        self.optimizer = AdamW(
            [{"params": group} for group in trained if group],
            lr=config.lr,
            betas=config.adam_betas,
            eps=options.eps,
            weight_decay=config.weight_decay,
            fused=options.fused and self.scaler is None,  # with a scaler, the fused one hides the true gradients
        )
        return self.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one part of the batch; every random number in it is keyed by step and example."""
        part = batch_idx % self.config.grad_accum_steps
        if part == 0:
            self.outcome = None
            self._passes.clear()
            self._before = self.learner.state()
        # The global generator, which a network's dropout uses: a resumed run draws the same.
        _seed(hash_of(self.config.seed, self.step, part, self.global_rank) >> 1, self.device)
        streams = SampleRNG(self.config.seed, batch.numbers, device=self.device)
        loss = self.learner.loss(batch, streams, self.step, self.config.random_flip)
        share = self._share(batch.numbers)
        if share != 1:  # so that the mean over parts is that over all examples
            loss = loss._replace(value=loss.value * share)
        self._passes.append((batch.numbers, loss))
        return loss.value

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move the batch's tensors to the device; Lightning would visit every number of the batch too."""
        moved = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.raw.items()}
        return Batch(batch.numbers, to_device(batch.data, device), moved)

    def on_train_start(self) -> None:
        """Create the average if no callback has, and restore the state of a Lightning checkpoint."""
        if self.ema is None:
            self.start_average()
        if self._loaded is not None:
            self.average.model.load_state_dict(self._loaded["ema"])
            self.average.updates = self._loaded["ema_updates"]
            self._loaded = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the average, the counters and the learner's state to a Lightning checkpoint."""
        checkpoint["unveil"] = {
            "step": self.step,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "rolled_back": self.rolled_back,
            "ema": self.average.model.state_dict(),
            "ema_updates": self.average.updates,
            "learner": self.learner.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` added; the average is restored once it exists."""
        loaded = checkpoint["unveil"]
        self.step, self.skipped, self.in_a_row = loaded["step"], loaded["skipped"], loaded["in_a_row"]
        self.rolled_back = loaded.get("rolled_back", 0)
        self.learner.restore(loaded["learner"])
        self._loaded = loaded

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take one step: the closure computes the gradient, which `on_before_optimizer_step` then checks."""
        rate = self.config.lr * self.schedule(self.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step(closure=optimizer_closure)
        outcome = cast(StepOutput, self.outcome)
        self.step += 1
        self._before = None
        if outcome.fault is None:
            self.in_a_row = 0
            self.average.update()
            self.learner.observe(self.step, outcome.t, outcome.per_sample)
        elif not outcome.fault["rescaled"]:
            self.in_a_row += 1
            self.skipped += 1
        if self.trainer.loggers or self.observed:
            metrics = {"loss": outcome.loss, "lr": outcome.rate, "grad_norm": outcome.norm}
            self.log_dict(metrics, logger=not self.observed)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, or remove it on every process if the loss or the gradient is not finite.

        Without gradients the optimiser does not change weights and moments.
        """
        stats = self._reduced_stats()
        groups = [[p for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
        norms = [
            torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in group]).item() if group else 0.0
            for group in groups
        ]
        fault = None
        if not (math.isfinite(stats.loss) and all(norm < LARGEST_NORM for norm in norms)):
            fault = self._fault(stats, max(norms, key=lambda norm: (not math.isfinite(norm), norm)))
            for parameter in (p for group in groups for p in group):
                parameter.grad = None
        elif self.config.grad_clip_norm:
            for group, norm in zip(groups, norms, strict=True):
                self.learner.clip(group, norm, self.config.grad_clip_norm)
        if self.step == 0:
            self._first_sums = self._weight_sums()
        rate = optimizer.param_groups[0]["lr"]
        self.outcome = StepOutput(
            self.step + 1, stats.loss, rate, norms[0], stats.numbers, stats.t, stats.per_sample, stats.terms,
            stats.stop_requests, fault,
        )  # fmt: skip

    # ------------------------------------------------------------------ the average, and what a step amounts to

    @property
    def average(self) -> Ema[Any]:
        """EMA of the weights, which exists once training has started."""
        assert self.ema is not None
        return self.ema

    def start_average(self) -> None:
        """Create the EMA, once the model is on the device of training."""
        self.ema = Ema(self.model, self.config.ema_decay)

    def undo(self) -> bool:
        """Return the learner to its state before the step in which an error occurred, and remove the gradients.

        Returns:
            False if the optimiser may have changed weights or moments already, so that the step cannot be repeated.
        """
        if self._before is not None:
            self.learner.restore(self._before)
            self._before = None
        self._passes.clear()
        self.zero_grad(set_to_none=True)
        in_optimizer = self.outcome is not None and self.outcome.step > self.step
        return not in_optimizer or (self.step == 0 and self._first_sums == self._weight_sums())

    def _weight_sums(self) -> list[float]:
        """Return the sum of each weight, which an update changes."""
        weights = [p.detach() for part in (self.model, self.auxiliary) for p in part.parameters() if p.requires_grad]
        return [weight.sum(dtype=torch.float64).item() for weight in weights]

    @property
    def scaler(self) -> Any | None:
        """Loss scaler of 16-bit training; None if there is none."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _reduced_stats(self) -> ReducedStats:
        """Gather the step's examples from all processes by number, the mean loss and terms, and the stop requests."""
        numbers = torch.tensor([n for part, _ in self._passes for n in part], dtype=torch.float64)
        t = torch.cat([loss.t.double().cpu() for _, loss in self._passes])
        per_sample = torch.cat([loss.per_sample.flatten() for _, loss in self._passes]).cpu().double()
        value = torch.stack([loss.value.detach() for _, loss in self._passes]).cpu().double().mean()
        terms = torch.tensor([self._term(name) for name in self.learner.logged], dtype=torch.float64)
        stops = torch.tensor(self._stop_signals.requests(), dtype=torch.float64)
        if self.trainer.world_size > 1:  # one exchange a step: everything that all must agree on
            longest = self._longest()
            columns = [F.pad(column, (0, longest - len(numbers)), value=-1.0) for column in (numbers, t, per_sample)]
            mine = torch.cat([*columns, value[None], terms, stops]).to(self.device)
            every = [torch.empty_like(mine) for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather(every, mine)
            sizes = [longest] * 3 + [1, len(terms), len(stops)]
            columns = [torch.stack(column) for column in zip(*(v.cpu().split(sizes) for v in every), strict=True)]
            present = columns[0].flatten() >= 0
            numbers, t, per_sample = (column.flatten()[present] for column in columns[:3])
            value, terms, stops = columns[3].mean(), columns[4].mean(0), columns[5].sum(0)
        order = numbers.argsort()
        named = dict(zip(self.learner.logged, terms.tolist(), strict=True))
        return ReducedStats(numbers[order].long(), t[order], per_sample[order], value.item(), named, stops.tolist())

    def _share(self, numbers: list[int]) -> float:
        """Return the number of examples of a part of the step, in multiples of the mean."""
        parts = self.config.grad_accum_steps * self._world
        return 1.0 if parts == 1 else len(numbers) * parts / len(self.steps.examples(self.step))

    def _longest(self) -> int:
        """Return the maximum number of examples that a process has of this step."""
        return max(len(self.steps.examples(self.step, rank, self._world)) for rank in range(self._world))

    @property
    def _world(self) -> int:
        return self.trainer.world_size

    def _term(self, name: str) -> float:
        """Mean of a term over this process's parts of the batch; NaN if it is missing."""
        means = [loss.terms[name].cpu().double().mean().item() for _, loss in self._passes if name in loss.terms]
        return sum(means) / len(means) if means else math.nan

    def _fault(self, stats: ReducedStats, norm: float) -> dict[str, Any]:
        """Describe a non-finite step, to help find its cause."""
        loss, bad = stats.loss, ~stats.per_sample.isfinite()
        chosen = bad if bool(bad.any()) else torch.ones_like(bad)
        levels = stats.t[chosen]
        # An overflow of scaled 16-bit gradients is how the scaler finds its scale, until there is none left to lower.
        rescaled = self.scaler is not None and math.isfinite(loss) and self.scaler.get_scale() > 1
        return {
            "what": "gradient" if math.isfinite(loss) else "loss",
            "loss": str(loss),
            "grad_norm": str(norm),
            **({} if bool(levels.isnan().all()) else {"t": [levels.min().item(), levels.max().item()]}),
            "examples": stats.numbers[chosen].tolist(),
            "grad_norms": module_norms(self.model),
            "rescaled": rescaled,
        }


def module_norms(model: nn.Module, most: int = 12) -> dict[str, str]:
    """Gradient norms of the parts of a model, at most `most` of them, non-finite and largest ones first."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parts.setdefault(".".join(name.split(".")[:4]), []).append(parameter.grad)
    norms = {name: torch.nn.utils.get_total_norm(gradients).item() for name, gradients in parts.items()}
    worst = sorted(norms.items(), key=lambda entry: (math.isfinite(entry[1]), -entry[1]))
    return {name: f"{norm:.4g}" for name, norm in worst[:most]}


def _seed(seed: int, device: torch.device) -> None:
    """Set the global generators that matter; `torch.manual_seed` spends a millisecond on those of absent devices."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
