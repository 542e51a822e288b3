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
    """Expands the prompts of requests to dense captions, and keeps the original prompts.

    Args:
        how: Options of the user.
        model: Model that is prompted. By default only prompts of a model with a learned vocabulary are expanded, if it
            reads the whole caption.
        console: Shows the expanded prompts.
        frames: Number of frames; 1 for an image.
        shown: True if the model is also conditioned on images, which added details could contradict: prompts stay as
            they are, unless the user sets `expand`.

    Raises:
        RecipeError, WeightsError: The language model of the options cannot be used, or this model cannot use the rules.
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
        """Return the request with expanded prompts."""
        prompts = [str(prompt) for prompt in request.cond.get(PROMPT, ())] if self._on else []
        seed = request.seed if isinstance(request.seed, int) else request.seed[0]
        expansions = {prompt: self._expanded(prompt, seed) for prompt in dict.fromkeys(prompts)}
        for prompt, (expansion, _) in expansions.items():
            self._print(prompt, expansion)
        every = [expansions[prompt] for prompt in prompts]
        texts = [expansion.text for expansion, _ in every]
        # notes explain why a prompt was not expanded
        noted = self._how.expand is not None and any(expansion.note for expansion, _ in every)
        if texts == prompts and not noted:
            return request
        facts = {
            "by": [expansion.by for expansion, _ in every],
            "note": ["" if expansion.note == cost else expansion.note for expansion, cost in every],
            "cost": [cost for _, cost in every],
        }
        original = {PROMPT: prompts} | {name: values for name, values in facts.items() if any(values)}
        return replace(request, cond={**request.cond, PROMPT: texts}, original_cond=original)

    def _print(self, prompt: str, expansion: Expansion) -> None:
        text, by, note = expansion.text, expansion.by, expansion.note
        if self._how.expand is None and text == prompt:
            return
        if self._writer is not None and by != self._writer.name:
            self._console.warn(f"--expand-prompt: {prompt!r}: {note}")
        elif not by and note:
            self._console.warn(f"--expand-prompt: {prompt!r} is left as it is: {note}")
        if text != prompt:
            self._console.say(f"prompt, expanded by {by}: {text}" + (f" ({note})" if note else ""))

    def _expanded(self, prompt: str, seed: int) -> tuple[Expansion, str]:
        """Return the expansion of a prompt, and its cost."""
        expansion = self._expansion(prompt, seed)
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


def expansions_of(request: Request) -> dict[str, Any]:
    """Return the expanded prompts of a request for JSON: typed and expanded prompt, method, note and cost."""
    if not request.original_cond:
        return {}
    names = {"typed": PROMPT, "by": "by", "note": "note", "cost": "cost"}
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
