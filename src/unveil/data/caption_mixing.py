"""Caption mixing: an item with two captions gets mostly the synthetic one, and sometimes the original.

Source: Betker et al. 2023, section 3: 95 % synthetic captions and 5 % of the original ones train best.
"""

from __future__ import annotations

import random

from unveil.data.folder_index import IndexEntry
from unveil.data.tensor_dataset import stable_hash
from unveil.types import Item

SHARE = 0.95  # of synthetic captions
_RANKS = 10_000


def pick_caption(entry: IndexEntry, share: float, *, fixed: bool) -> Item:
    """The caption of an item, "text", empty where it has none; where it has two, both are its "texts".

    Args:
        entry: with `text`, its own, and `synthetic`, that of a captioner.
        share: Probability of the synthetic caption.
        fixed: chosen by a hash of its name, the same each time, for items that never train; else drawn each time, by
            the generator that training sets for each batch.
    """
    if not entry.synthetic or not entry.text:
        return {"text": entry.text or entry.synthetic or ""}
    draw = stable_hash(f"caption {entry.path}") % _RANKS / _RANKS if fixed else random.random()
    return mix_captions(entry.text, entry.synthetic, share, draw)


def mix_captions(original: str, synthetic: str, share: float, draw: float) -> Item:
    """One of two captions, "text", and both, "texts".

    Args:
        original: Caption that the item came with. synthetic: Caption of a captioner.
        share: Probability of the synthetic caption. draw: Random number in [0, 1).
    """
    return {"text": synthetic if draw < share else original, "texts": (original, synthetic)}
