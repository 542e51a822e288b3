"""Weight averaging (model soups) of models that were fine-tuned from one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.errors import RecipeError, WeightsError
from unveil.model.model import Model
from unveil.nn.tokenizer import Vocabulary


def average_weights(models: Sequence[Model], shares: Sequence[float]) -> Model:
    """Return the first model with the weighted mean of the weights of all.

    Between a network and the one that it was fine-tuned from, there are often weights that have learned the new data
    and have not forgotten the old. Networks of different initial weights have none.

    Args:
        models: Models of one network. The first gives its settings; it is changed, and returned. A word that a model
            does not have takes its weights from the others.
        shares: Share of each model, divided by their sum; a share below 0 leads away from its model.

    Raises:
        RecipeError: There are fewer than two models, or the shares are not one per model with a sum above 0.
        WeightsError: The networks differ (the message names a weight), or no vocabulary begins with all others.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", equation 1 (arXiv:2109.01903); of more than
        two: Wortsman et al. 2022, "Model soups" (arXiv:2203.05482).
    """
    if len(models) < 2 or len(models) != len(shares) or not sum(shares) > 0:
        listed = ", ".join(f"{share:g}" for share in shares) or "none"
        raise RecipeError(
            f"{len(models)} models, shares {listed}: give two models or more, a share for each, and shares whose sum "
            "is above 0"
        )
    first, states = models[0], [dict(model.state_dict()) for model in models]
    for number, state in enumerate(states[1:], 2):
        _check_alike(states[0], state, number)
    parts = torch.tensor(shares, dtype=torch.float64)
    vocabularies = {name: [_vocabulary(model, name) for model in models] for name in _learned_text_encoders(first)}
    sizes = {f"conditioners.{name}.words.table.weight": _sizes(name, each) for name, each in vocabularies.items()}
    for key, tensor in states[0].items():
        if tensor.is_floating_point():
            values = torch.stack([state[key].double() for state in states])
            tensor.copy_(_mean(values, parts, sizes.get(key)))
    for name, each in vocabularies.items():
        part = first.conditioners[name]
        assert isinstance(part, LearnedTextEncoder)
        part.vocabulary = max(each, key=len)
    return first


def _mean(values: Tensor, parts: Tensor, sizes: Tensor | None) -> Tensor:
    """Return the mean of M tensors (M, ...); of word embeddings (M, N, C) each row is that of the models that have it.

    Args:
        sizes: Vocabulary size of each model, (M,); None: the tensors are not word embeddings.
    """
    if sizes is None:
        return torch.tensordot(parts / parts.sum(), values, 1)
    rows = torch.arange(values.shape[1])
    weights = parts[:, None] * (rows < sizes[:, None])
    weights[0] += (rows >= sizes.max()).to(weights)  # rows without a word yet stay those of the first
    negative = weights.sum(0) <= 0  # only models with a share below 0 have the word
    weights[:, negative] = (rows < sizes[:, None])[:, negative].to(weights)
    return ((weights / weights.sum(0))[..., None] * values).sum(0)


def _learned_text_encoders(model: Model) -> list[str]:
    return [name for name, part in model.conditioners.items() if isinstance(part, LearnedTextEncoder)]


def _vocabulary(model: Model, name: str) -> Vocabulary:
    part = model.conditioners[name]
    vocabulary = part.vocabulary if isinstance(part, LearnedTextEncoder) else None
    if vocabulary is None:
        raise WeightsError(f"{name}: a model without a vocabulary; train it first")
    return vocabulary


def _sizes(name: str, vocabularies: Sequence[Vocabulary]) -> Tensor:
    """Return the number of words of each vocabulary, (M,)."""
    longest = max(vocabularies, key=len).tokens
    for tokens in (vocabulary.tokens for vocabulary in vocabularies):
        if longest[: len(tokens)] != tokens:
            at = next(n for n, (a, b) in enumerate(zip(longest, tokens, strict=False)) if a != b)
            raise WeightsError(
                f"{name}: word {at} is {longest[at]!r} in one model and {tokens[at]!r} in another; only models "
                "that were trained on from one another have a mean"
            )
    return torch.tensor([len(vocabulary) for vocabulary in vocabularies])


def _check_alike(first: Mapping[str, Tensor], other: Mapping[str, Tensor], number: int) -> None:
    for key in [*first, *(key for key in other if key not in first)]:
        shapes = [tuple(state[key].shape) if key in state else "missing" for state in (first, other)]
        if shapes[0] != shapes[1]:
            raise WeightsError(
                f"{key}: {shapes[0]} in model 1, {shapes[1]} in model {number}; only models of one network have a mean"
            )
