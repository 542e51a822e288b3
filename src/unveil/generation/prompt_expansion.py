"""Prompts are read and expanded before a model gets them, printed, and stored in the metadata."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unveil.conditioning.prompt_weighting import truncate_for_message
from unveil.errors import PromptTruncated, RecipeError
from unveil.generation.generate import PROMPT, Request
from unveil.io.console import Console
from unveil.model import Model
from unveil.playground.prompt_reader import (
    PlaygroundVocabulary,
    PromptReading,
    describe_changes,
    describe_omissions,
    read_prompt,
)
from unveil.playground.prompt_rules import RULES
from unveil.prompting import Endpoint, Expansion, LanguageModel, LocalLanguageModel, expand_by_rules, rewrite


@dataclass(frozen=True)
class ExpansionOptions:
    """Options of the prompt expansion.

    Attributes:
        expand: "rules", the folder of a language model, or an address and a model's name there, URL#NAME; None: the
            rules, for models whose vocabulary is that of dense captions.
        no_expand: Leave prompts as they are.
    """

    expand: str | None = None
    no_expand: bool = False

    def __post_init__(self) -> None:
        if self.no_expand and self.expand is not None:
            raise RecipeError("expand and no_expand: give one of them")

    @classmethod
    def from_option(cls, expand: str | None) -> ExpansionOptions:
        """Return the options of a value of `--expand-prompt`."""
        return cls(no_expand=True) if expand == "none" else cls(expand)

    def writer(self, device: str) -> LanguageModel | None:
        """Return the language model of the option; None for the rules.

        Raises:
            RecipeError, WeightsError: It cannot be used.
        """
        if self.expand is None or self.expand == RULES:
            return None
        if "://" in self.expand:
            url, _, name = self.expand.partition("#")
            return Endpoint(url, name)
        return LocalLanguageModel(Path(self.expand), device)


DEFAULT_EXPANSION = ExpansionOptions()


class PromptExpander:
    """Reads and expands the prompts of requests, and keeps the original prompts.

    A model that learned the playground's captions gets every prompt in their words: spelling is corrected, synonyms
    are replaced, and what it cannot draw is reported in one sentence.

    Args:
        how: Options of the user.
        model: Model that is prompted. By default only prompts of a model with a learned vocabulary are expanded, if it
            reads the whole caption.
        console: Shows the expanded prompts.
        frames: Number of frames; 1 for an image.
        shown: True if the model is also conditioned on images, which added details could contradict: prompts are read
            but not expanded, unless the user sets `expand`.
        strict: A prompt of which something will not be drawn is an error.

    Raises:
        RecipeError, WeightsError: The language model of the options cannot be used, or this model cannot use the rules.
    """

    def __init__(
        self,
        how: ExpansionOptions,
        model: Model,
        console: Console,
        *,
        frames: int = 1,
        shown: bool = False,
        strict: bool = False,
    ) -> None:
        self._how, self._console, self._frames, self._strict = how, console, frames, strict
        self._reads = _reader(model)
        self._model, self._vocabulary = model, None if how.no_expand else vocabulary_of(model)
        wanted = how.expand is not None or (self._reads is not None and not shown)
        self._on = wanted and not how.no_expand
        self._writer = how.writer(str(model.device)) if self._on else None
        if self._on and self._writer is None and self._reads is None:
            raise RecipeError(
                f"--expand-prompt {RULES}: is for models that learned the playground's captions; give the folder of a "
                "language model"
            )

    def __call__(self, request: Request) -> Request:
        """Return the request with the prompts that the model gets.

        Raises:
            RecipeError: Under `strict`, something of a prompt will not be drawn.
        """
        prompts = [str(prompt) for prompt in request.cond.get(PROMPT, ())]
        readings = {prompt: self.read(prompt) for prompt in dict.fromkeys(prompts)}
        if not self._on:
            return _with_readings(request, [readings[prompt] for prompt in prompts])
        seed = request.seed if isinstance(request.seed, int) else request.seed[0]
        expansions = {prompt: self._expanded(reading, seed) for prompt, reading in readings.items()}
        for prompt, (expansion, _) in expansions.items():
            self._print(prompt, expansion)
        every = [expansions[prompt] for prompt in prompts]
        texts = [expansion.text for expansion, _ in every]
        # notes explain why a prompt was not expanded
        noted = self._how.expand is not None and any(expansion.note for expansion, _ in every)
        if texts == prompts and not noted:
            return _with_readings(request, [readings[prompt] for prompt in prompts])
        facts = {
            "by": [expansion.by for expansion, _ in every],
            "note": ["" if expansion.note == cost else expansion.note for expansion, cost in every],
            "cost": [cost for _, cost in every],
            **_facts_of([readings[prompt] for prompt in prompts]),
        }
        original = {PROMPT: prompts} | {name: values for name, values in facts.items() if any(values)}
        return replace(request, cond={**request.cond, PROMPT: texts}, original_cond=original)

    @property
    def reads_all(self) -> bool:
        """True if any prompt is read, the empty one too, since the model learned the playground's captions."""
        return self._vocabulary is not None

    def read(self, prompt: str) -> PromptReading:
        """Read a prompt, and show what is replaced and what will not be drawn.

        Raises:
            RecipeError: Under `strict`, something of the prompt will not be drawn.
        """
        if self._vocabulary is None:
            if self._strict:
                _refuse_truncated(self._model, prompt)
            return PromptReading(prompt, prompt)
        reading = read_prompt(prompt, self._vocabulary)
        shown = truncate_for_message(prompt)
        if not reading.is_complete:
            sentence = f"prompt {shown!r}: {describe_omissions(reading, self._vocabulary)}"
            if self._strict:
                raise RecipeError(f"{sentence} (strict)")
            self._console.warn(sentence)
        if reading.changes and reading.text:
            self._console.note(f"prompt, read with {describe_changes(reading)}: {reading.text}")
        return reading

    def _print(self, prompt: str, expansion: Expansion) -> None:
        text, by, note = expansion.text, expansion.by, expansion.note
        if self._how.expand is None and text == prompt:
            return
        if self._writer is not None and by != self._writer.name:
            self._console.warn(f"--expand-prompt: {prompt!r}: {note}")
        elif not by and note:
            self._console.warn(f"--expand-prompt: {prompt!r} is left as it is: {note}")
        if text not in ("", prompt):
            done = f"expanded by {by}" if by else "as the model gets it"
            self._console.say(f"prompt, {done}: {text}" + (f" ({note})" if note else ""))

    def _expanded(self, reading: PromptReading, seed: int) -> tuple[Expansion, str]:
        """Return the expansion of a prompt, and its cost."""
        if self.reads_all and not reading.text:
            return Expansion(reading.prompt, ""), ""
        expansion = self._expansion(reading.text, seed)._replace(prompt=reading.prompt)
        return expansion, self._cost

    def _expansion(self, prompt: str, seed: int) -> Expansion:
        if self._reads is None:
            assert self._writer is not None
            return rewrite(prompt, self._writer, "free", seed)
        plain = expand_by_rules(prompt, seed, self._frames)
        expansion = plain if self._writer is None else rewrite(prompt, self._writer, "playground", seed, self._frames)
        if not expansion.by or self._reads(expansion.text):
            return expansion
        note = f"{expansion.by}: the model does not read all of {expansion.text!r}"
        instead = plain if expansion.by != RULES and self._reads(plain.text) else Expansion(prompt, prompt)
        earlier = f"{expansion.note}; " if expansion.note and expansion.note != self._cost else ""
        return instead._replace(note=earlier + note)

    @property
    def _cost(self) -> str:
        """Cost of the language model's last answer."""
        return "" if self._writer is None else self._writer.cost


