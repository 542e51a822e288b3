"""Training on videos and images of different sizes in one batch.

Each sample is noised by itself, with its own random numbers and the noise process for its size. The network then
predicts all of them at once. The loss, its gradient and every random number equal those of single samples, up to
rounding.

Source: samples of any size in one sequence: Dehghani et al. 2023 (arXiv:2307.06304).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unveil.conditioning.diffusion_forcing import DiffusionForcingLoss, NoisedBatch, SampledTimes, shared_time
from unveil.core.denoiser import Denoiser
from unveil.core.objective import LossOutput
from unveil.core.rng import SampleRNG
from unveil.errors import RecipeError, ShapeError
from unveil.model import Model
from unveil.model.config.train import Batching
from unveil.model.model import resized_part
from unveil.nn.video_dit import VideoDiT
from unveil.train.data_order import IndexableItems, sizes_of, value_of
from unveil.types import Condition


@dataclass(frozen=True)
class VariableSizeLoss:
    """Loss for a list x0 of videos (C, T, H, W) and images (C, H, W) of different sizes.

    Args:
        objective: Loss for one size.
        batching: `packed`: all tokens in one sequence; `buckets`: one network call per size.
    """

    objective: DiffusionForcingLoss
    batching: Batching

    def __call__(
        self, denoiser: Denoiser, x0: Sequence[Tensor], condition: Condition | None, streams: SampleRNG, step: int
    ) -> LossOutput:
        """Return the loss of a batch at a training step, with the random numbers of this step."""
        denoisers = _denoisers(denoiser, x0)
        sampled = [
            self.objective.sample(each.process, x0_i[None], stream, step)
            for each, x0_i, stream in zip(denoisers, x0, streams.each(), strict=True)
        ]
        return self._loss(denoisers, x0, condition, sampled)

    def at(
        self, denoiser: Denoiser, x0: Sequence[Tensor], condition: Condition | None, t: Tensor, noise: Sequence[Tensor]
    ) -> LossOutput:
        """Return the loss without conditioning frames, with one time per sample, t (B,) float64."""
        sampled = [
            (shared_time(x0_i[None], t_i), noise_i[None])
            for x0_i, t_i, noise_i in zip(x0, t.split(1), noise, strict=True)
        ]
        return self._loss(_denoisers(denoiser, x0), x0, condition, sampled)

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Pass times and losses on to the objective."""
        self.objective.observe(process, t, per_sample)

    def _loss(
        self,
        denoisers: Sequence[Denoiser],
        x0: Sequence[Tensor],
        condition: Condition | None,
        sampled: Sequence[tuple[SampledTimes, Tensor]],
    ) -> LossOutput:
        batches = [
            self.objective.noised(denoiser, x0_i[None], *times_and_noise)
            for denoiser, x0_i, times_and_noise in zip(denoisers, x0, sampled, strict=True)
        ]
        predict = _predict_packed if self.batching == "packed" else _predict_by_size
        predictions = predict(denoisers, batches, condition)
        losses = [
            self.objective.loss_of_prediction(*each) for each in zip(denoisers, batches, predictions, strict=True)
        ]
        per_sample, t = (torch.cat([getattr(loss, name) for loss in losses]) for name in ("per_sample", "t"))
        terms = {name: torch.cat([loss.terms[name] for loss in losses]) for name in losses[0].terms}
        return LossOutput(torch.stack([loss.value for loss in losses]).mean(), per_sample, t, terms)


def token_counts(model: Model, items: IndexableItems) -> Tensor:
    """Return the number of tokens of each item, int64 (N,).

    Raises:
        RecipeError: The data set does not know the sizes of its items.
        ShapeError: The autoencoder or the network does not take a size.
    """
    distinct, of_item = torch.unique(sizes_of(items), dim=0, return_inverse=True)
    return torch.tensor([_tokens(model, size) for size in distinct.tolist()])[of_item]


