"""A language model behind an address that speaks OpenAI's protocol; nothing is sent unless somebody asks for it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from unveil.extras import extra
from unveil.language.ask import Turn
from unveil.types import NoAnswer, RecipeError

KEYS = ("UNVEIL_API_KEY", "OPENAI_API_KEY")  # of the environment, the first that is set
SECONDS, TRIES = 30.0, 3
MOST = 400  # tokens of an answer


class Client:
    """Asks a model at `chat/completions`.

    The key is read from the environment and never shown. An answer that takes too long, or that fails in a way that
    may pass, is asked for again, with growing waits.

    Args:
        url: where the protocol begins, such as http://localhost:8000/v1.
        model: by its name there.
        seconds: that an answer may take. tries: in all.

    Raises:
        RecipeError: no such address, no model's name, or the package `openai` is not installed.
    """

    def __init__(self, url: str, model: str, *, seconds: float = SECONDS, tries: int = TRIES) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RecipeError(f"{url!r}: no address; write it such as http://localhost:8000/v1")
        if not model:
            raise RecipeError(f"{url}: which model there? give its name, such as {url}#NAME")
        self._openai: Any = extra("openai", "a language model behind an address", "endpoint")
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "none")
        self._client: Any = self._openai.OpenAI(base_url=url, api_key=key, timeout=seconds, max_retries=tries - 1)
        self._model = model
        self.name, self.cost = f"{model} at {parts.netloc.rpartition('@')[2]}", ""

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Its answer; `cost` says the tokens, and the price where it is told.

        Raises:
            NoAnswer: no connection, no time left, refused, or an answer that is none.
        """
        self.cost = ""
        try:
            found = self._client.chat.completions.create(
                model=self._model, messages=list(messages), temperature=0, max_tokens=MOST
            )
            text = found.choices[0].message.content
        except self._openai.OpenAIError as problem:
            first = (str(problem).strip() or type(problem).__name__).splitlines()[0]
            raise NoAnswer(f"no answer ({first[:200]})") from problem
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as problem:
            raise NoAnswer("what came is no answer in this protocol") from problem
        if not isinstance(text, str) or not text.strip():
            raise NoAnswer("its answer holds no text")
        self.cost = _cost(getattr(found, "usage", None))
        return text


class Endpoint(Client):
    """A language model that goes on with a conversation; see `Client`."""

    def __call__(self, turns: Sequence[Turn]) -> str:
        """Its answer.

        Raises:
            NoAnswer: as `answer`.
        """
        return self.answer([{"role": turn.role, "content": turn.text} for turn in turns])


def _cost(usage: Any) -> str:
    """Tokens that were read and written, and a price where the endpoint tells one."""
    read, wrote = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if read is None or wrote is None:
        return ""
    price = getattr(usage, "cost", None)
    return f"{read} tokens read, {wrote} written" + (f", {price:g} $" if isinstance(price, int | float) else "")
