"""The words of the training texts, which encoders that are trained with the network know."""

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
    """Gives conditioners whose words are trained with the network the vocabulary of a data set's texts.

    Raises:
        RecipeError: items without a text, or texts without a word.
    """
    for one in model.conditioners.values():
        if isinstance(one, LearnedTextEncoder) and (
            one.vocabulary is None or any(parameter.requires_grad for parameter in one.parameters())
        ):
            one.learn(all_captions(items, one.key))


def drop_unknown_captions(model: Model, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions of items that never train, in which captions of unknown words alone are empty, as in training."""
    found = dict(raw)
    for one in model.conditioners.values():
        if isinstance(one, LearnedTextEncoder) and one.vocabulary is not None and one.key in found:
            own = [str(text) for text in found[one.key]]
            found[one.key] = [text if one.knows(text) else "" for text in own]
            if count := sum(map(str.__ne__, own, found[one.key])):
                _log.warning("%d of %d captions hold no word that the model knows: read as none", count, len(own))
    return found


def all_captions(items: IndexableItems, key: str) -> Iterator[str]:
    """The texts of a data set, of a large one some, spread evenly.

    Raises:
        RecipeError: an item without one.
    """
    count = min(len(items), MOST)
    places = [place * len(items) // count for place in range(count)]
    facts: Any = getattr(items, "facts", None)  # what is known without reading a picture
    told: Any = getattr(items, "told", None)  # the same of several items at once
    for start in range(0, count, _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        if told is not None:
            found = told(part)
        else:
            found = items_of(items, part) if facts is None else [facts(place) for place in part]
        for item, place in zip(found, part, strict=True):
            text = str(value_of(item, key, place))  # of several, each is a text of the data
            yield from item.get("texts") or (text,)
