"""Rule-based prompt expansion: short playground prompts become detailed ones, in the vocabulary of training.

Source: Betker et al. 2023, "Improving image generation with better captions", appendix C; Brooks et al. 2024.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from unveil.playground.caption_parser import ambiguous, contradictory, language_of, parse, unparsed
from unveil.playground.dataset import SPECIAL_SCENES
from unveil.playground.world import caption_templates
from unveil.playground.world.caption_templates import Facts
from unveil.playground.world.motion import VideoShape
from unveil.playground.world.scene_completion import complete_scene

RULES = "rules"
SIDE, FRAMES, RATE = 32, 16, 8  # of the videos that are imagined
_MOVING = ("motion", "turn", "wall", "speed")  # what only videos show


class Expansion(NamedTuple):
    """A prompt and its expansion.

    Attributes:
        prompt: The original prompt.
        text: The expansion.
        by: Name of the expander; empty if the prompt is unchanged.
        note: Reason why the prompt is unchanged, or why another expander than the requested one was used.
    """

    prompt: str
    text: str
    by: str = ""
    note: str = ""


def expand_by_rules(prompt: str, seed: int = 0, frames: int = FRAMES) -> Expansion:
    """Expand a playground prompt to a dense caption in its own language.

    Attributes that the prompt states are kept. The others are sampled from the distribution of the playground, by the
    seed and the prompt. A prompt stays unchanged if it has unknown words, has two values of one attribute, or is
    ambiguous about the object of an attribute, since an expansion could contradict it.

    Args:
        prompt: Prompt in English or Chinese.
        seed: Seed of the attributes that the prompt does not state.
        frames: Number of frames; 1 for images, which get no motion unless the prompt states one.
    """
    parsed = parse(prompt)
    if strange := unparsed(prompt):
        return Expansion(prompt, prompt, note=f"the rules do not know {', '.join(map(repr, strange))}")
    if other := contradictory(prompt):
        return Expansion(prompt, prompt, note=f"it says more than one {', '.join(dict.fromkeys(other))} of one thing")
    if unsure := ambiguous(prompt):
        return Expansion(
            prompt, prompt, note=f"of which thing it says the {', '.join(dict.fromkeys(unsure))} is unclear"
        )
    if not parsed["objects"] and "scene" not in parsed:
        return Expansion(prompt, prompt, note="it names no thing that the rules know")
    if parsed["objects"] and "camera" in parsed and all("start" in thing for thing in parsed["objects"]):
        return Expansion(prompt, prompt, RULES)  # dense already
    moves = frames > 1 or "scene" in parsed or any(name in thing for thing in parsed["objects"] for name in _MOVING)
    moves = moves or "bar" in parsed or parsed.get("camera", "static") != "static"
    view = VideoShape(SIDE, SIDE, FRAMES if moves else 1, RATE)
    facts = complete_scene(
        parsed, view, zlib.crc32(f"{seed} {prompt}".encode("utf-8", "surrogatepass")), SPECIAL_SCENES
    )
    text = caption_templates.write_caption(facts, "dense", language_of(prompt), (0.0,) * caption_templates.DRAWS).text
    if dropped_attributes(parsed, parse(text)):
        return Expansion(prompt, prompt, note="the rules find no clip that shows all of it")
    return Expansion(prompt, text, RULES)


def dropped_attributes(before: Facts, after: Facts) -> list[str]:
    """Return the attributes of a prompt that its expansion changes or drops; empty if all are kept."""
    missing = [name for name, value in before.items() if name != "objects" and after.get(name) != value]
    things = after["objects"]
    if len(things) < len(before["objects"]) or (before["objects"] and len(things) > len(before["objects"])):
        return [*missing, "objects"]
    for thing, other in zip(before["objects"], things, strict=False):
        missing += [name for name, value in thing.items() if other.get(name) != value]
    return missing