def check_sizes(model: Model, items: IndexableItems) -> None:
    """Check that the model takes the sizes of all items or, if they are unknown, the size of the first.

    Raises:
        ShapeError: The model does not take a size.
    """
    if hasattr(items, "sizes"):
        token_counts(model, items)
        return
    key = model.config.key if model.config is not None else "pixels"
    data = torch.as_tensor(value_of(items[0], key, 0))
    if data.ndim not in (3, 4) or data.shape[0] != model.shape[0]:
        raise ShapeError(
            f"item 0: {key!r} has the shape {tuple(data.shape)}; the model takes videos ({model.shape[0]}, T, H, W) "
            f"and images ({model.shape[0]}, H, W)"
        )
    _tokens(model, data[:, None].shape[1:] if data.ndim == 3 else data.shape[1:])


def _tokens(model: Model, size: Sequence[int]) -> int:
    try:
        shape = (model.shape[0], *size)
        return _network(model.denoiser).tokens(
            model.autoencoder.latent_shape(shape if len(model.shape) == 4 else shape[:1] + shape[2:])
        )
    except (ShapeError, RecipeError) as problem:
        raise ShapeError(
            f"items of {size[0]} frames of {size[2]} x {size[1]} (width x height): {problem}; bring the data to "
            "sizes that fit, such as by data.size_multiple"
        ) from problem


def _denoisers(denoiser: Denoiser, x0: Sequence[Tensor]) -> list[Denoiser]:
    """Return the denoiser with the noise process of each sample's size."""
    denoisers: dict[torch.Size, Denoiser] = {}
    for x0_i in x0:
        if x0_i.shape not in denoisers:
            process = resized_part(denoiser.process, tuple(x0_i.shape))
            denoisers[x0_i.shape] = denoiser if process is denoiser.process else denoiser.with_process(process)
    return [denoisers[x0_i.shape] for x0_i in x0]


def _network_inputs(denoisers: Sequence[Denoiser], batches: Sequence[NoisedBatch]) -> list[tuple[Tensor, Tensor]]:
    return [
        denoiser.network_inputs(batch.x, batch.input_level) for denoiser, batch in zip(denoisers, batches, strict=True)
    ]


def _predict_packed(
    denoisers: Sequence[Denoiser], batches: Sequence[NoisedBatch], condition: Condition | None
) -> list[Tensor]:
    """Return the network's predictions; all samples are one sequence of tokens."""
    inputs = _network_inputs(denoisers, batches)
    outputs, _ = _network(denoisers[0]).packed([x[0] for x, _ in inputs], [t[0] for _, t in inputs], condition)
    return [
        denoiser.check_output(y[None], x)[0] for denoiser, y, (x, _) in zip(denoisers, outputs, inputs, strict=True)
    ]


def _predict_by_size(
    denoisers: Sequence[Denoiser], batches: Sequence[NoisedBatch], condition: Condition | None
) -> list[Tensor]:
    """Return the network's predictions, with one call per size."""
    inputs = _network_inputs(denoisers, batches)
    buckets: dict[torch.Size, list[int]] = defaultdict(list)
    for index, (x, _) in enumerate(inputs):
        buckets[x.shape].append(index)
    predictions: dict[int, Tensor] = {}
    for indices in buckets.values():
        x, t = (torch.cat([inputs[index][part] for index in indices]) for part in range(2))
        rows = None if condition is None else condition.map(lambda route, rows=indices: route[rows])
        y, _ = denoisers[indices[0]].check_output(denoisers[0].network(x, t, rows), x)
        predictions |= dict(zip(indices, y.split(1), strict=True))
    return [predictions[index] for index in range(len(inputs))]


def _network(denoiser: Denoiser) -> VideoDiT:
    network = denoiser.network
    if not isinstance(network, VideoDiT):
        raise RecipeError(f"train.batching: for the network video-dit, not {type(network).__name__}; leave it out")
    return network
