"""The variational bound of a model on pictures, in bits per dimension: how well it compresses what it never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil.codec import Identity
from unveil.core import grids
from unveil.core.guidance import clip_static
from unveil.core.likelihood import bound
from unveil.core.noise import Streams
from unveil.core.process import DiscreteVP
from unveil.core.transition import Chain
from unveil.evaluate.features import to_unit
from unveil.evaluate.metrics import Interval, bootstrap
from unveil.evaluate.pictures import Pictured
from unveil.model import Model
from unveil.types import Item, MediaError, RecipeError


class Bits(NamedTuple):
    """The bound in bits/dim: over pictures, with its interval, and what it is made of."""

    interval: Interval
    per_picture: Tensor  # (N,)
    prior: Tensor  # (N,)
    terms: Tensor  # (N, T), from the noisiest step to the data, the decoder last


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
    if not isinstance(model.codec, Identity):
        raise RecipeError("a bound on latents is not a bound on pixels; bits/dim need a model without an autoencoder")
    if not len(dataset):
        raise MediaError("a data set without pictures has no bits/dim")
    chain = _chain(model, steps)
    wanted = min(count or len(dataset), len(dataset))
    rows = [i * len(dataset) // wanted for i in range(wanted)]
    total = -(-wanted // batch) * len(chain)
    training, done = model.training, 0
    model.eval()
    priors, terms = [], []
    try:
        for start in range(0, wanted, batch):
            chosen = rows[start : start + batch]
            items = [dataset[i] for i in chosen]
            x0 = to_unit(torch.stack([item["pixels"] for item in items])).to(model.device)
            with torch.no_grad():
                condition, _ = model.encode(_raw(model, items), len(items))
            noise = Streams(seed, chosen, device=model.device).bind(tuple(x0.shape[1:]))
            before = done

            def tell(k: int, _: int, before: int = before) -> None:
                if on_progress:
                    on_progress(before + k, total)

            found = bound(clip_static(model.step(condition)), chain, x0, model.variance, noise=noise, on_term=tell)
            done += len(chain)
            priors.append(found.prior.double().cpu())
            terms.append(found.terms.double().cpu())
    finally:
        model.train(training)
    prior, term = torch.cat(priors), torch.cat(terms)
    per_picture = prior + term.sum(1)
    interval = bootstrap(lambda rows: float(per_picture[rows].mean()), wanted, seed=seed)
    return Bits(interval, per_picture, prior, term)


def _chain(model: Model, steps: int | None) -> Chain:
    process = model.process
    if isinstance(process, DiscreteVP):
        return Chain(grids.respaced(process, "" if steps is None else str(steps)))
    if steps is None:
        raise RecipeError("a continuous process has no number of steps of its own; give steps, e.g. 1000")
    return Chain(grids.uniform(process, steps))


def _raw(model: Model, items: Sequence[Item]) -> dict[str, Any]:
    """What the items say about each thing that the model is conditioned on."""
    raw: dict[str, Any] = {}
    for key in model.conditioners:
        absent = sum(key not in item for item in items)
        if absent:
            raise MediaError(f"{absent} of {len(items)} pictures have no {key!r}, which the model is conditioned on")
        values = [item[key] for item in items]
        raw[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return raw
