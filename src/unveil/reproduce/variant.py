"""One arm of an experiment: what is trained, on what budget, and the trained network kept for other claims."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from unveil.conditioning.class_label import Label
from unveil.core import preconditioning
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.objective import DiffusionLoss, LossOutput
from unveil.core.prediction import Prediction, eps, flow, posterior_mean
from unveil.core.process import DiscreteVP, Process, betas
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import LogitNormal, SecondMoment, TimeSampler, Uniform
from unveil.core.transition import chain_of
from unveil.core.variance import VARIANCES, VarianceRule, is_learned
from unveil.core.ve import VE
from unveil.data.digits import digits
from unveil.errors import NonFinite, OutOfResources, OutputError
from unveil.io.files import write_atomically
from unveil.io.images import to_unit
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition, NoiseLevel

M = TypeVar("M", bound=nn.Module)

LOOP = 2  # raised when `train` or `descend` comes to compute something else, so that what was kept is not used any more
CLASSES = 10
DROP = 2  # the draw of an example's stream that says whether its label is dropped; the objective has 0 and 1


@dataclass(frozen=True)
class Variant:
    """What may differ between two arms; everything else is the budget, which all arms of a run share.

    Attributes:
        process: DDPM's linear or Improved DDPM's cosine betas, score SDE's exploding variance, or rectified flow.
        prediction: "edm" is EDM's network output with its scaling of x, which exploding variance needs.
        objective: "simple" is L_simple, "bound" the variational bound, "hybrid" Improved DDPM's sum of both.
        time: how times are drawn in training; "second-moment" is loss-second-moment importance sampling.
        modulation: how the time, and a label, enter a block: added, or as scale and shift (AdaGN).
        drop: None trains without labels; else with them, and this share of them replaced by "none".
    """

    process: Literal["linear", "cosine", "ve", "flow"]
    prediction: Literal["eps", "mean", "edm", "flow"] = "eps"
    objective: Literal["simple", "bound", "hybrid"] = "simple"
    variance: Literal["fixed-small", "learned-range"] = "fixed-small"
    time: Literal["uniform", "second-moment", "logit-normal"] = "uniform"
    modulation: Literal["add", "scale-shift"] = "add"
    drop: float | None = None

    @property
    def rule(self) -> VarianceRule:
        """The variance of its reverse steps."""
        return VARIANCES[self.variance]


class TrainSchedule(NamedTuple):
    """Length and rates of a training run with AdamW; the recipe key of each field is in parentheses where it differs.

    Attributes:
        steps: Steps of the optimiser.
        batch: Samples of a step (batch_size).
        lr: Highest learning rate.
        warmup: Steps over which the learning rate rises.
        decay: Share of the steps, at the end, over which the learning rate falls to 0 (lr_decay_ratio).
        betas: Decay rates of AdamW's two averages (adam_betas).
        ema: Decay of the averaged weights (ema_decay).
        clip: Maximum norm of the gradient (grad_clip_norm).
        weight_decay: Weight decay of AdamW.
    """

    steps: int
    batch: int
    lr: float
    warmup: int
    decay: float
    betas: tuple[float, float]
    ema: float
    clip: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class TrainBudget:
    """How every arm of a run is trained: AdamW on the digits, unconditional, samples from the averaged weights.

    Attributes:
        channels: width of the U-Net, which has two levels of one block, and attention in the middle.
        chain: length of the diffusion.
        decay: share of the steps, at the end, over which the rate falls to 0.
    """

    channels: int = 16
    steps: int = 500
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.4
    ema: float = 0.995
    clip: float = 1.0
    chain: int = 1000

    @property
    def pace(self) -> TrainSchedule:
        """The part that is about training alone."""
        return TrainSchedule(self.steps, self.batch, self.lr, self.warmup, self.decay, (0.9, 0.99), self.ema, self.clip)


@dataclass(frozen=True)
class TrainedVariant:
    """An arm trained with one seed: the network with the averaged weights, and what that cost."""

    denoiser: Denoiser
    cpu_seconds: float
    kept: bool  # it was trained by an earlier run


class LabelledDenoiser(nn.Module):
    """A network and the rows of its labels, trained and averaged as one."""

    def __init__(self, network: UNet, drop: float) -> None:
        super().__init__()
        self.network = network
        self.rows = Label(CLASSES, network.vector_dim, drop)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """The network's own."""
        return self.network(x, t, condition)


