"""Inference with sequence models: translation, exact match, and attention weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unveil.errors import RecipeError
from unveil.model.seq2seq_folder import SequenceModel
from unveil.nn.decoding import beam, greedy
from unveil.nn.tokenizer import BEGIN, END, PADDING, UNKNOWN, pad_sequences
from unveil.nn.transformer import AttentionMaps
from unveil.playground.text_pairs import Pair


class Translation(NamedTuple):
    """Text that a model generated.

    Attributes:
        log_probability: Natural logarithm of the probability of the whole text.
        ended: True if the text ends with the end token, False if it was cut off at the limit.
    """

    text: str
    log_probability: float
    ended: bool


class TranslationAttention(NamedTuple):
    """Attention weights of a model's heads.

    Attributes:
        source, target: Tokens as written, with the end token of the source and the begin token of the target.
        weights: Weights (heads, N, M) by name: `encoder.0`; `decoder.0` of the self-attention and `crossed.0` of the
            cross-attention of the decoder.
    """

    source: list[str]
    target: list[str]
    weights: dict[str, Tensor]


def translate(
    model: SequenceModel, texts: Sequence[str], *, beams: int = 1, length_power: float = 0.6, batch: int = 64
) -> list[Translation]:
    """Return the translation of each text; one beam is greedy decoding.

    Raises:
        RecipeError: A text is empty.
        ShapeError: A text is longer than the model's limit.
    """
    translations: list[Translation] = []
    for part, source, mask in _batches(model, texts, batch):
        start = torch.full((len(part), 1), BEGIN, device=source.device)
        limit = model.network.config.max_length - 1  # the begin is one of the tokens that the model's own limit counts
        with torch.inference_mode():
            reading = model.network.start(source, mask)
            if beams == 1:
                decoded = greedy(reading, start, end=END, limit=limit)
            else:
                decoded = beam(reading, start, end=END, limit=limit, beams=beams, length_power=length_power)
        for tokens, logp, ended in zip(*decoded, strict=True):
            translations.append(Translation(model.target.decode(tokens), float(logp), bool(ended)))
    return translations


def exact_match(
    model: SequenceModel,
    pairs: Sequence[Pair],
    *,
    beams: int = 1,
    length_power: float = 0.6,
    batch: int = 64,
) -> list[bool]:
    """Return for each pair if the model predicts the target exactly, including its end.

    A target with a token outside the vocabulary never matches.

    Raises:
        RecipeError, ShapeError: A text is empty or too long, as in `translate`.
    """
    sources = [pair.source for pair in pairs]
    written = translate(model, sources, beams=beams, length_power=length_power, batch=batch)
    wanted = [model.target.encode(pair.target) for pair in pairs]
    return [
        translation.ended and UNKNOWN not in tokens and translation.text == model.target.decode(tokens)
        for translation, tokens in zip(written, wanted, strict=True)
    ]


def attention_maps(model: SequenceModel, source: str, target: str) -> TranslationAttention:
    """Return the attention weights of each head for a source and a target text, in one pass over both.

    Raises:
        RecipeError, ShapeError: A text is empty or too long, as in `translate`.
    """
    ((_, read, mask),) = _batches(model, [source], 1)
    written = [BEGIN, *model.target.encode(target)]
    encoder: list[AttentionMaps] = []
    decoder: list[AttentionMaps] = []
    with torch.inference_mode():
        context = model.network.encode(read, mask, encoder)
        model.network.decoder(torch.tensor([written], device=read.device), context=context, maps=decoder)
    weights = {f"encoder.{i}": maps.self_attention[0][0] for i, maps in enumerate(encoder)}
    weights |= {f"decoder.{i}": maps.self_attention[0][0] for i, maps in enumerate(decoder)}
    weights |= {f"crossed.{i}": maps.context[0][0] for i, maps in enumerate(decoder)}
    names = [model.source.token(number) for number in read[0].tolist()], [model.target.token(n) for n in written]
    return TranslationAttention(*names, {name: weight.float().cpu() for name, weight in weights.items()})


def unknown_tokens(model: SequenceModel, text: str) -> list[str]:
    """Return the parts of a text that are not in the vocabulary."""
    return [part for part in model.source.split(text) if UNKNOWN in model.source.encode(part)]


def _batches(model: SequenceModel, texts: Sequence[str], batch: int) -> Iterator[tuple[Sequence[str], Tensor, Tensor]]:
    """Yield batches of texts with their tokens (B, M), the end included, and the mask of the tokens."""
    device = next(model.network.parameters()).device
    for first in range(0, len(texts), batch):
        part = texts[first : first + batch]
        numbers = [model.source.encode(text) for text in part]
        for text, tokens in zip(part, numbers, strict=True):
            if not tokens:
                raise RecipeError(f"text {text!r}: holds nothing to read; give words")
        source = pad_sequences([[*tokens, END] for tokens in numbers]).to(device)
        yield part, source, source != PADDING
