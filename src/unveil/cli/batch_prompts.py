"""`unveil sample --prompts FILE`: a set of pictures for each line of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unveil.cli.generation_options import PROMPT, GenerationOptions, assigned, opened
from unveil.cli.sample import in_passes
from unveil.data.prompts import Prompt, check_lines, read_prompts
from unveil.errors import RecipeError
from unveil.generation.generate import Request
from unveil.generation.image_output import ImageOutput, draw, filenames, write
from unveil.generation.prompt_expansion import USUAL, ExpansionOptions, PromptExpander, expanded
from unveil.io.console import Console
from unveil.model import Model


@dataclass(frozen=True)
class Line:
    """A line of a file, and what it asks a model for."""

    prompt: Prompt
    request: Request

    @property
    def mark(self) -> str:
        """What the names of its files begin with."""
        return f"line{self.prompt.line:04d}_"

    @property
    def names(self) -> list[str]:
        """Of its pictures."""
        rows = [self.request.part(row, row + 1) for row in range(self.request.count)]
        numbered = [(one.seed if isinstance(one.seed, int) else one.seed[0], one.first) for one in rows]
        return [f"{self.mark}{name}" for name in filenames(numbered)]


def sample_each(
    wish: GenerationOptions,
    path: Path,
    changes: Mapping[str, Any],
    place: ImageOutput,
    console: Console,
    *,
    beside: Mapping[str, object],
    expanding: ExpansionOptions = USUAL,
) -> None:
    """Draws a set of pictures for each line of a file, and writes each set when it is drawn.

    Args:
        wish: what is asked for where a line says nothing else.
        path: of the file; see `data.prompts`.
        changes: of the settings of sampling, likewise.
        place: a folder.
        console: what says how it goes.
        beside: other options that say what is drawn, by name; none of them may be given.
        expanding: how prompts are made dense.

    Raises:
        RecipeError: a prompt or another such option is given too, or the pictures were to go into one file.
        MediaError: faulty lines, all listed by number; nothing was drawn.
    """
    if wish.model is None:
        raise RecipeError(f"--prompts needs a model: unveil sample MODEL --prompts {path}")
    typed = [*wish.prompts, *assigned(wish.given, "--cond", {}).get(PROMPT, [])]
    others = [*(f"the prompt {one!r}" for one in typed[:1]), *(name for name, given in beside.items() if given)]
    if others:
        raise RecipeError(f"--prompts {path} and {others[0]}: give one of them")
    if place.one_file:
        raise RecipeError(f"--out {place.out}: --prompts makes a set of images for each line; give a folder")
    place.check()
    prompts = read_prompts(path)
    model, source = opened(wish, wish.model, console)
    if PROMPT not in model.conditioners:
        raise RecipeError(
            f"--prompts {path}: this model takes no prompt, only: {', '.join(model.conditioners) or 'nothing'}"
        )
    lines = asked(prompts, wish, model, changes, path)
    for one in lines:
        place.check(one.names, mark=one.mark)
    sets: list[dict[str, Any]] = []
    expander = PromptExpander(expanding, model, console, shown=bool(wish.controls))
    for number, one in enumerate(lines, 1):
        console.say(f"line {one.prompt.line} ({number} of {len(lines)}): {one.prompt.prompt}")
        request = expander(one.request)
        edit, request = in_passes(model, source, request, place, console)
        written = write(draw(model, source, request, place, console, edit), place, one.names, mark=one.mark)
        told = {"line": one.prompt.line, "prompt": one.prompt.prompt, "seed": one.request.seed}
        told["count"] = len(written.images)
        sets.append(told | expanded(request) | written.facts())
    files = [name for one in sets for name in one["images"]]
    facts = {"images": files, "count": len(files), "prompts": str(path), "sets": sets, "model": source._asdict()}
    console.result(facts, f"{len(files)} images of {len(sets)} prompts: {files[0]} ... {Path(files[-1]).name}")


def asked(
    prompts: Sequence[Prompt], wish: GenerationOptions, model: Model, changes: Mapping[str, Any], path: Path
) -> list[Line]:
    """What every line of a file asks for: what it says itself, and the wish for all else.

    Raises:
        MediaError: lines that ask for what cannot be, such as an unknown sampler.
    """
    common = replace(wish, seed=0).request(model, changes, 1)
    found: list[Line] = []
    faults: list[str] = []
    for one in prompts:
        own = {"steps": one.steps, "guidance_scale": one.scale, "sampler": one.sampler}
        sampling = {**common.sampling, **{name: value for name, value in own.items() if value is not None}}
        seed = wish.seed if one.seed is None else one.seed
        count = one.count or wish.count or (1 if isinstance(seed, int) else len(seed))
        negative = {**common.negative, **({} if one.negative is None else {PROMPT: [one.negative]})}
        given = {**common.given, PROMPT: [one.prompt]}
        try:
            model.sampling.changed(sampling).levels(model.process)
            request = replace(common, given=given, negative=negative, seed=seed, count=count, sampling=sampling)
            request.part(0, 1)  # more values of another condition than pictures
            found.append(Line(one, request))
        except RecipeError as problem:
            faults.append(f"line {one.line}: {problem}")
    check_lines(path, faults)
    return found
