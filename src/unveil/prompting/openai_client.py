"""Client of an OpenAI-compatible endpoint; nothing is sent unless it is called."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from unveil.errors import NoAnswer, RecipeError
from unveil.io.optional_deps import import_extra
from unveil.prompting.llm_rewrite import ChatMessage, first_line
from unveil.types import is_valid_utf8

KEYS = ("UNVEIL_API_KEY", "OPENAI_API_KEY")  # of the environment, the first that is set
TIMEOUT_VARIABLE = "UNVEIL_API_SECONDS"  # of the environment: seconds that an answer may take
DEFAULT_TIMEOUT, TRIES = 30.0, 3
MAX_TOKENS = 400  # tokens of an answer
MAX_BACKOFF = 8.0  # seconds between two tries, at most
POLL_SECONDS = 0.01  # seconds between two looks whether there is an answer
_EXAMPLE = "http://localhost:8000/v1"


class TokenUsage(NamedTuple):
    """Token usage of answers, and the price if the endpoint reports one."""

    read: int = 0
    written: int = 0
    price: float | None = None

    def __str__(self) -> str:
        """For people; empty where nothing is known."""
        if not self.read and not self.written:
            return ""
        price = "" if self.price is None else f", {self.price:g} $"
        return f"{self.read} tokens read, {self.written} written{price}"

    def plus(self, other: TokenUsage) -> TokenUsage:
        """Both together."""
        prices = [usage.price for usage in (self, other) if usage.price is not None]
        return TokenUsage(self.read + other.read, self.written + other.written, sum(prices) if prices else None)


class ChatClient:
    """Client of `chat/completions`.

    The key is read from the environment and never shown. A request that times out, or fails in a way that may pass,
    is repeated after growing waits.

    Args:
        url: Base URL, such as http://localhost:8000/v1.
        model: Name of the model at the endpoint.
        seconds: Timeout of an answer; None: from the environment, or DEFAULT_TIMEOUT.
        tries: Maximum number of attempts.

    Attributes:
        cost: Token usage of the last answer, in words. spent: Token usage of all answers.

    Raises:
        RecipeError: no such address, no model's name, no such time, or the package `openai` is not installed.
    """

    def __init__(self, url: str, model: str, *, seconds: float | None = None, tries: int = TRIES) -> None:
        seconds = _patience() if seconds is None else seconds
        place = _place(url)
        if not place:
            raise RecipeError(f"{url!r}: no address; write it such as {_EXAMPLE}")
        if not model:
            raise RecipeError(f"{url}: which model there? give its name, such as {url}#NAME")
        self._openai: Any = import_extra("openai", "a language model behind an address", "endpoint")
        key = _key()

        def opened() -> Any:
            return self._openai.OpenAI(base_url=url, api_key=key, timeout=seconds, max_retries=tries - 1)

        self._opened = opened
        try:
            self._open()
        except Exception as problem:  # the errors of the package below it, whose name changes
            raise RecipeError(f"{url!r}: no address ({first_line(problem)}); write it such as {_EXAMPLE}") from None
        self._whole = seconds * tries + MAX_BACKOFF * (tries - 1) + 1
        self._model = model
        self.name, self.cost, self.spent = f"{model} at {place}", "", TokenUsage()

    def _open(self) -> None:
        """Open the client; its connections are closed when this object is collected, also as a part of a cycle."""
        self._client: Any = self._opened()
        self._close = weakref.finalize(self, self._client.close)

    def _leave(self) -> None:
        """Abort the request and reopen the client."""
        self._close()
        self._open()

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the answer; `cost` describes its token usage and price, and `spent` sums them.

        Raises:
            NoAnswer: no connection, no time left, refused, or an answer that is none or that is cut off.
        """
        self.cost = ""
        try:
            ask = partial(self._client.chat.completions.create, model=self._model, messages=list(messages))
            completion = _within(self._whole, partial(ask, temperature=0, max_tokens=MAX_TOKENS), self._leave)
            took = _took(getattr(completion, "usage", None))
            self.cost, self.spent = str(took), self.spent.plus(took)  # an answer that is none is paid for too
            text = completion.choices[0].message.content
        except self._openai.OpenAIError as problem:
            raise NoAnswer(f"no answer ({first_line(problem)})") from problem
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as problem:
            raise NoAnswer("the response has no answer in this protocol") from problem
        if getattr(completion.choices[0], "finish_reason", None) == "length":
            raise NoAnswer(f"its answer is cut off after {MAX_TOKENS} tokens, and a part of one is not taken")
        if not isinstance(text, str) or not text.strip():
            raise NoAnswer("its answer holds no text")
        if not is_valid_utf8(text):
            raise NoAnswer("its answer holds half a character, which no file can")
        return text


class Endpoint(ChatClient):
    """A language model at an endpoint; see `ChatClient`."""

    def __call__(self, turns: Sequence[ChatMessage]) -> str:
        """Its answer.

        Raises:
            NoAnswer: as `answer`.
        """
        return self.answer([{"role": turn.role, "content": turn.text} for turn in turns])


def _key() -> str:
    """The first key that is set.

    Raises:
        RecipeError: it cannot be one; it is not shown.
    """
    name = next((name for name in KEYS if os.environ.get(name)), None)
    if name is None:
        return "none"
    if not (os.environ[name].isascii() and os.environ[name].isprintable()):
        raise RecipeError(f"{name}: holds signs that no key has; copy it again")
    return os.environ[name]


def _within(seconds: float, call: Callable[[], Any], leave: Callable[[], object]) -> Any:
    """Run a call with a total time limit; a read timeout alone is never reached by an answer that arrives in drops.

    Args:
        leave: ends the call, when nobody waits for it any more.

    Raises:
        NoAnswer: it does not.
    """
    results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except BaseException as problem:
            results.put((None, problem))

    Thread(target=work, daemon=True).start()
    end = time.monotonic() + seconds
    try:
        while results.empty() and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        value, problem = results.get_nowait()
    except Empty:
        leave()
        raise NoAnswer(f"no whole answer after {seconds:g} seconds") from None
    except BaseException:  # Ctrl-C
        leave()
        raise
    if problem is not None:
        raise problem
    return value


def _place(url: str) -> str:
    """Host and port of an address; empty where it is none."""
    try:
        parts = urlsplit(url)
        there = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is not a number
        return ""
    return parts.netloc.rpartition("@")[2] if there else ""


def _patience() -> float:
    """Return the timeout of an answer in seconds, from the environment."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RecipeError(
            f"{TIMEOUT_VARIABLE}={text}: seconds that an answer may take, must be above 0, such as {DEFAULT_TIMEOUT:g}"
        )
    return seconds


def _took(usage: Any) -> TokenUsage:
    """Return the token usage of an answer, and the price if the endpoint reports one."""
    read, wrote = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(read, int) or not isinstance(wrote, int):
        return TokenUsage()
    price = getattr(usage, "cost", None)
    return TokenUsage(read, wrote, float(price) if isinstance(price, int | float) else None)
