"""The vocabulary of text encoders that are trained with the network, from the words of the training texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.model import Model
from unveil.train.data_order import IndexableItems, items_of, value_of

_log = logging.getLogger(__name__)
MOST = 20_000  # texts that are read, spread evenly over the data
_AT_ONCE = 500


def build_vocabulary(model: Model, items: IndexableItems) -> None:
    """Build the vocabularies of conditioners that are trained with the network, from a data set's texts.

    Raises:
        RecipeError: An item has no text, or the texts contain no word.
    """
    for encoder in model.conditioners.values():
        if isinstance(encoder, LearnedTextEncoder) and (
            encoder.vocabulary is None or any(parameter.requires_grad for parameter in encoder.parameters())
        ):
            encoder.build_vocabulary(all_captions(items, encoder.key))


def drop_unknown_captions(model: Model, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Replace captions of only unknown words in held-out items by empty ones, as in training."""
    conditions = dict(raw)
    for encoder in model.conditioners.values():
        if isinstance(encoder, LearnedTextEncoder) and encoder.vocabulary is not None and encoder.key in conditions:
            texts = [str(text) for text in conditions[encoder.key]]
            conditions[encoder.key] = [text if encoder.has_known_words(text) else "" for text in texts]
            if count := sum(map(str.__ne__, texts, conditions[encoder.key])):
                _log.warning("%d of %d captions hold no word that the model knows: read as none", count, len(texts))
    return conditions


def all_captions(items: IndexableItems, key: str) -> Iterator[str]:
    """Yield the texts of a data set; of a large one, a subset that is spread evenly.

    Raises:
        RecipeError: An item has no text.
    """
    count = min(len(items), MOST)
    places = [place * len(items) // count for place in range(count)]
    facts: Any = getattr(items, "facts", None)  # of one item, without reading its image
    annotations: Any = getattr(items, "annotations", None)  # the same of several items at once
    for start in range(0, count, _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        if annotations is not None:
            annotated = annotations(part)
        else:
            annotated = items_of(items, part) if facts is None else [facts(place) for place in part]
        for item, place in zip(annotated, part, strict=True):
            text = str(value_of(item, key, place))  # of several, each is a text of the data
            yield from item.get("texts") or (text,)
