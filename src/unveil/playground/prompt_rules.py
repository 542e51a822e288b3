"""Short prompts made dense, in the words that a model was trained on: what is not said is filled in.

Source: Betker et al. 2023, "Improving image generation with better captions", appendix C; Brooks et al. 2024.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from unveil.playground.caption_parser import language_of, parse, twice, unclear, unread
from unveil.playground.dataset import SHOTS
from unveil.playground.world import caption_templates
from unveil.playground.world.caption_templates import Facts
from unveil.playground.world.motion import View
from unveil.playground.world.scene_completion import imagined

RULES = "rules"
SIDE, FRAMES, RATE = 32, 16, 8  # of the clips that are imagined
_MOVING = ("motion", "turn", "wall", "speed")  # what only clips show


class Expansion(NamedTuple):
    """A prompt as it was typed, and what the model is told.

    by: what expanded it; empty where it was left as it was. note: why it was left, or why by something else than was
    asked for.
    """

    asked: str
    text: str
    by: str = ""
    note: str = ""


def rules(prompt: str, seed: int = 0, frames: int = FRAMES) -> Expansion:
    """A prompt of the playground in its dense register, in its own language: a clip that shows it, and is possible.

    Everything that is said stays. What is not said is drawn, by the seed and the prompt, as the playground draws it. A
    prompt with words that the playground does not have, with two values of one attribute, or where it is not clear of
    which thing something is said, is left as it is, for what is meant could be contradicted.

    Args:
        prompt: in English or Chinese.
        seed: of what is not said.
        frames: 1 for pictures, of which no motion is told unless the prompt says one.
    """
    said = parse(prompt)
    if strange := unread(prompt):
        return Expansion(prompt, prompt, note=f"the rules do not know {', '.join(map(repr, strange))}")
    if other := twice(prompt):
        return Expansion(prompt, prompt, note=f"it says more than one {', '.join(dict.fromkeys(other))} of one thing")
    if unsure := unclear(prompt):
        return Expansion(
            prompt, prompt, note=f"of which thing it says the {', '.join(dict.fromkeys(unsure))} is unclear"
        )
    if not said["objects"] and "scene" not in said:
        return Expansion(prompt, prompt, note="it names no thing that the rules know")
    if said["objects"] and "camera" in said and all("start" in one for one in said["objects"]):
        return Expansion(prompt, prompt, RULES)  # dense already
    moves = frames > 1 or "scene" in said or any(name in one for one in said["objects"] for name in _MOVING)
    moves = moves or "bar" in said or said.get("camera", "static") != "static"
    view = View(SIDE, SIDE, FRAMES if moves else 1, RATE)
    facts = imagined(said, view, zlib.crc32(f"{seed} {prompt}".encode("utf-8", "surrogatepass")), SHOTS)
    text = caption_templates.tell(facts, "dense", language_of(prompt), (0.0,) * caption_templates.DRAWS).text
    if lost(said, parse(text)):
        return Expansion(prompt, prompt, note="the rules find no clip that shows all of it")
    return Expansion(prompt, text, RULES)


def lost(said: Facts, told: Facts) -> list[str]:
    """Attributes that are said, and told otherwise or not at all; empty where everything is kept."""
    missing = [name for name, value in said.items() if name != "objects" and told.get(name) != value]
    things = told["objects"]
    if len(things) < len(said["objects"]) or (said["objects"] and len(things) > len(said["objects"])):
        return [*missing, "objects"]
    for one, other in zip(said["objects"], things, strict=False):
        missing += [name for name, value in one.items() if other.get(name) != value]
    return missing
