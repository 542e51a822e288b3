"""How much of what clips show a captioner tells right: its captions are read back and compared with the truth."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import __version__
from unveil.evaluate.image_set import Pictured, spread
from unveil.evaluate.metrics import bootstrap, share
from unveil.evaluate.report import Report
from unveil.io import images as pictures
from unveil.playground.caption_parser import parse, unread
from unveil.playground.world.caption_templates import LISTS, Facts
from unveil.types import Item, RecipeError

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SHOWN = 8  # clips on the page
Tell = Callable[[Sequence[Item]], list[str]]  # items with "pixels" and "fps" to their captions


class Checked(NamedTuple):
    """What a caption says of a clip, attribute by attribute.

    right: whether each attribute of the truth is told as it is, by a name such as "colour". parses: whether all of its
    words are known, and as many things are told as there are, each with its colour and shape.
    """

    right: tuple[tuple[str, bool], ...]
    parses: bool


def check(truth: Facts, caption: str) -> Checked:
    """Compares a caption with what a right one says.

    Args:
        truth: as `data.world.telling.Caption.said` has it.
        caption: any text.
    """
    told = parse(caption)
    right = [(name, told.get(name) == value) for name, value in truth.items() if name != "objects"]
    things: Sequence[Facts] = told["objects"]
    for place, one in enumerate(truth["objects"]):
        # by its colour, for captions may tell things in another order
        same = next((thing for thing in things if thing.get("colour") == one.get("colour")), None)
        found = same or (things[place] if place < len(things) else {})
        right += [(name, found.get(name) == value) for name, value in one.items() if name in LISTS]
    named = all("colour" in thing and "shape" in thing for thing in things) and told.get("scene") == truth.get("scene")
    return Checked(tuple(right), named and not unread(caption) and len(things) == len(truth["objects"]))


def evaluate_captions(
    tell: Tell,
    held_out: Pictured,
    *,
    count: int,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """A report on the captions of held-out clips.

    Args:
        tell: the captioner.
        held_out: clips of the playground, whose items tell the truth as "said".
        count: of them, spread evenly.
        seed: of the bootstrap behind the intervals.
        about: for the record only.

    Raises:
        RecipeError: clips that do not tell the truth.
    """
    items = spread(held_out, count)
    if "said" not in items[0]:
        raise RecipeError("evaluate: these data do not say what is true of them; only those of the playground do")
    captions = tell(items)
    checked = [check(item["said"], caption) for item, caption in zip(items, captions, strict=True)]
    others = [check(item["said"], captions[place - 1]) for place, item in enumerate(items)]
    results = {
        "captions": {
            "count": len(items),
            "attributes": _share_of_attributes(checked, seed),
            "parse": share(torch.tensor([one.parses for one in checked]))._asdict(),
            "whole": share(torch.tensor([all(right for _, right in one.right) for one in checked]))._asdict(),
            "chance": _share_of_attributes(others, seed)["value"],
            "by_attribute": _by_attribute(checked),
            "shown": [
                {"told": caption, "truth": item["text"]}
                for item, caption in zip(items[:SHOWN], captions[:SHOWN], strict=True)
            ],
        }
    }
    clips = [_clip(item["pixels"]) for item in items[:SHOWN]]
    digest = hashlib.sha256("\n".join(str(item["text"]) for item in items).encode()).hexdigest()
    protocol = {
        "version": VERSION,
        "count": len(items),
        "rule": "attributes of the true caption, read back from the one that is told; things by their colour",
        "captions_sha256": digest,
        "seed": seed,
    }
    images = {"told": pictures.png(pictures.strips(clips))}
    return Report(protocol, results, {}, {"unveil": __version__, **(about or {})}, images)


def _share_of_attributes(checked: Sequence[Checked], seed: int) -> dict[str, float]:
    """The share of all attributes that are right; its interval is over clips."""
    right = torch.tensor([sum(ok for _, ok in one.right) for one in checked], dtype=torch.float64)
    total = torch.tensor([len(one.right) for one in checked], dtype=torch.float64)
    found = bootstrap(lambda rows: float(right[rows].sum() / total[rows].sum()), len(checked), draws=1000, seed=seed)
    return found._asdict()


def _by_attribute(checked: Sequence[Checked]) -> dict[str, float]:
    hits = defaultdict[str, list[bool]](list)
    for one in checked:
        for name, right in one.right:
            hits[name].append(right)
    return {name: sum(found) / len(found) for name, found in sorted(hits.items())}


def _clip(pixels: Tensor) -> Tensor:
    return pixels[:, None] if pixels.ndim == 3 else pixels
