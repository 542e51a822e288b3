"""Bits per dimension on held-out images: by the variational bound, and by the probability-flow ODE."""

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
from unveil.errors import DataError, RecipeError
from unveil.evaluate.image_set import ImageDataset
from unveil.evaluate.metrics import Interval, bootstrap
from unveil.io.images import to_unit
from unveil.model import Model
from unveil.types import Item

TOLERANCE = 1e-4  # of the ODE solver, far below the error of the probes


class DatasetBitsPerDim(NamedTuple):
    """Variational bound in bits/dim over images: mean with its interval, and the terms of each image."""

    interval: Interval
    per_image: Tensor  # (N,)
    prior: Tensor  # (N,)
    terms: Tensor  # (N, T), from the noisiest step to the data, the decoder last


class DatasetOdeBitsPerDim(NamedTuple):
    """Bits/dim by the probability-flow ODE over images.

    Attributes:
        interval: Mean with its interval.
        per_image: Bits/dim of each image (N,).
        error: Standard error of the mean that is due to the probes; NaN with one probe.
        calls: Mean number of function evaluations over the batches.
    """

    interval: Interval
    per_image: Tensor  # (N,)
    error: float
    calls: float


def bits_per_dim(
    model: Model,
    dataset: ImageDataset,
    *,
    count: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 50,
    on_progress: Callable[[int, int], object] | None = None,
) -> DatasetBitsPerDim:
    """Return the variational bound of the model on images of a data set, each with its own noise.

    Conditions are read from the items; x0 is clipped to [-1, 1] as published.

    Args:
        count: Number of images, which are spread evenly over the data set; None: all.
        steps: Number of steps of the chain; each number has its own bound. None: all steps of the process.
        on_progress: Function of the number of finished function evaluations and of all of them.

    Raises:
        RecipeError: The model is a latent model, whose bound does not apply to pixels, or a continuous process has no
            number of steps.
        DataError: The data set is empty, or its items lack a condition of the model.
    Source: Ho et al. 2020, eq. 5 (arXiv:2006.11239).
    """
    rows = _chosen(model, dataset, count)
    chain = _chain(model, steps)
    total, done = -(-len(rows) // batch) * len(chain), 0
    priors, terms = [], []
    for step, x0, noise in _batches(model, dataset, rows, batch, seed):
        before = done

        def on_term(k: int, _: int, before: int = before) -> None:
            if on_progress:
                on_progress(before + k, total)

        vlb = bound(clip_static(step), chain, x0, model.variance, noise=noise, on_term=on_term)
        done += len(chain)
        priors.append(vlb.prior.double().cpu())
        terms.append(vlb.terms.double().cpu())
    prior, term = torch.cat(priors), torch.cat(terms)
    image_bits = prior + term.sum(1)
    return DatasetBitsPerDim(_interval(image_bits, seed), image_bits, prior, term)


def ode_bits_per_dim(
    model: Model,
    dataset: ImageDataset,
    *,
    count: int | None = None,
    probes: int = 2,
    seed: int = 0,
    batch: int = 25,
    on_progress: Callable[[int, int], object] | None = None,
) -> DatasetOdeBitsPerDim:
    """Return the likelihood of images of a data set by the probability-flow ODE, each with its own noise.

    It applies to every process and has no chain. Conditions are read from the items. Nothing is clipped.

    Args:
        count: Number of images, which are spread evenly over the data set; None: all.
        probes: Number of random directions for the estimate of the trace; each costs a backward pass.
        on_progress: Function of the number of finished images and of all images.

    Raises:
        RecipeError: The model is a latent model, or there are no probes.
        DataError: The data set is empty, or its items lack a condition of the model.
        NonFinite: The solution of the ODE is not finite.
    Source: Song et al. 2021, section 4.3 and appendix D.2 (arXiv:2011.13456).
    """
    rows = _chosen(model, dataset, count)
    values, errors, calls = [], [], []
    for step, x0, noise in _batches(model, dataset, rows, batch, seed):
        nll = ode_bits(step, model.process, x0, noise=noise, probes=probes, tolerance=TOLERANCE)
        values.append(nll.value)
        errors.append(nll.error)
        calls.append(nll.calls)
        if on_progress:
            on_progress(sum(len(part) for part in values), len(rows))
    image_bits = torch.cat(values)
    error = float(torch.cat(errors).square().sum().sqrt()) / len(rows)
    return DatasetOdeBitsPerDim(_interval(image_bits, seed), image_bits, error, sum(calls) / len(calls))


def _interval(image_bits: Tensor, seed: int) -> Interval:
    return bootstrap(lambda rows: float(image_bits[rows].mean()), len(image_bits), seed=seed)


def _chosen(model: Model, dataset: ImageDataset, count: int | None) -> list[int]:
    """Return the rows of the images, which are spread evenly over the data set."""
    if not isinstance(model.autoencoder, Identity):
        raise RecipeError("bits/dim of latents are not those of pixels; they need a model without an autoencoder")
    if not len(dataset):
        raise DataError("a data set without images has no bits/dim")
    wanted = min(count or len(dataset), len(dataset))
    return [i * len(dataset) // wanted for i in range(wanted)]


def _batches(
    model: Model, dataset: ImageDataset, rows: Sequence[int], batch: int, seed: int
) -> Iterator[tuple[DenoiseFn, Tensor, Noise]]:
    """Yield the denoise function of each batch with its condition, its images in [-1, 1], and their noise."""
    training = model.training
    model.eval()
    try:
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            items = [dataset[i] for i in chosen]
            x0 = to_unit(torch.stack([item["pixels"] for item in items])).to(model.device)
            with torch.no_grad():
                condition, _ = model.encode(_raw(model, items), len(items))
            yield (
                model.denoise_fn(condition),
                x0,
                SampleRNG(seed, chosen, device=model.device).bind(tuple(x0.shape[1:])),
            )
    finally:
        model.train(training)


def _chain(model: Model, steps: int | None) -> Chain:
    process = model.process
    if isinstance(process, DiscreteVP):
        return Chain(schedules.respaced(process, "" if steps is None else str(steps)))
    if steps is None:
        raise RecipeError("a continuous process needs a number of steps, e.g. 1000")
    return Chain(schedules.uniform(process, steps))


def _raw(model: Model, items: Sequence[Item]) -> dict[str, Any]:
    """Return the items' values for each condition of the model."""
    raw: dict[str, Any] = {}
    for key in model.conditioners:
        absent = sum(key not in item for item in items)
        if absent:
            raise DataError(f"{absent} of {len(items)} images have no {key!r}, which the model is conditioned on")
        values = [item[key] for item in items]
        raw[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return raw