def build(arm: Variant, budget: TrainBudget, seed: int) -> Denoiser:
    """The untrained network of an arm; arms of one seed start from the same weights."""
    process, learns = _process(arm, budget), is_learned(arm.rule)
    groups = min(8, budget.channels // 2)
    config = UNetConfig(
        1, 2 if learns else 1, budget.channels, (1, 2), 1, groups=groups, time_scale_shift=arm.modulation
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(config)
        network = unet if arm.drop is None else LabelledDenoiser(unet, arm.drop)
    return Denoiser(network, process, prediction=_prediction(arm, process), learns_variance=learns)


def _process(arm: Variant, budget: TrainBudget) -> Process:
    if arm.process == "ve":
        return VE(0.01, 10.0)  # pairs of digits lie up to 9.6 apart
    return RectifiedFlow() if arm.process == "flow" else DiscreteVP(betas(arm.process, budget.chain))


def _prediction(arm: Variant, process: Process) -> Prediction:
    if arm.prediction == "mean":
        return posterior_mean(chain_of(process))
    return {"eps": eps, "flow": flow, "edm": preconditioning.EDMPreconditioning()}[arm.prediction]


def loss_of(arm: Variant, budget: TrainBudget) -> DiffusionLoss:
    """What an arm minimises."""
    times: TimeSampler = Uniform()
    if arm.time != "uniform":
        times = SecondMoment(budget.chain) if arm.time == "second-moment" else LogitNormal()
    simple, bound = {"simple": (1.0, 0.0), "bound": (0.0, 1.0), "hybrid": (1.0, 0.001)}[arm.objective]
    return DiffusionLoss(simple=simple, bound=bound, variance=arm.rule, time=times)


def bind_labels(denoiser: Denoiser, labels: Tensor | None) -> DenoiseFn:
    """The step of a network that was trained with labels: told them (B,), or "none"."""
    rows = _rows(denoiser)

    def step(x: Tensor, level: NoiseLevel) -> Estimate:
        return denoiser(x, level, rows.null(len(x)) if labels is None else rows.encode(labels))

    return step


def _rows(denoiser: Denoiser) -> Label:
    assert isinstance(denoiser.network, LabelledDenoiser), "an arm without labels cannot be told one"
    return denoiser.network.rows


def _condition(denoiser: Denoiser, labels: Tensor, streams: SampleRNG, step: int) -> Condition | None:
    """What a batch is trained with: its labels, some of them dropped."""
    if not isinstance(denoiser.network, LabelledDenoiser):
        return None
    rows = denoiser.network.rows
    given = rows.encode(labels)
    return given.where(streams.uniform(step, DROP) >= rows.drop, rows.null(len(labels))) if rows.drop else given


def train(arm: Variant, budget: TrainBudget, seed: int, on_step: Callable[[], object] = lambda: None) -> Denoiser:
    """The arm's network with averaged weights; every random number is keyed by the seed, the step and the example.

    Arms of one seed see the same pictures in the same order with the same noise.

    Raises:
        NonFinite: the loss left the finite numbers.
    """
    from unveil.train.data_order import EpochShuffle

    part = digits("train")
    assert part.labels is not None
    labels, data = part.labels, to_unit(part.pixels)
    denoiser, objective, order = build(arm, budget, seed), loss_of(arm, budget), EpochShuffle(len(data), seed)

    def step_loss(numbers: range, streams: SampleRNG, step: int) -> LossOutput:
        rows = [order.index(number) for number in numbers]
        loss = objective(denoiser, data[rows], _condition(denoiser, labels[rows], streams, step), streams, step)
        objective.observe(denoiser.process, loss.t, loss.per_sample)
        return loss

    return train_loop(denoiser, step_loss, budget.pace, seed, str(arm), lambda average, step: on_step())


def train_loop(
    model: M,
    loss_of: Callable[[range, SampleRNG, int], LossOutput],
    pace: TrainSchedule,
    seed: int,
    what: str,
    on_step: Callable[[M, int], object],
) -> M:
    """Trains a model and returns a second one with the averaged weights.

    Args:
        loss_of: (numbers of the examples of a step, their random numbers, the step) -> the loss of that step.
        what: is trained, for an error.
        on_step: is given the averaged model and the number of steps behind it, after each.

    Raises:
        NonFinite: the loss left the finite numbers.
    """
    from unveil.train.ema import Ema  # with these comes Lightning, which takes seconds
    from unveil.train.lr_schedule import linear

    average = Ema(model, pace.ema)
    optimizer = torch.optim.AdamW(model.parameters(), lr=pace.lr, betas=pace.betas, weight_decay=pace.weight_decay)
    factor = linear(pace.steps, warmup=pace.warmup, decay=pace.decay)
    for step in range(pace.steps):
        optimizer.param_groups[0]["lr"] = pace.lr * factor(step)
        numbers = range(step * pace.batch, (step + 1) * pace.batch)
        loss = loss_of(numbers, SampleRNG(seed, numbers), step)
        if not bool(torch.isfinite(loss.value)):
            raise NonFinite(f"{what}, seed {seed}: the loss is {loss.value.item()} at step {step}")
        optimizer.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), pace.clip or float("inf"))
        optimizer.step()
        average.update()
        on_step(average.model, step + 1)
    return average.model


