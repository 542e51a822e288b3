"""`--expand-prompt`: prompts are expanded before a model reads them, printed, and stored in the metadata."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unveil.errors import PromptTruncated, RecipeError
from unveil.generation.generate import PROMPT, Request
from unveil.io.console import Console
from unveil.model import Model
from unveil.playground.prompt_rules import RULES
from unveil.prompting import Endpoint, Expansion, LanguageModel, LocalLanguageModel, expand_by_rules, rewrite


@dataclass(frozen=True)
class ExpansionOptions:
    """How prompts are made dense, as typed.

    Attributes:
        expand: "rules", the folder of a language model, or an address and a model's name there, URL#NAME; None: the
            rules, for models whose words are those of dense captions.
        no_expand: the model is told what was typed.
    """

    expand: str | None = None
    no_expand: bool = False

    def __post_init__(self) -> None:
        if self.no_expand and self.expand is not None:
            raise RecipeError("expand and no_expand: give one of them")

    @classmethod
    def from_option(cls, expand: str | None) -> ExpansionOptions:
        """The value of the option `--expand-prompt`."""
        return cls(no_expand=True) if expand == "none" else cls(expand)

    def writer(self, device: str) -> LanguageModel | None:
        """The language model that was asked for; None for the rules.

        Raises:
            RecipeError, WeightsError: it cannot be used.
        """
        if self.expand is None or self.expand == RULES:
            return None
        if "://" in self.expand:
            url, _, name = self.expand.partition("#")
            return Endpoint(url, name)
        return LocalLanguageModel(Path(self.expand), device)


USUAL = ExpansionOptions()


class PromptExpander:
    """Makes the prompts of requests dense, and keeps what was typed.

    Args:
        how: as typed.
        model: that is asked; without a word from the user, only one that learned its words and reads all of the dense
            caption.
        console: is told what the model is told.
        frames: of what is made; of a picture, 1.
        shown: the model is shown pictures as well, which what is filled in could contradict: prompts stay as they are,
            unless something else was asked for.

    Raises:
        RecipeError, WeightsError: the language model that was asked for cannot be used, or the rules by this model.
    """

    def __init__(
        self, how: ExpansionOptions, model: Model, console: Console, *, frames: int = 1, shown: bool = False
    ) -> None:
        self._how, self._console, self._frames = how, console, frames
        self._reads = _reader(model)
        wanted = how.expand is not None or (self._reads is not None and not shown)
        self._on = wanted and not how.no_expand
        self._writer = how.writer(str(model.device)) if self._on else None
        if self._on and self._writer is None and self._reads is None:
            raise RecipeError(
                f"--expand-prompt {RULES}: is for models that learned the playground's captions; give the folder of a "
                "language model"
            )

    def __call__(self, request: Request) -> Request:
        """The request under dense prompts."""
        prompts = [str(prompt) for prompt in request.given.get(PROMPT, ())] if self._on else []
        seed = request.seed if isinstance(request.seed, int) else request.seed[0]
        made = {prompt: self._expanded(prompt, seed) for prompt in dict.fromkeys(prompts)}
        for prompt, (one, _) in made.items():
            self._tell(prompt, one)
        every = [made[prompt] for prompt in prompts]
        texts = [one.text for one, _ in every]
        wanted = self._how.expand is not None and any(one.note for one, _ in every)  # why it was left is told too
        if texts == prompts and not wanted:
            return request
        notes = ["" if one.note == cost else one.note for one, cost in every]
        facts = {"by": [one.by for one, _ in every], "note": notes, "cost": [cost for _, cost in every]}
        asked = {PROMPT: prompts} | {name: values for name, values in facts.items() if any(values)}
        return replace(request, given={**request.given, PROMPT: texts}, asked=asked)

    def _tell(self, prompt: str, one: Expansion) -> None:
        if self._how.expand is None and one.text == prompt:
            return
        if self._writer is not None and one.by != self._writer.name:
            self._console.warn(f"--expand-prompt: {prompt!r}: {one.note}")
        elif not one.by and one.note:
            self._console.warn(f"--expand-prompt: {prompt!r} is left as it is: {one.note}")
        if one.text != prompt:
            self._console.say(f"prompt, expanded by {one.by}: {one.text}" + (f" ({one.note})" if one.note else ""))

    def _expanded(self, prompt: str, seed: int) -> tuple[Expansion, str]:
        """A prompt made dense, and what the language model took for it."""
        made = self._made(prompt, seed)
        return made, self._cost

    def _made(self, prompt: str, seed: int) -> Expansion:
        if self._reads is None:
            assert self._writer is not None
            return rewrite(prompt, self._writer, "free", seed)
        plain = expand_by_rules(prompt, seed, self._frames)
        made = plain if self._writer is None else rewrite(prompt, self._writer, "playground", seed, self._frames)
        if not made.by or self._reads(made.text):
            return made
        note = f"{made.by}: the model does not read all of {made.text!r}"
        instead = plain if made.by != RULES and self._reads(plain.text) else Expansion(prompt, prompt)
        return instead._replace(note=f"{made.note}; {note}" if made.note and made.note != self._cost else note)

    @property
    def _cost(self) -> str:
        """What the last answer took."""
        return "" if self._writer is None else self._writer.cost


def expanded(request: Request) -> dict[str, Any]:
    """For JSON, of a request that was expanded: each prompt as typed and as told, by what, why so, and what it took."""
    if not request.asked:
        return {}
    names = {"asked": PROMPT, "by": "by", "note": "note", "cost": "cost"}
    every = {name: request.asked[key] for name, key in names.items() if key in request.asked}
    each = zip(request.given[PROMPT], *every.values(), strict=True)
    return {"expanded": [{"told": told, **dict(zip(every, rest, strict=True))} for told, *rest in each]}


def _reader(model: Model) -> Callable[[str], bool] | None:
    """Whether a model reads all of a text, for models that learned their words from their captions; others: None."""
    conditioner: Any = dict(model.conditioners.items()).get(PROMPT)
    if getattr(conditioner, "vocabulary", None) is None:
        return None

    def reads(text: str) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PromptTruncated)
            try:
                conditioner.encode([text])
            except (PromptTruncated, RecipeError):
                return False
        return True

    return reads
