"""Texts turned into others by a sequence model, and what its heads look at while it does so."""

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
    """A text that a model wrote.

    log_probability: natural, of the whole text. ended: False where it was cut off.
    """

    text: str
    log_probability: float
    ended: bool


class TranslationAttention(NamedTuple):
    """Attention weights of a model's heads.

    source, target: the tokens as written, the end of the source and the begin of the target included.
    weights: (heads, N, M) each, by name: `encoder.0`, and `decoder.0` on its own tokens, `crossed.0` on the source.
    """

    source: list[str]
    target: list[str]
    weights: dict[str, Tensor]


def translate(
    model: SequenceModel, texts: Sequence[str], *, beams: int = 1, length_power: float = 0.6, batch: int = 64
) -> list[Translation]:
    """Return the translation of each text; one beam is greedy decoding.

    Raises:
        RecipeError: An empty text.
        ShapeError: A text beyond the model's limit.
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

    A target with a token that the model does not know is never written.

    Raises:
        RecipeError, ShapeError: As in `translate`.
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
        RecipeError, ShapeError: As in `translate`.
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
    """The parts of a text that the model has no token for."""
    return [part for part in model.source.split(text) if UNKNOWN in model.source.encode(part)]


def _batches(model: SequenceModel, texts: Sequence[str], batch: int) -> Iterator[tuple[Sequence[str], Tensor, Tensor]]:
    """Texts with their tokens (B, M), the end included, and which of these count."""
    device = next(model.network.parameters()).device
    for first in range(0, len(texts), batch):
        part = texts[first : first + batch]
        numbers = [model.source.encode(text) for text in part]
        for text, tokens in zip(part, numbers, strict=True):
            if not tokens:
                raise RecipeError(f"text {text!r}: holds nothing to read; give words")
        source = pad_sequences([[*tokens, END] for tokens in numbers]).to(device)
        yield part, source, source != PADDING
