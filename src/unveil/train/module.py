"""The LightningModule: from a batch to a loss, a judged gradient, one AdamW step and one step of the average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from unveil.config import TrainConfig
from unveil.core.denoiser import Denoiser
from unveil.core.noise import Streams
from unveil.core.noise import key as hash_of
from unveil.core.objective import Loss
from unveil.model import Model
from unveil.train.ema import Ema
from unveil.train.order import Batch
from unveil.train.schedule import Schedule
from unveil.types import Condition, RecipeError, ShapeError

# Draws of an example's stream; the objective has 0 and 1.
FLIP, DROP = 2, 3
# Beyond it AdamW's second moment, a square in float32, would overflow.
LARGEST_NORM = 1e18


class Objective(Protocol):
    """What training minimises; `core.objective.Diffusion` is one."""

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, streams: Streams, step: int
    ) -> Loss:
        """The loss of a batch at a training step."""
        ...

    def at(self, denoiser: Denoiser, x0: Tensor, condition: Condition | None, t: Tensor, noise: Tensor) -> Loss:
        """The loss at given times and noise, for validation."""
        ...

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Is shown the times and losses of every finished step."""
        ...


class Outcome(NamedTuple):
    """One optimiser step, the same on every process.

    step: steps behind the run afterwards. loss: mean over the batch. rate: the learning rate. norm: of the
    gradient before clipping. numbers, t, per_sample: (batch,) by rising number. wishes: summed over processes.
    fault: None, or what was not finite.
    """

    step: int
    loss: float
    rate: float
    norm: float
    numbers: Tensor
    t: Tensor
    per_sample: Tensor
    wishes: list[float]
    fault: dict[str, Any] | None = None


class Wishes(Protocol):
    """What may ask a run to stop; each entry above 0 is one reason."""

    def wishes(self) -> list[float]:
        """As many numbers each time."""
        ...


