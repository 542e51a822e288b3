"""How many of the frozen list of free prompts are followed, and how many of the others are reported.

`python -m tests.playground.prompt_following` generates a video of each prompt of `free_prompts.yaml`, one seed each,
and prints the shares and every prompt that is not followed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from torch import Tensor

import unveil
from unveil.generation.generate import PROMPT, Request, generate
from unveil.generation.prompt_expansion import ExpansionOptions, PromptExpander, vocabulary_of
from unveil.io.console import Console
from unveil.model import Model
from unveil.playground.detector import detect_objects
from unveil.playground.prompt_reader import PromptReading, read_prompt
from unveil.playground.scene_detectors import corridor_progress
from unveil.playground.temporal_consistency import ground_name

LIST = Path(__file__).with_name("free_prompts.yaml")
DEFAULT = "playground-video"
PARTS = {
    "corner": ("upper left", "upper right", "lower left", "lower right"),
    "left": ("left", "upper left", "lower left"),
    "right": ("right", "upper right", "lower right"),
    "top": ("top", "upper left", "upper right"),
    "bottom": ("bottom", "lower left", "lower right"),
}


class FreePrompt(NamedTuple):
    """A prompt of the list: its language and model, what a video must show, or why it is outside."""

    text: str
    language: str
    model: str
    sees: Mapping[str, Any]
    outside: str


def free_prompts(path: Path = LIST) -> list[FreePrompt]:
    """The prompts of the list."""
    table = yaml.safe_load(path.read_text("utf-8"))
    return [
        FreePrompt(row["prompt"], language, row.get("model", DEFAULT), row.get("sees", {}), row.get("outside", ""))
        for language, rows in table.items()
        for row in rows
    ]


def shows(wanted: Any, value: Any, name: str = "") -> bool:
    """Whether a value is one of those that the list accepts; `corner` and others name several places."""
    accepted = wanted if isinstance(wanted, list) else [wanted]
    if name == "start":
        accepted = [place for each in accepted for place in PARTS.get(each, (each,))]
    return value in accepted


def seen(pixels: Tensor) -> dict[str, Any]:
    """What the detector reads in a video uint8 (3, T, H, W)."""
    found = detect_objects(pixels, max_objects=1)
    if not found:
        return {}
    (thing,) = found
    names = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
    x, y = thing.centres[np.flatnonzero(thing.visible)[0]] / pixels.shape[:-3:-1]
    return {
        "shape": thing.shape, "colour": thing.colour, "size": thing.size, "motion": thing.motion_name,
        "turn": None if thing.motion is None else thing.motion.turn, "ground": ground_name(pixels),
        "start": names[min(max(int(3 * y), 0), 2)][min(max(int(3 * x), 0), 2)],
    }  # fmt: skip


def missing(prompt: FreePrompt, pixels: Tensor) -> list[str]:
    """What a video of a prompt should show and does not."""
    walks = prompt.sees.get("scene") == "corridor" and corridor_progress(pixels)[-1] > 0
    found = {"scene": "corridor"} if walks else seen(pixels)
    return [
        f"{name} {found.get(name)}" for name, wanted in prompt.sees.items() if not shows(wanted, found.get(name), name)
    ]


def reading_of(prompt: FreePrompt, model: Model) -> PromptReading:
    """The prompt as a model reads it."""
    vocabulary = vocabulary_of(model)
    assert vocabulary is not None
    return read_prompt(prompt.text, vocabulary)


def videos(model: Model, prompts: Sequence[FreePrompt], seed: int = 0) -> list[Tensor]:
    """A video of each prompt, as `unveil video` generates it."""
    expander = PromptExpander(ExpansionOptions(), model, Console(quiet=True), frames=model.shape[1])
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        texts = [expander(Request({PROMPT: [prompt.text]}, seed)).cond[PROMPT][0] for prompt in prompts]
    request = Request({PROMPT: texts}, (seed,) * len(texts), count=len(texts), batch=8)
    return [sample.pixels for sample in generate(model, request)]


def main() -> None:
    """Print the shares."""
    prompts = free_prompts()
    followed, failures, wrong, unreported = 0, list[str](), list[str](), list[str]()
    for name in dict.fromkeys(prompt.model for prompt in prompts):
        model = unveil.load(name)
        own = [prompt for prompt in prompts if prompt.model == name]
        wrong += [prompt.text for prompt in own if prompt.sees and not reading_of(prompt, model).is_complete]
        unreported += [prompt.text for prompt in own if prompt.outside and reading_of(prompt, model).is_complete]
        inside = [prompt for prompt in own if prompt.sees]
        for prompt, pixels in zip(inside, videos(model, inside), strict=True):
            lacks = missing(prompt, pixels)
            followed += not lacks
            failures += [f"{prompt.text}: {', '.join(lacks)}"] if lacks else []
    inside = sum(bool(prompt.sees) for prompt in prompts)
    outside = len(prompts) - inside
    print(f"followed: {followed} of {inside} inside the vocabulary ({followed / inside:.1%})")
    print(f"reported: {outside - len(unreported)} of {outside} outside; wrongly reported: {len(wrong)} of {inside}")
    print(*(f"  not followed: {text}" for text in failures), sep="\n")
    print(
        *(f"  wrongly reported: {text}" for text in wrong),
        *(f"  not reported: {text}" for text in unreported),
        sep="\n",
    )


if __name__ == "__main__":
    main()
