"""Prompts made dense by a language model: what it is told, and what of its answers is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from unveil.playground.caption_parser import language_of, parse, twice, unclear, unread
from unveil.playground.prompt_rules import FRAMES, RULES, Expansion, lost, rules
from unveil.types import NoAnswer

Register = Literal["playground", "free"]
LONGEST = 2000  # characters of an answer that are taken
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
    "You rewrite what somebody asks a video model for. Answer with one paragraph of 60 to 100 words in the language of "
    "the request, and with nothing else. Keep every thing, number, colour, name, place and quoted text of the request, "
    "and contradict none of it. Add what it leaves open: how things look, how they move, what is around them, the "
    "light, the style, and what the camera does. Write in the present tense what is to be seen, not what it means."
)
_PLAYGROUND = (
    "You rewrite short captions of clips of simple shapes as dense ones, in the language of the caption. Keep all that "
    "the caption says, and answer with the dense caption alone. Use the words and the form of the examples."
)


@dataclass(frozen=True)
class Turn:
    """One part of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


class Writer(Protocol):
    """A language model that goes on with a conversation.

    name: for people. cost: what its last answer took, in words, whether it is taken or not; empty where nobody counts
    it.
    """

    name: str
    cost: str

    def __call__(self, turns: Sequence[Turn]) -> str:
        """Its answer.

        Raises:
            NoAnswer: there is none; says why.
        """
        ...


def first_line(problem: Exception) -> str:
    """What a failure says, in one line that is not long; its kind where it says nothing."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0][:200]


def conversation(prompt: str, register: Register) -> list[Turn]:
    """What a language model is told to make a prompt dense."""
    if register == "free":
        return [Turn("system", _FREE), Turn("user", prompt)]
    turns = [Turn("system", _PLAYGROUND)]
    for example in _EXAMPLES[language_of(prompt)]:
        turns += [Turn("user", example), Turn("assistant", rules(example).text)]
    return [*turns, Turn("user", prompt)]


def unquoted(text: str) -> str:
    """Without the marks that the whole of it stands between."""
    while len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def written(prompt: str, writer: Writer, register: Register, seed: int = 0, frames: int = FRAMES) -> Expansion:
    """A prompt made dense by a language model, or by rules where it gives no answer that can be taken.

    Args:
        prompt: in any language that the model writes.
        writer: the language model.
        register: "playground" takes only answers in its words that keep every attribute; "free" any text that is
            neither empty nor endless, and leaves the prompt as it is where there is none.
        seed: of the rules. frames: 1 for pictures, of which they tell no motion; see `rules`.
    """
    try:
        text = unquoted(" ".join(writer(conversation(prompt, register)).split()))
        fault = _fault(prompt, text, register)
    except NoAnswer as problem:
        text, fault = "", str(problem)
    if not fault:
        return Expansion(prompt, text, writer.name, note=writer.cost)
    found = rules(prompt, seed, frames) if register == "playground" else Expansion(prompt, prompt)
    instead = "by the rules instead" if found.by == RULES else found.note or "left as it is"
    took = f" ({writer.cost})" if writer.cost else ""
    return found._replace(note=f"{writer.name}: {fault}{took}; {instead}")


def _fault(prompt: str, text: str, register: Register) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if not text or len(text) > LONGEST:
        return f"its answer has {len(text)} characters, must have 1 to {LONGEST}"
    if register == "free":
        return ""
    if strange := unread(text):
        return f"its answer has words that the model does not know: {', '.join(strange[:5])}"
    if doubled := [name for name in twice(text) if name not in twice(prompt)]:
        return f"its answer says two things at once ({', '.join(doubled)})"
    if unsure := unclear(text):
        return f"its answer leaves open of which thing it says something ({', '.join(unsure)})"
    missing = lost(parse(prompt), parse(text))
    return f"its answer changes what was said ({', '.join(missing)})" if missing else ""
