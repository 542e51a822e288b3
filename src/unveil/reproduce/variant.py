"""Variants of a digits network: configuration, training budget, training loop and cache of trained networks."""

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
import torch
from torch import Tensor, nn

from unveil.conditioning.class_label import Label
from unveil.core import preconditioning
from unveil.core.denoiser import DenoiseFn, Denoiser, Estimate
from unveil.core.flow import RectifiedFlow
from unveil.core.objective import DiffusionLoss, LossOutput
from unveil.core.prediction import VARIANCES, Prediction, VarianceRule, eps, flow, is_learned, posterior_mean
from unveil.core.process import DiscreteVP, Process, betas
from unveil.core.rng import SampleRNG
from unveil.core.timestep_sampling import LogitNormal, SecondMoment, TimeSampler, Uniform
from unveil.core.transition import chain_of
from unveil.core.ve import VE
from unveil.data.digits import digits
from unveil.errors import NonFinite, OutOfResources, OutputError
from unveil.io.files import tensor_bytes, write_atomically
from unveil.io.images import to_unit
from unveil.nn.unet import UNet, UNetConfig
from unveil.types import Condition, NoiseLevel

M = TypeVar("M", bound=nn.Module)

LOOP = 2  # version of `train` and `train_loop` in the keys of the cache; raise it if their results change
CLASSES = 10
DROP = 2  # index of an example's random draw for dropping its label; the objective uses 0 and 1


@dataclass(frozen=True)
class Variant:
    """Settings in which two variants may differ; all variants of a run share the budget.

    Attributes:
        process: Linear betas of DDPM, cosine betas of Improved DDPM, variance-exploding process of score SDE, or
            rectified flow.
        prediction: Prediction target. "edm" is EDM's network output with its scaling of x, as variance exploding needs.
        objective: "simple" is L_simple, "bound" the variational bound, "hybrid" Improved DDPM's sum of both.
        variance: Variance of the reverse steps.
        time: Distribution of training times. "second-moment" is loss-second-moment importance sampling.
        modulation: Conditioning of a block on time and label: added, or scale and shift (AdaGN).
        drop: Probability of dropping the label in training; None trains an unconditional network.
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
        """Variance rule of the reverse steps."""
        return VARIANCES[self.variance]


class TrainSchedule(NamedTuple):
    """Length and rates of a training run with AdamW; the recipe key of each field is in parentheses where it differs.

    Attributes:
        steps: Steps of the optimiser.
        batch: Samples of a step (batch_size).
        lr: Highest learning rate.
        warmup: Steps over which the learning rate rises.
        decay: Fraction of the steps, at the end, over which the learning rate falls to 0 (lr_decay_ratio).
        betas: Decay rates of AdamW's two averages (adam_betas).
        ema: Decay of the EMA weights (ema_decay).
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
    """Training budget of every variant of a run: AdamW on the digits, with samples from the EMA weights.

    Attributes:
        channels: Base channels of the U-Net, which has two levels of one block and attention in the middle.
        steps: Steps of the optimiser.
        batch: Batch size.
        lr: Highest learning rate.
        warmup: Steps over which the learning rate rises.
        decay: Fraction of the steps, at the end, over which the learning rate falls to 0.
        ema: Decay of the EMA weights.
        clip: Maximum norm of the gradient.
        chain: Number of diffusion steps.
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
    def train_schedule(self) -> TrainSchedule:
        """Length and rates of the training."""
        return TrainSchedule(self.steps, self.batch, self.lr, self.warmup, self.decay, (0.9, 0.99), self.ema, self.clip)


@dataclass(frozen=True)
class TrainedVariant:
    """Variant trained with one seed.

    Attributes:
        denoiser: Network with the EMA weights.
        cpu_seconds: CPU seconds of its training.
        cached: True if an earlier run trained it.
    """

    denoiser: Denoiser
    cpu_seconds: float
    cached: bool


class LabelledDenoiser(nn.Module):
    """Network and label embedding, trained and averaged as one module."""

    def __init__(self, network: UNet, drop: float) -> None:
        super().__init__()
        self.network = network
        self.rows = Label(CLASSES, network.vector_dim, drop)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the output of the network."""
        return self.network(x, t, condition)