def _with_readings(request: Request, readings: Sequence[PromptReading]) -> Request:
    """Return the request with the text of readings; unchanged if they changed nothing."""
    texts, prompts = [reading.text for reading in readings], [reading.prompt for reading in readings]
    facts = {name: values for name, values in _facts_of(readings).items() if any(values)}
    if texts == prompts and not facts:
        return request
    return replace(request, cond={**request.cond, PROMPT: texts}, original_cond={PROMPT: prompts, **facts})


def _facts_of(readings: Sequence[PromptReading]) -> dict[str, list[str]]:
    return {
        "read": [describe_changes(reading) for reading in readings],
        "omitted": [_omitted(reading) for reading in readings],
    }


def _omitted(reading: PromptReading) -> str:
    return ", ".join(reading.omitted) or ("" if reading.text else "the prompt names nothing")


def _refuse_truncated(model: Model, prompt: str) -> None:
    """Refuse a prompt of which words do not reach the model.

    Raises:
        RecipeError: The message lists the words.
    """
    conditioner: Any = dict(model.conditioners.items()).get(PROMPT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PromptTruncated)
        try:
            if conditioner is not None:
                conditioner.encode([prompt])
        except PromptTruncated as problem:
            raise RecipeError(f"{problem} (strict)") from problem


def vocabulary_of(model: Model) -> PlaygroundVocabulary | None:
    """Return what a model knows of the playground's captions; None if it did not learn them."""
    conditioner: Any = dict(model.conditioners.items()).get(PROMPT)
    vocabulary = getattr(conditioner, "vocabulary", None)
    return None if vocabulary is None else PlaygroundVocabulary.of(vocabulary.tokens)


def omission_note(request: Request) -> str:
    """Return a line on what was not drawn of a request's prompts, to show after the work; empty if all was."""
    omitted = dict.fromkeys(text for text in request.original_cond.get("omitted", ()) if text)
    return f"\nnot drawn: {'; '.join(omitted)}" if omitted else ""


def expansions_of(request: Request) -> dict[str, Any]:
    """Return the expanded prompts of a request for JSON: typed and expanded prompt, method, note and cost."""
    if not request.original_cond:
        return {}
    names = {"typed": PROMPT, "by": "by", "note": "note", "cost": "cost", "read": "read", "omitted": "omitted"}
    every = {name: request.original_cond[key] for name, key in names.items() if key in request.original_cond}
    each = zip(request.cond[PROMPT], *every.values(), strict=True)
    return {"expanded": [{"prompt": prompt, **dict(zip(every, rest, strict=True))} for prompt, *rest in each]}


def _reader(model: Model) -> Callable[[str], bool] | None:
    """Return a test if a model reads all of a text; None for models without a vocabulary learned from captions."""
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
