"""Whether clips and pictures of the playground show what they were asked for: colour, shape, motion, all the time."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unveil import __version__
from unveil.evaluate import plots
from unveil.evaluate.conditional import Draw, drawn_for
from unveil.evaluate.image_set import digest_of
from unveil.evaluate.metrics import share
from unveil.evaluate.report import Report
from unveil.io.images import to_pixels
from unveil.model import Model
from unveil.playground.detector import read
from unveil.playground.eval_prompts import Asked, Prompt, score_clips, score_prompts
from unveil.playground.shapes import COLOURS, KINDS
from unveil.playground.world.caption_templates import REGISTERS, Language
from unveil.playground.world.motion import TEN
from unveil.types import Item, PromptTruncated, RecipeError

VERSION = 1  # of the protocol: raised when the same settings would give other numbers
SIZE, RATE = (16, 32, 32), 8  # of the score world: frames, height, width; frames a second
ASKED = ("colour", "shape", "motion")  # what every prompt says, and a clip is right by
BESIDE = ("size", "turn")  # what some say
SHOWN, MISSED = 20, 40  # clips in the film; those in the list of what went wrong
_VISIBLE = "visible"  # in every frame
# of a clip that shows anything whatever of the score world
_CHANCE = {"colour": 1 / len(COLOURS), "shape": 1 / len(KINDS), "motion": 1 / len(TEN)}
_STILL = "pictures do not move, and only combinations with a motion are held out"


class Look(NamedTuple):
    """What a clip's one object is read as, by attribute, None where it is not; and whether every frame shows it."""

    facts: Mapping[str, str | None]
    visible: bool


def look(pixels: Tensor, rate: int = RATE) -> Look:
    """The one object of a clip uint8 (3, T, H, W), that of the most frequent colour.

    Raises:
        ShapeError: another type or shape.
    """
    for thing in read(pixels, fps=rate, most=1):
        turn = None if thing.motion is None else thing.motion.turn
        facts = {"colour": thing.colour, "shape": thing.shape, "size": thing.size, "motion": thing.does, "turn": turn}
        return Look(facts, bool(thing.visible.all()))
    return Look(dict.fromkeys((*ASKED, *BESIDE)), False)


def evaluate_clips(
    model: Model,
    how: Draw,
    lists: Sequence[Asked] = ("seen", "held-out"),
    *,
    count: int = 500,
    language: Language = "en",
    about: Mapping[str, Any] | None = None,
) -> Report:
    """One clip drawn for each prompt of the score world, read back by the detector as it is drawn, uncompressed.

    Beside each share stand that of the real clips that the prompts are said of, which is the most that the detector
    allows, and chance, that of clips of anything in the world.

    Args:
        model: of clips or pictures, with a condition `prompt`; one of another size is asked for the world's. Pictures
            are asked for colour and shape.
        how: they are drawn.
        lists: of prompts, see `data.asked.score_prompts`.
        count: prompts of each list.
        language: of the prompts.
        about: for the record only: command, commit, CPU-minutes.

    Raises:
        RecipeError: a model of something else, or another list.
    """
    model = _of_the_world(model)
    frames = SIZE[0] if len(model.shape) == 4 else 1
    missing = {"held-out": _STILL} if frames == 1 and "held-out" in lists else {}
    lists = [asked for asked in lists if asked not in missing]
    results: dict[str, Any] = {}
    images: dict[str, bytes] = {}
    texts: list[Item] = []
    for number, asked in enumerate(lists):
        prompts = score_prompts(asked, language=language, count=count, frames=frames)
        items: list[Item] = [{"text": prompt.text} for prompt in prompts]
        pixels = _drawn(model, items, how, number * count)
        looks, real = ([look(one) for one in own] for own in (pixels, _real(asked, prompts, frames)))
        results[asked] = _judged(prompts, looks, real)
        images |= _shown(asked, prompts, pixels, looks)
        texts += items
    protocol = {
        "version": VERSION,
        "prompts": count,
        "lists": list(lists),
        "language": language,
        "size": list(model.shape[1:]),
        "rule": "of the object of the most frequent colour; the detector on frames as they are drawn",
        "seed": how.seed,
        "batch": how.batch,
        "precision": str(model.precision).removeprefix("torch."),
        "sampling": {**(how.sampling or model.sampling).brief(), "weights": "ema"},
        "prompts_sha256": digest_of(texts, ("text",)),
    }
    told = {"data": "playground", "unveil": __version__, **(about or {})}
    return Report(protocol, {"clips": results}, missing, told, images)


def _of_the_world(model: Model) -> Model:
    """The model for the size of the score world."""
    if len(model.shape) not in (3, 4) or model.shape[0] != 3:
        raise RecipeError(f"a model of {tuple(model.shape)}: the score is of clips (3, T, H, W) and pictures (3, H, W)")
    size = SIZE if len(model.shape) == 4 else SIZE[1:]
    return model if tuple(model.shape[1:]) == size else model.sized(size)