class TrainingModule(LightningModule):
    """A model in training.

    Attributes:
        step: optimiser steps behind it, skipped ones included.
        outcome: of the optimiser step that the last forward pass completed, None inside a step.
        skipped: non-finite steps so far; `in_a_row` of them until now.
        ema: the averaged model; made when training starts, on the device that it trains on.
    """

    def __init__(
        self, model: Model, objective: Objective, config: TrainConfig, schedule: Schedule, wishes: Wishes
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.config = config
        self.schedule = schedule
        self._wishes = wishes
        self.step = self.skipped = self.in_a_row = 0
        self.outcome: Outcome | None = None
        self.ema: Ema[Model] | None = None
        self.optimizer: AdamW | None = None
        self._passes: list[tuple[list[int], Loss]] = []
        self.model.train()

    # ------------------------------------------------------------------ what Lightning calls

    def configure_optimizers(self) -> Optimizer:
        """AdamW, fused where gradients need no unscaling before it."""
        config = self.config
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = AdamW(
            trained,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.scaler is None,  # with a scaler, the fused one would hide the true gradients from us
        )
        return self.optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one part of the batch; every random number in it is keyed by step and example."""
        part = batch_idx % self.config.accumulate
        if part == 0:
            self.outcome = None
            self._passes.clear()
        # The global generator, which a network's dropout uses: a resumed run draws the same.
        _seed(hash_of(self.config.seed, self.step, part, self.global_rank) >> 1, self.device)
        streams = Streams(self.config.seed, batch.numbers, device=self.device)
        x0, condition = prepare(self.model, batch, streams, self.step, self.config.flip)
        loss = self.objective(self.model.denoiser, x0, condition, streams, self.step)
        self._passes.append((batch.numbers, loss))
        return loss.value

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Its tensors; Lightning would visit every number of the batch too."""
        moved = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.raw.items()}
        return Batch(batch.numbers, batch.data.to(device, non_blocking=True), moved)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """One step: the closure computes the gradient, which `on_before_optimizer_step` then judges."""
        rate = self.config.lr * self.schedule(self.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step(closure=optimizer_closure)
        outcome = cast(Outcome, self.outcome)
        self.step += 1
        if outcome.fault is None:
            self.in_a_row = 0
            self.average.update()
            self.objective.observe(self.model.process, outcome.t, outcome.per_sample)
        elif not outcome.fault["rescaled"]:
            self.in_a_row += 1
            self.skipped += 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips the gradient, or takes it away on every process when loss or gradient is not finite.

        Without gradients the optimiser leaves weights and moments as they are.
        """
        numbers, t, per_sample, loss, wishes = self._gathered()
        trained = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [cast(Tensor, p.grad) for p in trained]
        norm = torch.nn.utils.get_total_norm(gradients).item() if gradients else 0.0
        fault = None
        if not (math.isfinite(loss) and norm < LARGEST_NORM):
            fault = self._fault(loss, norm, numbers, t, per_sample)
            for parameter in trained:
                parameter.grad = None
        elif self.config.clip and norm > self.config.clip:
            torch._foreach_mul_(gradients, self.config.clip / norm)  # pyright: ignore[reportPrivateImportUsage]
        rate = optimizer.param_groups[0]["lr"]
        self.outcome = Outcome(self.step + 1, loss, rate, norm, numbers, t, per_sample, wishes, fault)

    # ------------------------------------------------------------------ ours

    @property
    def average(self) -> Ema[Model]:
        """The running average, which exists once training has started."""
        assert self.ema is not None
        return self.ema

    def start_average(self) -> None:
        """Makes the running average, once the model is on the device that it trains on."""
        self.ema = Ema(self.model, self.config.ema)

    @property
    def scaler(self) -> Any | None:
        """The loss scaler of 16-bit training, if there is one."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _gathered(self) -> tuple[Tensor, Tensor, Tensor, float, list[float]]:
        """The step's examples from all processes by number, the mean loss, and the wishes to stop."""
        numbers = torch.tensor([n for found, _ in self._passes for n in found], dtype=torch.float64)
        t = torch.cat([loss.t.double().cpu() for _, loss in self._passes])
        per_sample = torch.cat([loss.per_sample.flatten() for _, loss in self._passes]).cpu().double()
        value = torch.stack([loss.value.detach() for _, loss in self._passes]).cpu().double().mean()
        wishes = torch.tensor(self._wishes.wishes(), dtype=torch.float64)
        if self.trainer.world_size > 1:  # one exchange a step: everything that all must agree on
            mine = torch.cat([numbers, t, per_sample, value[None], wishes]).to(self.device)
            every = [torch.empty_like(mine) for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather(every, mine)
            sizes = [len(numbers)] * 3 + [1, len(wishes)]
            columns = [torch.stack(column) for column in zip(*(v.cpu().split(sizes) for v in every), strict=True)]
            numbers, t, per_sample = (column.flatten() for column in columns[:3])
            value, wishes = columns[3].mean(), columns[4].sum(0)
        order = numbers.argsort()
        return numbers[order].long(), t[order], per_sample[order], value.item(), wishes.tolist()

    def _fault(self, loss: float, norm: float, numbers: Tensor, t: Tensor, per_sample: Tensor) -> dict[str, Any]:
        """What a person needs to find the cause of a non-finite step."""
        bad = ~per_sample.isfinite()
        chosen = bad if bool(bad.any()) else torch.ones_like(bad)
        # An overflow of scaled 16-bit gradients is how the scaler finds its scale, until there is none left to lower.
        rescaled = self.scaler is not None and math.isfinite(loss) and self.scaler.get_scale() > 1
        return {
            "what": "gradient" if math.isfinite(loss) else "loss",
            "loss": str(loss),
            "grad_norm": str(norm),
            "t": [t[chosen].min().item(), t[chosen].max().item()],
            "examples": numbers[chosen].tolist(),
            "grad_norms": module_norms(self.model),
            "rescaled": rescaled,
        }


def prepare(
    model: Model, batch: Batch, streams: Streams, step: int | None, flip: bool = False
) -> tuple[Tensor, Condition | None]:
    """A batch as the denoiser takes it: x0 (B, ...) scaled and encoded, and its condition.

    Args:
        step: the training step whose random numbers mirror pictures and drop conditions; None does neither.
        flip: mirror every second picture, left to right, with its context picture and its hint.
    """
    x0 = scaled(batch.data)
    mirrored: Tensor | None = None
    if flip and step is not None:
        if x0.ndim < 4:
            raise RecipeError(f"flip: data of shape {tuple(x0.shape[1:])} has no left and right; set flip: false")
        mirrored = streams.uniform(step, FLIP) < 0.5
        x0 = _mirror(x0, mirrored)
    with torch.no_grad():
        x0 = model.codec.encode(x0)
    condition: Condition | None = None
    for place, conditioner in enumerate(cast(Mapping[str, Any], model.conditioners).values()):
        part: Condition = conditioner.encode(batch.raw[conditioner.key])
        if mirrored is not None and part.channels is not None:
            part = replace(part, channels=_mirror(part.channels, mirrored))
        if mirrored is not None and part.hint is not None:
            part = replace(part, hint=_mirror(part.hint, mirrored))
        if conditioner.drop and step is not None:
            keep = streams.uniform(step, DROP + place) >= conditioner.drop
            part = part.where(keep, conditioner.null(len(x0)))
        condition = part if condition is None else condition.join(part)
    return x0, condition


def scaled(data: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]; floating point as float32, unchanged.

    Raises:
        ShapeError: any other type.
    """
    if data.dtype == torch.uint8:
        return data.float().div_(127.5).sub_(1)
    if not data.dtype.is_floating_point:
        raise ShapeError(f"data of type {data.dtype}: must be uint8 (pixels, 0 to 255) or floating point")
    return data.float()


def module_norms(model: nn.Module, most: int = 12) -> dict[str, str]:
    """The gradient norm of each part of a model, non-finite and largest ones first."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            parts.setdefault(".".join(name.split(".")[:4]), []).append(parameter.grad)
    norms = {name: torch.nn.utils.get_total_norm(found).item() for name, found in parts.items()}
    worst = sorted(norms.items(), key=lambda entry: (math.isfinite(entry[1]), -entry[1]))
    return {name: f"{norm:.4g}" for name, norm in worst[:most]}


def _seed(seed: int, device: torch.device) -> None:
    """Sets the global generators that matter; `torch.manual_seed` spends a millisecond on those of absent devices."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _mirror(pictures: Tensor, which: Tensor) -> Tensor:
    rows = which.reshape(-1, *(1,) * (pictures.ndim - 1)).to(pictures.device)
    return torch.where(rows, pictures.flip(-1), pictures)
