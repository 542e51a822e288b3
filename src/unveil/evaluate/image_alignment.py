"""Whether scenes hold what they were asked for in words, and lose what a negative prompt names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from unveil import __version__
from unveil.evaluate import plots
from unveil.evaluate.conditional import Draw, drawn_for
from unveil.evaluate.image_set import Pictured, digest_of, spread
from unveil.evaluate.metrics import mean
from unveil.evaluate.report import Report
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.playground.scene_captions import CAPTIONS, Language, Thing
from unveil.playground.scene_iou import Seen, seen_objects
from unveil.playground.scenes import LARGE, SMALL
from unveil.playground.shapes import COLOURS, KINDS, SQUARE
from unveil.types import Item

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SHOWN = 48  # pictures on a sheet
BOUND = (SMALL[1] + LARGE[0]) / 2  # a radius above it is a large object's
PROMPT = "prompt"


def evaluate_prompts(
    model: Model,
    held_out: Pictured,
    how: Draw,
    *,
    languages: Sequence[Language] = ("en",),
    count: int = 500,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """One scene drawn for each held-out caption, and pairs of scenes drawn with and without a negative prompt.

    An attribute that a caption names, a size, a colour or a kind, is read back where the scene shows as many objects
    of it as are named. The pairs are of the same noise: the prompt names a kind and leaves the colour open, such as "a
    circle", the negative prompt a colour, such as "red"; each kind comes with each colour.

    Args:
        model: with a condition `prompt`.
        held_out: scenes.
        how: they are drawn; the seed is that of the intervals too.
        languages: of the prompts of the pairs, in turn.
        count: captions, spread evenly, and pairs.
        about: for the record only: command, commit, CPU-minutes.
    """
    items = spread(held_out, count)
    pixels = to_pixels(drawn_for(model, items, how))
    seen = [seen_objects(one) for one in pixels]
    said = [_named(item) for item in items]
    results: dict[str, Any] = {"named": _read_back(seen, said, items, how.seed)}
    asked, away, colours = _pairs(count, languages)
    plain = drawn_for(model, asked, how)
    other = drawn_for(model, asked, how, negative={PROMPT: away})
    results["negative"] = _lowered(plain, other, colours, how.seed)
    protocol = {
        "version": VERSION,
        "captions": len(items),
        "pairs": len(asked),
        "languages": list(languages),
        "rule": "as many objects seen of each named size, colour and kind as are named; objects by their colour",
        "seed": how.seed,
        "sampling": {**(how.sampling or model.sampling).brief(), "weights": "ema"},
        "held_out_sha256": digest_of(items, ("pixels", "text")),
    }
    images = {
        "samples": plots.sheet(pixels[:SHOWN], 12),
        "negative": plots.pairs(to_pixels(plain[: SHOWN // 2]), to_pixels(other[: SHOWN // 2])),
    }
    return Report(protocol, results, {}, {"data": "scenes", "unveil": __version__, **(about or {})}, images)


def _named(item: Item) -> Counter[str]:
    """The attributes that a caption names, and how often."""
    things = _each(Seen(item["boxes"], item["kinds"], item["colours"]))
    told = zip(things, item["said"].tolist(), strict=True)
    return Counter(word for words, said in told for word, is_said in zip(words, said, strict=True) if is_said)


def _shown(seen: Seen) -> Counter[str]:
    """The attributes of what a scene shows."""
    return Counter(word for words in _each(seen) for word in words)


def _each(seen: Seen) -> list[tuple[str, str, str]]:
    """Size, colour and kind of each object, in words."""
    found: list[tuple[str, str, str]] = []
    for box, kind, colour in zip(seen.boxes, seen.kinds.tolist(), seen.colours.tolist(), strict=True):
        radius = float(box[2:].max()) / 2 / (SQUARE if KINDS[kind] == "square" else 1)
        found.append(("large" if radius > BOUND else "small", list(COLOURS)[colour], KINDS[kind]))
    return found


def _read_back(seen: list[Seen], said: list[Counter[str]], items: list[Item], seed: int) -> dict[str, Any]:
    """Shares of the named attributes that are seen: of all, by attribute, by language, by chance, of real pictures."""
    shown = [_shown(one) for one in seen]
    each = _shares(shown, said)
    groups = {"size": ("small", "large"), "colour": tuple(COLOURS), "kind": KINDS}
    counted = {
        name: [Counter({w: n for w, n in one.items() if w in words}) for one in said] for name, words in groups.items()
    }
    english = torch.tensor([item["text"].isascii() for item in items])
    by_language = {name: each[rows].mean().item() for name, rows in (("en", english), ("zh", ~english)) if rows.any()}
    real = [_shown(seen_objects(item["pixels"])) for item in items]
    right = [len(one.boxes) == len(item["boxes"]) for one, item in zip(seen, items, strict=True)]
    return {
        **mean(each, seed),
        "count": len(items),
        "by_attribute": {name: _shares(shown, one).nanmean().item() for name, one in counted.items()},
        "by_language": by_language,
        "together": _together(seen, items),
        "chance": _shares(shown[1:] + shown[:1], said).mean().item(),
        "real_pictures": _shares(real, said).mean().item(),
        "right_number": sum(right) / len(right),
    }


def _together(seen: list[Seen], items: list[Item]) -> float:
    """The share of named objects for which the scene has one with all that is said of it, each counted once."""
    met = asked = 0
    for one, item in zip(seen, items, strict=True):
        true = Seen(item["boxes"], item["kinds"], item["colours"])
        fits = [
            [all(mine == own for mine, own, is_said in zip(a, b, told, strict=True) if is_said) for b in _each(one)]
            for a, told in zip(_each(true), item["said"].tolist(), strict=True)
        ]
        if fits[0]:
            rows, columns = linear_sum_assignment(np.array(fits), maximize=True)
            met += int(np.array(fits)[rows, columns].sum())
        asked += len(fits)
    return met / asked


def _shares(shown: list[Counter[str]], said: list[Counter[str]]) -> Tensor:
    """Of each picture the share of what is said that is shown; NaN where nothing is said."""
    both = zip(shown, said, strict=True)
    return torch.tensor([(a & b).total() / b.total() if b else float("nan") for a, b in both], dtype=torch.float64)


def _pairs(count: int, languages: Sequence[Language]) -> tuple[list[Item], list[str], list[int]]:
    """Prompts that leave the colour open, the colours as negative prompts, and their numbers."""
    every = list(product(range(len(KINDS)), range(len(COLOURS))))
    asked: list[Item] = []
    away: list[str] = []
    colours: list[int] = []
    for number in range(count):
        kind, colour = every[number % len(every)]
        tell = CAPTIONS[languages[number // len(every) % len(languages)]]
        asked.append({"text": tell([Thing(KINDS[kind], None, None, 0.5, 0.5)])})
        away.append(tell([Thing(None, list(COLOURS)[colour], None, 0.5, 0.5)]))
        colours.append(colour)
    return asked, away, colours


def _lowered(plain: Tensor, other: Tensor, colours: list[int], seed: int) -> dict[str, Any]:
    """By how much the share of scenes with the colour falls, and both shares."""
    without, given = (
        torch.tensor(
            [colour in seen_objects(one).colours for one, colour in zip(to_pixels(made), colours, strict=True)]
        )
        for made in (plain, other)
    )
    drop = mean(without.double() - given.double(), seed)
    shares = {"without": without.double().mean().item(), "with": given.double().mean().item()}
    return {**drop, **shares, "count": len(colours)}