def build(variant: Variant, budget: TrainBudget, seed: int) -> Denoiser:
    """Return the untrained network of a variant; variants of one seed start from the same weights."""
    process, learns_variance = _process(variant, budget), is_learned(variant.rule)
    groups = min(8, budget.channels // 2)
    config = UNetConfig(
        1, 2 if learns_variance else 1, budget.channels, (1, 2), 1, groups=groups, time_scale_shift=variant.modulation
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet(config)
        network = unet if variant.drop is None else LabelledDenoiser(unet, variant.drop)
    return Denoiser(network, process, prediction=_prediction(variant, process), learns_variance=learns_variance)


def _process(variant: Variant, budget: TrainBudget) -> Process:
    if variant.process == "ve":
        return VE(0.01, 10.0)  # the largest distance between two digits is 9.6
    return RectifiedFlow() if variant.process == "flow" else DiscreteVP(betas(variant.process, budget.chain))


def _prediction(variant: Variant, process: Process) -> Prediction:
    if variant.prediction == "mean":
        return posterior_mean(chain_of(process))
    return {"eps": eps, "flow": flow, "edm": preconditioning.EDMPreconditioning()}[variant.prediction]


def loss_of(variant: Variant, budget: TrainBudget) -> DiffusionLoss:
    """Return the training objective of a variant."""
    times: TimeSampler = Uniform()
    if variant.time != "uniform":
        times = SecondMoment(budget.chain) if variant.time == "second-moment" else LogitNormal()
    simple, bound = {"simple": (1.0, 0.0), "bound": (0.0, 1.0), "hybrid": (1.0, 0.001)}[variant.objective]
    return DiffusionLoss(simple=simple, bound=bound, variance=variant.rule, time=times)


def bind_labels(denoiser: Denoiser, labels: Tensor | None) -> DenoiseFn:
    """Return the denoise function of a class-conditional network for labels (B,), or without a label."""
    embedding = _label_embedding(denoiser)

    def denoise(x: Tensor, level: NoiseLevel) -> Estimate:
        return denoiser(x, level, embedding.null(len(x)) if labels is None else embedding.encode(labels))

    return denoise


def _label_embedding(denoiser: Denoiser) -> Label:
    assert isinstance(denoiser.network, LabelledDenoiser), "the variant was trained without labels"
    return denoiser.network.rows


def _condition(denoiser: Denoiser, labels: Tensor, streams: SampleRNG, step: int) -> Condition | None:
    """Return the labels of a training batch, some of them dropped."""
    if not isinstance(denoiser.network, LabelledDenoiser):
        return None
    embedding = denoiser.network.rows
    condition = embedding.encode(labels)
    if not embedding.drop:
        return condition
    return condition.where(streams.uniform(step, DROP) >= embedding.drop, embedding.null(len(labels)))


def train(variant: Variant, budget: TrainBudget, seed: int, on_step: Callable[[], object] = lambda: None) -> Denoiser:
    """Train a variant and return its network with the EMA weights.

    Every random number is keyed by the seed, the step and the example. Variants of one seed are trained on the same
    images in the same order with the same noise.

    Raises:
        NonFinite: The loss is not finite.
    """
    from unveil.train.data_order import EpochShuffle

    dataset = digits("train")
    assert dataset.labels is not None
    labels, data = dataset.labels, to_unit(dataset.pixels)
    denoiser, objective, order = build(variant, budget, seed), loss_of(variant, budget), EpochShuffle(len(data), seed)

    def step_loss(numbers: range, streams: SampleRNG, step: int) -> LossOutput:
        indices = [order.index(number) for number in numbers]
        loss = objective(denoiser, data[indices], _condition(denoiser, labels[indices], streams, step), streams, step)
        objective.observe(denoiser.process, loss.t, loss.per_sample)
        return loss

    return train_loop(denoiser, step_loss, budget.train_schedule, seed, str(variant), lambda ema, step: on_step())


def train_loop(
    model: M,
    loss_of: Callable[[range, SampleRNG, int], LossOutput],
    schedule: TrainSchedule,
    seed: int,
    name: str,
    on_step: Callable[[M, int], object],
) -> M:
    """Train a model and return a copy with the EMA weights.

    Args:
        model: Model to train.
        loss_of: Function of the example indices of a step, their random numbers and the step; returns the loss.
        schedule: Length and rates of the training.
        seed: Seed of the random numbers.
        name: Name of the trained model for errors.
        on_step: Function of the EMA model and the number of completed steps, called after each step.

    Raises:
        NonFinite: The loss is not finite.
    """
    from unveil.train.ema import Ema  # imports Lightning, which takes seconds
    from unveil.train.lr_schedule import linear

    ema = Ema(model, schedule.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay
    )
    factor = linear(schedule.steps, warmup=schedule.warmup, decay=schedule.decay)
    for step in range(schedule.steps):
        optimizer.param_groups[0]["lr"] = schedule.lr * factor(step)
        numbers = range(step * schedule.batch, (step + 1) * schedule.batch)
        loss = loss_of(numbers, SampleRNG(seed, numbers), step)
        if not bool(torch.isfinite(loss.value)):
            raise NonFinite(f"{name}, seed {seed}: the loss is {loss.value.item()} at step {step}")
        optimizer.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip or float("inf"))
        optimizer.step()
        ema.update()
        on_step(ema.model, step + 1)
    return ema.model


def train_or_load(
    variant: Variant, budget: TrainBudget, seed: int, cache: Path, on_step: Callable[[], object] = lambda: None
) -> TrainedVariant:
    """Return a trained variant from the cache; train it and store it there if it is not cached."""
    key = {"loop": LOOP, "arm": dataclasses.asdict(variant), "budget": dataclasses.asdict(budget), "seed": seed}
    entry = cache_get(cache, key)
    if entry is not None:
        denoiser = build(variant, budget, 0)
        with contextlib.suppress(RuntimeError):  # a file of another layout is trained again
            denoiser.load_state_dict(entry.state_dict)
            return TrainedVariant(denoiser.eval().requires_grad_(False), entry.cpu_seconds, cached=True)
    start = time.process_time()
    denoiser = train(variant, budget, seed, on_step)
    cpu_seconds = time.process_time() - start
    cache_put(cache, key, CachedTraining(denoiser.state_dict(), cpu_seconds))
    return TrainedVariant(denoiser, cpu_seconds, cached=False)


# ---------------------------------------------------------------------- cache of trainings


class CachedTraining(NamedTuple):
    """Tensors and CPU seconds of a training."""

    state_dict: Mapping[str, Tensor]
    cpu_seconds: float


def cache_put(cache: Path, key: Mapping[str, object], training: CachedTraining) -> None:
    """Store a training under all settings that determine it."""
    text = json.dumps(key, sort_keys=True)
    try:
        content = tensor_bytes(training.state_dict, {"facts": text, "cpu_seconds": f"{training.cpu_seconds:.2f}"})
        write_atomically(_cache_path(cache, text), content)
    except (OutputError, OutOfResources):
        pass  # a cache that cannot be written costs time, not the run


def cache_get(cache: Path, key: Mapping[str, object]) -> CachedTraining | None:
    """Return the training of these settings, or None if it is not cached or its file is damaged."""
    text = json.dumps(key, sort_keys=True)
    try:
        with safetensors.safe_open(_cache_path(cache, text), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
        cpu_seconds = float(metadata["cpu_seconds"])
    except (OSError, safetensors.SafetensorError, KeyError, ValueError):
        return None
    return CachedTraining(tensors, cpu_seconds) if metadata.get("facts") == text else None


def _cache_path(cache: Path, key: str) -> Path:
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
