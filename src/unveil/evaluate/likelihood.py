"""How well a model compresses pictures that it never saw, in bits per dimension: by its chain, and by its ODE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.autoencoders import Identity
from unveil.core import schedules
from unveil.core.denoiser import DenoiseFn
from unveil.core.guidance import clip_static
from unveil.core.likelihood import bound
from unveil.core.ode_likelihood import ode_bits
from unveil.core.process import DiscreteVP
from unveil.core.rng import Noise, SampleRNG
from unveil.core.transition import Chain
from unveil.evaluate.image_set import Pictured
from unveil.evaluate.metrics import Interval, bootstrap
from unveil.io.images import to_unit
from unveil.model import Model
from unveil.types import DataError, Item, RecipeError

TOLERANCE = 1e-4  # of the ODE: far below what the probes leave open


class Bits(NamedTuple):
    """The bound in bits/dim: over pictures, with its interval, and what it is made of."""

    interval: Interval
    per_picture: Tensor  # (N,)
    prior: Tensor  # (N,)
    terms: Tensor  # (N, T), from the noisiest step to the data, the decoder last


class OdeBits(NamedTuple):
    """Bits/dim under the probability-flow ODE: over pictures, with its interval.

    error: the standard error of the mean that comes from the probes alone; NaN with one probe.
    calls: of the network, the mean over the batches.
    """

    interval: Interval
    per_picture: Tensor  # (N,)
    error: float
    calls: float


def bits_per_dim(
    model: Model,
    dataset: Pictured,
    *,
    count: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 50,
    on_progress: Callable[[int, int], object] | None = None,
) -> Bits:
    """The bound of the model's chain on pictures of a data set, each noised by its own stream.

    Conditions are read from the items; x0 is clipped to [-1, 1] as published.

    Args:
        count: pictures, spread evenly over the data set; None: all.
        steps: of the chain; a shorter one is a model of its own, with its own bound. None: all that the process has.
        on_progress: told the network calls done and the calls in all, for the whole batch.

    Raises:
        RecipeError: a latent model, whose bound is not one on pixels, or no steps for a continuous process.
        MediaError: an empty data set, or items without what the model is conditioned on.
    Source: Ho et al. 2020, eq. 5 (arXiv:2006.11239).
    """
    rows = _chosen(model, dataset, count)
    chain = _chain(model, steps)
    total, done = -(-len(rows) // batch) * len(chain), 0
    priors, terms = [], []
    for step, x0, noise in _batches(model, dataset, rows, batch, seed):
        before = done

        def tell(k: int, _: int, before: int = before) -> None:
            if on_progress:
                on_progress(before + k, total)

        found = bound(clip_static(step), chain, x0, model.variance, noise=noise, on_term=tell)
        done += len(chain)
        priors.append(found.prior.double().cpu())
        terms.append(found.terms.double().cpu())
    prior, term = torch.cat(priors), torch.cat(terms)
    per_picture = prior + term.sum(1)
    return Bits(_interval(per_picture, seed), per_picture, prior, term)


def ode_bits_per_dim(
    model: Model,
    dataset: Pictured,
    *,
    count: int | None = None,
    probes: int = 2,
    seed: int = 0,
    batch: int = 25,
    on_progress: Callable[[int, int], object] | None = None,
) -> OdeBits:
    """The likelihood of the model's probability-flow ODE on pictures of a data set, each with its own streams.

    Works under every process, and needs no chain. Conditions are read from the items; nothing is clipped.

    Args:
        count: pictures, spread evenly over the data set; None: all.
        probes: random directions that the trace is estimated by; each costs a backward pass.
        on_progress: told the pictures done and the pictures in all.

    Raises:
        RecipeError: a latent model, or no probe.
        MediaError: an empty data set, or items without what the model is conditioned on.
        NonFinite: the ODE left the finite numbers.
    Source: Song et al. 2021, section 4.3 and appendix D.2 (arXiv:2011.13456).
    """
    rows = _chosen(model, dataset, count)
    values, errors, calls = [], [], []
    for step, x0, noise in _batches(model, dataset, rows, batch, seed):
        found = ode_bits(step, model.process, x0, noise=noise, probes=probes, tolerance=TOLERANCE)
        values.append(found.value)
        errors.append(found.error)
        calls.append(found.calls)
        if on_progress:
            on_progress(sum(len(part) for part in values), len(rows))
    per_picture = torch.cat(values)
    error = float(torch.cat(errors).square().sum().sqrt()) / len(rows)
    return OdeBits(_interval(per_picture, seed), per_picture, error, sum(calls) / len(calls))


def _interval(per_picture: Tensor, seed: int) -> Interval:
    return bootstrap(lambda rows: float(per_picture[rows].mean()), len(per_picture), seed=seed)


def _chosen(model: Model, dataset: Pictured, count: int | None) -> list[int]:
    """The rows of the pictures, spread evenly over the data set."""
    if not isinstance(model.codec, Identity):
        raise RecipeError("bits/dim of latents are not those of pixels; they need a model without an autoencoder")
    if not len(dataset):
        raise DataError("a data set without pictures has no bits/dim")
    wanted = min(count or len(dataset), len(dataset))
    return [i * len(dataset) // wanted for i in range(wanted)]


def _batches(
    model: Model, dataset: Pictured, rows: Sequence[int], batch: int, seed: int
) -> Iterator[tuple[DenoiseFn, Tensor, Noise]]:
    """The step with the condition of each batch bound, its pictures in [-1, 1], and their noise."""
    training = model.training
    model.eval()
    try:
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            items = [dataset[i] for i in chosen]
            x0 = to_unit(torch.stack([item["pixels"] for item in items])).to(model.device)
            with torch.no_grad():
                condition, _ = model.encode(_raw(model, items), len(items))
            yield model.step(condition), x0, SampleRNG(seed, chosen, device=model.device).bind(tuple(x0.shape[1:]))
    finally:
        model.train(training)


def _chain(model: Model, steps: int | None) -> Chain:
    process = model.process
    if isinstance(process, DiscreteVP):
        return Chain(schedules.respaced(process, "" if steps is None else str(steps)))
    if steps is None:
        raise RecipeError("a continuous process has no number of steps of its own; give steps, e.g. 1000")
    return Chain(schedules.uniform(process, steps))


def _raw(model: Model, items: Sequence[Item]) -> dict[str, Any]:
    """What the items say about each thing that the model is conditioned on."""
    raw: dict[str, Any] = {}
    for key in model.conditioners:
        absent = sum(key not in item for item in items)
        if absent:
            raise DataError(f"{absent} of {len(items)} pictures have no {key!r}, which the model is conditioned on")
        values = [item[key] for item in items]
        raw[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return raw
