"""The mean of models that were trained on from one another: weights that lie between theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.errors import RecipeError, WeightsError
from unveil.model.model import Model
from unveil.nn.tokenizer import Vocabulary


def average_weights(models: Sequence[Model], shares: Sequence[float]) -> Model:
    """The first of some models, with the weighted mean of all their weights.

    A network that was trained on, and the one that it began as, often have a path between them on which the new is
    known already and the old is not forgotten yet. Networks of unlike beginnings have none.

    Args:
        models: of one network. The first gives its settings; it is changed, and returned. Words that a model does not
            know yet are those of the others.
        shares: one for each, divided by their sum; one below 0 leads away from its model.

    Raises:
        RecipeError: fewer than two models, another number of shares, or shares whose sum is not above 0.
        WeightsError: networks that differ (names a weight), or vocabularies of which none begins the other.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", equation 1 (arXiv:2109.01903); of more than
        two: Wortsman et al. 2022, "Model soups" (arXiv:2203.05482).
    """
    if len(models) < 2 or len(models) != len(shares) or not sum(shares) > 0:
        told = ", ".join(f"{share:g}" for share in shares) or "none"
        raise RecipeError(
            f"{len(models)} models, shares {told}: give two models or more, a share for each, and shares whose sum is "
            "above 0"
        )
    first, states = models[0], [dict(model.state_dict()) for model in models]
    for number, state in enumerate(states[1:], 2):
        _check_alike(states[0], state, number)
    parts = torch.tensor(shares, dtype=torch.float64)
    words = {name: [_vocabulary(model, name) for model in models] for name in _told_in_words(first)}
    tables = {f"conditioners.{name}.words.table.weight": _known(name, found) for name, found in words.items()}
    for key, own in states[0].items():
        if own.is_floating_point():
            values = torch.stack([state[key].double() for state in states])
            own.copy_(_mean(values, parts, tables.get(key)))
    for name, found in words.items():
        part = first.conditioners[name]
        assert isinstance(part, LearnedTextEncoder)
        part.vocabulary = max(found, key=len)
    return first


def _mean(values: Tensor, parts: Tensor, known: Tensor | None) -> Tensor:
    """The mean of M weights (M, ...); of a table (M, N, C) each row that of the models that know it.

    Args:
        known: how many rows of the table each knows, (M,).
    """
    if known is None:
        return torch.tensordot(parts / parts.sum(), values, 1)
    rows = torch.arange(values.shape[1])
    each = parts[:, None] * (rows < known[:, None])
    each[0] += (rows >= known.max()).to(each)  # rows that no word has yet stay those of the first
    alone = each.sum(0) <= 0  # known to models alone from which a share leads away
    each[:, alone] = (rows < known[:, None])[:, alone].to(each)
    return ((each / each.sum(0))[..., None] * values).sum(0)


def _told_in_words(model: Model) -> list[str]:
    return [name for name, part in model.conditioners.items() if isinstance(part, LearnedTextEncoder)]


def _vocabulary(model: Model, name: str) -> Vocabulary:
    part = model.conditioners[name]
    found = part.vocabulary if isinstance(part, LearnedTextEncoder) else None
    if found is None:
        raise WeightsError(f"{name}: a model without a vocabulary; train it first")
    return found


def _known(name: str, found: Sequence[Vocabulary]) -> Tensor:
    """How many words each of the vocabularies has, (M,)."""
    longest = max(found, key=len).tokens
    for one in found:
        if longest[: len(one.tokens)] != one.tokens:
            at = next(n for n, (a, b) in enumerate(zip(longest, one.tokens, strict=False)) if a != b)
            raise WeightsError(
                f"{name}: word {at} is {longest[at]!r} in one model and {one.tokens[at]!r} in another; only models "
                "that were trained on from one another have a mean"
            )
    return torch.tensor([len(one) for one in found])


def _check_alike(own: Mapping[str, Tensor], other: Mapping[str, Tensor], number: int) -> None:
    for key in [*own, *(key for key in other if key not in own)]:
        shapes = [tuple(one[key].shape) if key in one else "missing" for one in (own, other)]
        if shapes[0] != shapes[1]:
            raise WeightsError(
                f"{key}: {shapes[0]} in model 1, {shapes[1]} in model {number}; only models of one network have a mean"
            )
