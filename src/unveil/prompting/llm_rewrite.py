"""Prompt expansion by a language model: its chat messages, and the checks of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from unveil.errors import NoAnswer
from unveil.playground.caption_parser import ambiguous, contradictory, language_of, parse, unparsed
from unveil.playground.prompt_rules import FRAMES, RULES, Expansion, dropped_attributes, expand_by_rules

RewriteStyle = Literal["playground", "free"]
MAX_LENGTH = 2000  # maximum characters of an answer
_EXAMPLES = {
    "en": ("a small red circle moves left", "large green ring bounces on black", "clip 0412 blue square growing"),
    # the same in Chinese, by what the playground calls them
    "zh": (
        "\u4e00\u4e2a\u5c0f\u7684\u7ea2\u8272\u5706\u5f62\u5411\u5de6\u79fb\u52a8",
        "\u7eff\u8272\u5706\u73af\u649e\u5899\u53cd\u5f39\uff0c\u9ed1\u8272\u80cc\u666f",
        "\u7247\u6bb50412 \u84dd\u8272 \u6b63\u65b9\u5f62 \u53d8\u5927",
    ),
}
_FREE = (
    "You rewrite prompts of a video model. Answer with one paragraph of 60 to 100 words in the language of the prompt, "
    "and with nothing else. Keep every object, number, colour, name, place and quoted text of the prompt, and do not "
    "contradict it. Add what it leaves open: how objects look and move, what surrounds them, the light, the style, and "
    "what the camera does. Describe in the present tense what is visible, not what it means."
)
_PLAYGROUND = (
    "You rewrite short captions of videos of simple shapes as dense captions, in the language of the caption. Keep "
    "everything that the caption states, and answer with the dense caption alone. Use the words and the form of the "
    "examples."
)


@dataclass(frozen=True)
class ChatMessage:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    text: str


class LanguageModel(Protocol):
    """A language model that answers chat messages.

    Attributes:
        name: Name that is displayed.
        cost: Token usage of its last answer, as text; empty if it is not counted.
    """

    name: str
    cost: str

    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        """Return the answer.

        Raises:
            NoAnswer: No answer was given; the message states the reason.
        """
        ...


def first_line(problem: Exception) -> str:
    """Return an exception's message in one line of at most 200 characters, or its class name if it has none."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]


def rewrite_messages(prompt: str, style: RewriteStyle) -> list[ChatMessage]:
    """Return the chat messages that ask a language model to expand a prompt."""
    if style == "free":
        return [ChatMessage("system", _FREE), ChatMessage("user", prompt)]
    messages = [ChatMessage("system", _PLAYGROUND)]
    for example in _EXAMPLES[language_of(prompt)]:
        messages += [ChatMessage("user", example), ChatMessage("assistant", expand_by_rules(example).text)]
    return [*messages, ChatMessage("user", prompt)]


def strip_quotes(text: str) -> str:
    """Return the text without enclosing quotation marks."""
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def rewrite(prompt: str, writer: LanguageModel, style: RewriteStyle, seed: int = 0, frames: int = FRAMES) -> Expansion:
    """Expand a prompt by a language model, or by the rules if its answer cannot be used.

    Args:
        prompt: Prompt in any language that the model writes.
        writer: Language model.
        style: Style of the answer. "playground" accepts only answers in the playground's words that keep every
            attribute. "free" accepts any text of 1 to MAX_LENGTH characters, and keeps the prompt unchanged without an
            answer.
        seed: Seed of the rules.
        frames: Number of frames; 1 for images, which have no motion; see `expand_by_rules`.
    """
    try:
        text = strip_quotes(" ".join(writer(rewrite_messages(prompt, style)).split()))
        fault = _fault(prompt, text, style)
    except NoAnswer as problem:
        text, fault = "", str(problem)
    if not fault:
        return Expansion(prompt, text, writer.name, note=writer.cost)
    fallback = expand_by_rules(prompt, seed, frames) if style == "playground" else Expansion(prompt, prompt)
    instead = "by the rules instead" if fallback.by == RULES else fallback.note or "the prompt is unchanged"
    took = f" ({writer.cost})" if writer.cost else ""
    return fallback._replace(note=f"{writer.name}: {fault}{took}; {instead}")


def _fault(prompt: str, text: str, style: RewriteStyle) -> str:
    """Return what is wrong with an answer; empty if nothing is."""
    if not text or len(text) > MAX_LENGTH:
        return f"its answer has {len(text)} characters, must have 1 to {MAX_LENGTH}"
    if style == "free":
        return ""
    if strange := unparsed(text):
        return f"its answer contains unknown words: {', '.join(strange[:5])}"
    if doubled := [name for name in contradictory(text) if name not in contradictory(prompt)]:
        return f"its answer contradicts itself ({', '.join(doubled)})"
    if unsure := ambiguous(text):
        return f"its answer is ambiguous ({', '.join(unsure)})"
    missing = dropped_attributes(parse(prompt), parse(text))
    return f"its answer changes the prompt ({', '.join(missing)})" if missing else ""