def _drawn(model: Model, items: Sequence[Item], how: Draw, before: int) -> Tensor:
    """A sample for each text, uint8; progress goes on from those drawn before."""
    tell = how.on_batch
    here = how if tell is None else how._replace(on_batch=lambda done: tell(before + done))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncated)  # raw texts hold numbers that no model knows
        return to_pixels(drawn_for(model, items, here))


def _real(asked: Asked, prompts: Sequence[Prompt], frames: int) -> list[Tensor]:
    return [item["pixels"] for item in score_clips(asked, prompts, frames=frames)]


def right(prompt: Prompt, seen: Look) -> dict[str, bool]:
    """Whether a clip shows what its prompt says, by attribute; "all" are colour, shape and motion together."""
    found = {name: seen.facts[name] == prompt.thing[name] for name in (*ASKED, *BESIDE) if name in prompt.thing}
    return {**found, "all": all(found[name] for name in ASKED if name in found), _VISIBLE: seen.visible}


def _judged(prompts: Sequence[Prompt], looks: Sequence[Look], real: Sequence[Look]) -> dict[str, Any]:
    """Everything that is said of one list: of clips, beside the real ones."""
    hits = [right(*pair) for pair in zip(prompts, looks, strict=True)]
    ceiling = [right(*pair) for pair in zip(prompts, real, strict=True)]
    groups = {
        "register": [prompt.register for prompt in prompts],
        "motion": [prompt.thing.get("motion") for prompt in prompts],
        "shape": [prompt.thing["shape"] for prompt in prompts],
    }
    orders = {"register": REGISTERS, "motion": TEN, "shape": KINDS}
    guessed = {name: chance for name, chance in _CHANCE.items() if name in prompts[0].thing}
    wrong = [n for n, hit in enumerate(hits) if not (hit["all"] and hit[_VISIBLE])]
    return {
        "count": len(prompts),
        **_shares(hits),
        "real_clips": _values(_shares(ceiling)),
        "chance": {**guessed, "all": math.prod(guessed.values())},
        **{
            f"by_{name}": {
                value: {
                    "count": kind.count(value),
                    **_shares([hit for hit, own in zip(hits, kind, strict=True) if own == value]),
                }
                for value in orders[name]
                if value in kind
            }
            for name, kind in groups.items()
        },
        "motions_read": _confused(prompts, looks),
        "missed": [{"number": n, "prompt": prompts[n].text, "read": dict(looks[n].facts)} for n in wrong[:MISSED]],
    }


def _shares(hits: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """Of each attribute the share of prompts that say it and whose clips show it, with its interval."""
    found: dict[str, dict[str, float]] = {}
    for name in (*ASKED, "all", _VISIBLE, *BESIDE):
        own = torch.tensor([hit[name] for hit in hits if name in hit])
        if len(own):
            found[name] = {**share(own)._asdict(), "count": len(own)}
    return found


def _values(shares: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {name: one["value"] for name, one in shares.items()}


def _confused(prompts: Sequence[Prompt], looks: Sequence[Look]) -> dict[str, dict[str, int]]:
    """How often clips of each motion are read as which."""
    pairs = Counter(
        (prompt.thing["motion"], str(seen.facts["motion"]))
        for prompt, seen in zip(prompts, looks, strict=True)
        if "motion" in prompt.thing
    )
    names = [name for name in TEN if any(own == name for own, _ in pairs)]
    return {name: {read_as: n for (own, read_as), n in pairs.items() if own == name} for name in names}


def _shown(asked: Asked, prompts: Sequence[Prompt], pixels: Tensor, looks: Sequence[Look]) -> dict[str, bytes]:
    """A film of the first clips of each motion, frames of some of them, and a film of the first that went wrong.

    Of pictures sheets of the first, and of the first that went wrong.
    """
    wrong = [n for n, pair in enumerate(zip(prompts, looks, strict=True)) if not right(*pair)["all"]][: SHOWN // 2]
    if pixels.ndim == 4:
        sheets = {"clips": pixels[: 2 * SHOWN], "missed": pixels[wrong]}
        return {f"{name} {asked}": plots.sheet(own, SHOWN // 2) for name, own in sheets.items() if len(own)}
    first = [
        [n for n, prompt in enumerate(prompts) if prompt.thing["motion"] == name][: SHOWN // len(TEN)] for name in TEN
    ]
    chosen = [n for own in first for n in own]
    found = {f"clips {asked}": plots.film(pixels[chosen], RATE, SHOWN // 2)}
    found[f"frames {asked}"] = plots.strips(pixels[[own[0] for own in first if own]])
    if wrong:
        found[f"missed {asked}"] = plots.film(pixels[wrong], RATE, SHOWN // 2)
    return found
