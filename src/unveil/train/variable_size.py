"""Clips and pictures of different sizes in one step: what each of them gives alone, computed together.

Each is noised by itself, with random numbers of its own and under the process for its size; the network then answers
all at once. So the loss, its gradient and every random number are those of each clip alone, but for rounding.

Source: clips and pictures of any size in one row: Dehghani et al. 2023 (arXiv:2307.06304).
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
from unveil.train.data_order import IndexableItems, value_of
from unveil.train.token_batching import sizes_of
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
        own = _each(denoiser, x0)
        drawn = [
            self.of.chance(one.process, clip[None], streams_of, step)
            for one, clip, streams_of in zip(own, x0, streams.each(), strict=True)
        ]
        return self._loss(own, x0, condition, drawn)

    def at(
        self, denoiser: Denoiser, x0: Sequence[Tensor], condition: Condition | None, t: Tensor, noise: Sequence[Tensor]
    ) -> LossOutput:
        """The loss of clips of which nothing is given, each at one time, t (B,) float64, and with one noise."""
        drawn = [
            (shared_time(clip[None], time), each[None]) for clip, time, each in zip(x0, t.split(1), noise, strict=True)
        ]
        return self._loss(_each(denoiser, x0), x0, condition, drawn)

    def observe(self, process: object, t: Tensor, per_sample: Tensor) -> None:
        """Lets the objective see times and losses."""
        self.of.observe(process, t, per_sample)

    def _loss(
        self,
        own: Sequence[Denoiser],
        x0: Sequence[Tensor],
        condition: Condition | None,
        drawn: Sequence[tuple[SampledTimes, Tensor]],
    ) -> LossOutput:
        shown = [self.of.shown(one, clip[None], *chance) for one, clip, chance in zip(own, x0, drawn, strict=True)]
        answers = _packed(own, shown, condition) if self.how == "packed" else _by_size(own, shown, condition)
        found = [self.of.judged(*each) for each in zip(own, shown, answers, strict=True)]
        per_sample, t = (torch.cat([getattr(one, name) for one in found]) for name in ("per_sample", "t"))
        terms = {name: torch.cat([one.terms[name] for one in found]) for name in found[0].terms}
        return LossOutput(torch.stack([one.value for one in found]).mean(), per_sample, t, terms)


def token_counts(model: Model, items: IndexableItems) -> Tensor:
    """The tokens of each item, int64 (N,), every size of which the network takes.

    Raises:
        RecipeError: the data set does not know the sizes of its items.
        ShapeError: a size that the codec or the network does not take.
    """
    distinct, of_item = torch.unique(sizes_of(items), dim=0, return_inverse=True)
    return torch.tensor([_tokens(model, size) for size in distinct.tolist()])[of_item]


def check_sizes(model: Model, items: IndexableItems) -> None:
    """Whether the model takes the sizes of all items, or where these are not known, that of the first.

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
            f"pictures ({model.shape[0]}, H, W)"
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
    known: dict[torch.Size, Denoiser] = {}
    for clip in x0:
        if clip.shape not in known:
            process = resized(denoiser.process, tuple(clip.shape))
            known[clip.shape] = denoiser if process is denoiser.process else denoiser.under(process)
    return [known[clip.shape] for clip in x0]


def _packed(own: Sequence[Denoiser], shown: Sequence[NoisedBatch], condition: Condition | None) -> list[Tensor]:
    """What the network answers, all clips in one row."""
    asked = [one.inputs(each.x, each.seen) for one, each in zip(own, shown, strict=True)]
    found, _ = _network(own[0]).packed([x[0] for x, _ in asked], [t[0] for _, t in asked], condition)
    return [one.checked(y[None], x)[0] for one, y, (x, _) in zip(own, found, asked, strict=True)]


def _by_size(own: Sequence[Denoiser], shown: Sequence[NoisedBatch], condition: Condition | None) -> list[Tensor]:
    """The same, by one call for each size."""
    asked = [one.inputs(each.x, each.seen) for one, each in zip(own, shown, strict=True)]
    buckets: dict[torch.Size, list[int]] = defaultdict(list)
    for place, (x, _) in enumerate(asked):
        buckets[x.shape].append(place)
    answers: dict[int, Tensor] = {}
    for places in buckets.values():
        x, t = (torch.cat([asked[place][which] for place in places]) for which in range(2))
        part = None if condition is None else condition.map(lambda route, rows=places: route[rows])
        y, _ = own[places[0]].checked(own[0].network(x, t, part), x)
        answers |= dict(zip(places, y.split(1), strict=True))
    return [answers[place] for place in range(len(asked))]


def _network(denoiser: Denoiser) -> VideoDiT:
    network = denoiser.network
    if not isinstance(network, VideoDiT):
        raise RecipeError(f"train.batching: for the network video-dit, not {type(network).__name__}; leave it out")
    return network
