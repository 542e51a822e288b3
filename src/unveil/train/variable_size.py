"""Videos and images of different sizes in one step: the loss of each of them alone, computed together.

Each is noised by itself, with its own random numbers and under the process for its size; the network then answers
all at once. So the loss, its gradient and every random number are those of each clip alone, except for rounding.

Source: videos and images of any size in one row: Dehghani et al. 2023 (arXiv:2307.06304).
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
from unveil.model.shapes import resized
from unveil.nn.video_dit import VideoDiT
from unveil.train.data_order import IndexableItems, sizes_of, value_of
from unveil.types import Condition


@dataclass(frozen=True)
class VariableSizeLoss:
    """An objective of clips of one size, for clips x0 of different sizes: a list of tensors (C, T, H, W) or (C, H, W).

    Args:
        of: the objective.
        how: they are computed together: `packed` in one row of tokens, `buckets` size by size.
    """

    of: DiffusionForcingLoss
    how: Batching

    def __call__(
        self, denoiser: Denoiser, x0: Sequence[Tensor], condition: Condition | None, streams: SampleRNG, step: int
    ) -> LossOutput:
        """The loss of a batch at a training step, with that step's random numbers."""
        denoisers = _each(denoiser, x0)
        drawn = [
            self.of.chance(each.process, clip[None], streams_of, step)
            for each, clip, streams_of in zip(denoisers, x0, streams.each(), strict=True)
        ]
        return self._loss(denoisers, x0, condition, drawn)

    def at(
        self, denoiser: Denoiser, x0: Sequence[Tensor], condition: Condition | None, t: Tensor, noise: Sequence[Tensor]
    ) -> LossOutput:
        """The loss of clips of which nothing is given, each at one time, t (B,) float64, and with one noise."""
        drawn = [
            (shared_time(clip[None], time), each[None]) for clip, time, each in zip(x0, t.split(1), noise, strict=True)
        ]
        return self._loss(_each(denoiser, x0), x0, condition, drawn)

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Let the objective follow times and losses."""
        self.of.observe(process, t, per_sample)

    def _loss(
        self,
        denoisers: Sequence[Denoiser],
        x0: Sequence[Tensor],
        condition: Condition | None,
        drawn: Sequence[tuple[SampledTimes, Tensor]],
    ) -> LossOutput:
        shown = [
            self.of.shown(denoiser, clip[None], *chance)
            for denoiser, clip, chance in zip(denoisers, x0, drawn, strict=True)
        ]
        answers = (
            _packed(denoisers, shown, condition) if self.how == "packed" else _by_size(denoisers, shown, condition)
        )
        losses = [self.of.judged(*each) for each in zip(denoisers, shown, answers, strict=True)]
        per_sample, t = (torch.cat([getattr(loss, name) for loss in losses]) for name in ("per_sample", "t"))
        terms = {name: torch.cat([loss.terms[name] for loss in losses]) for name in losses[0].terms}
        return LossOutput(torch.stack([loss.value for loss in losses]).mean(), per_sample, t, terms)


def token_counts(model: Model, items: IndexableItems) -> Tensor:
    """The tokens of each item, int64 (N,), every size of which the network takes.

    Raises:
        RecipeError: the data set does not know the sizes of its items.
        ShapeError: a size that the codec or the network does not take.
    """
    distinct, of_item = torch.unique(sizes_of(items), dim=0, return_inverse=True)
    return torch.tensor([_tokens(model, size) for size in distinct.tolist()])[of_item]


def check_sizes(model: Model, items: IndexableItems) -> None:
    """Check that the model takes the sizes of all items or, where they are unknown, that of the first.

    Raises:
        ShapeError: it does not.
    """
    if hasattr(items, "sizes"):
        token_counts(model, items)
        return
    key = model.config.key if model.config is not None else "pixels"
    data = torch.as_tensor(value_of(items[0], key, 0))
    if data.ndim not in (3, 4) or data.shape[0] != model.shape[0]:
        raise ShapeError(
            f"item 0: {key!r} has the shape {tuple(data.shape)}; the model takes clips ({model.shape[0]}, T, H, W) and "
            f"images ({model.shape[0]}, H, W)"
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


def _each(denoiser: Denoiser, x0: Sequence[Tensor]) -> list[Denoiser]:
    """The denoiser under the process of each clip's size."""
    denoisers: dict[torch.Size, Denoiser] = {}
    for clip in x0:
        if clip.shape not in denoisers:
            process = resized(denoiser.process, tuple(clip.shape))
            denoisers[clip.shape] = denoiser if process is denoiser.process else denoiser.under(process)
    return [denoisers[clip.shape] for clip in x0]


def _packed(denoisers: Sequence[Denoiser], shown: Sequence[NoisedBatch], condition: Condition | None) -> list[Tensor]:
    """The network's predictions, all clips in one row."""
    inputs = [denoiser.inputs(each.x, each.seen) for denoiser, each in zip(denoisers, shown, strict=True)]
    answers, _ = _network(denoisers[0]).packed([x[0] for x, _ in inputs], [t[0] for _, t in inputs], condition)
    return [denoiser.checked(y[None], x)[0] for denoiser, y, (x, _) in zip(denoisers, answers, inputs, strict=True)]


def _by_size(denoisers: Sequence[Denoiser], shown: Sequence[NoisedBatch], condition: Condition | None) -> list[Tensor]:
    """The network's predictions, by one call for each size."""
    inputs = [denoiser.inputs(each.x, each.seen) for denoiser, each in zip(denoisers, shown, strict=True)]
    buckets: dict[torch.Size, list[int]] = defaultdict(list)
    for place, (x, _) in enumerate(inputs):
        buckets[x.shape].append(place)
    answers: dict[int, Tensor] = {}
    for places in buckets.values():
        x, t = (torch.cat([inputs[place][which] for place in places]) for which in range(2))
        part = None if condition is None else condition.map(lambda route, rows=places: route[rows])
        y, _ = denoisers[places[0]].checked(denoisers[0].network(x, t, part), x)
        answers |= dict(zip(places, y.split(1), strict=True))
    return [answers[place] for place in range(len(inputs))]


def _network(denoiser: Denoiser) -> VideoDiT:
    network = denoiser.network
    if not isinstance(network, VideoDiT):
        raise RecipeError(f"train.batching: for the network video-dit, not {type(network).__name__}; leave it out")
    return network