def trained(
    arm: Variant, budget: TrainBudget, seed: int, cache: Path, on_step: Callable[[], object] = lambda: None
) -> TrainedVariant:
    """The arm as `train` gives it, from the cache where it is there, and into it where not."""
    facts = {"loop": LOOP, "arm": dataclasses.asdict(arm), "budget": dataclasses.asdict(budget), "seed": seed}
    found = cache_get(cache, facts)
    if found is not None:
        denoiser = build(arm, budget, 0)
        with contextlib.suppress(RuntimeError):  # a file of another layout is trained anew
            denoiser.load_state_dict(found.tensors)
            return TrainedVariant(denoiser.eval().requires_grad_(False), found.cpu_seconds, kept=True)
    begun = time.process_time()
    denoiser = train(arm, budget, seed, on_step)
    spent = time.process_time() - begun
    cache_put(cache, facts, CachedTraining(denoiser.state_dict(), spent))
    return TrainedVariant(denoiser, spent, kept=False)


# ---------------------------------------------------------------------- what is kept for other claims


class CachedTraining(NamedTuple):
    """What a training left, and what it cost."""

    tensors: Mapping[str, Tensor]
    cpu_seconds: float


def cache_put(cache: Path, facts: Mapping[str, object], found: CachedTraining) -> None:
    """Keeps it under the facts that it follows from."""
    tensors = {name: tensor.contiguous() for name, tensor in found.tensors.items()}
    text = json.dumps(facts, sort_keys=True)
    try:
        content = safetensors.torch.save(tensors, {"facts": text, "cpu_seconds": f"{found.cpu_seconds:.2f}"})
        write_atomically(_place(cache, text), content)
    except (OutputError, OutOfResources):
        pass  # a cache that cannot be written costs time, not the run


def cache_get(cache: Path, facts: Mapping[str, object]) -> CachedTraining | None:
    """What was kept under these facts, if it is there and whole."""
    text = json.dumps(facts, sort_keys=True)
    try:
        with safetensors.safe_open(_place(cache, text), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        spent = float(metadata["cpu_seconds"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError):
        return None
    return CachedTraining(tensors, spent) if metadata.get("facts") == text else None


def _place(cache: Path, facts: str) -> Path:
    return cache / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
