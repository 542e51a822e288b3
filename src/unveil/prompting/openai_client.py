"""Client of OpenAI-compatible endpoints; it sends nothing until it is called."""

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

KEYS = ("UNVEIL_API_KEY", "OPENAI_API_KEY")  # environment variables of the API key; the first that is set is used
TIMEOUT_VARIABLE = "UNVEIL_API_SECONDS"  # environment variable of the timeout of an answer in seconds
DEFAULT_TIMEOUT, MAX_ATTEMPTS = 30.0, 3
MAX_TOKENS = 400  # maximum tokens of an answer
MAX_BACKOFF = 8.0  # maximum seconds between two attempts
POLL_SECONDS = 0.01  # seconds between two checks for an answer
_EXAMPLE = "http://localhost:8000/v1"


class TokenUsage(NamedTuple):
    """Token usage of answers, and the price if the endpoint reports one."""

    read: int = 0
    written: int = 0
    price: float | None = None

    def __str__(self) -> str:
        """Return the usage as text; empty if it is unknown."""
        if not self.read and not self.written:
            return ""
        price = "" if self.price is None else f", {self.price:g} $"
        return f"{self.read} tokens read, {self.written} written{price}"

    def plus(self, other: TokenUsage) -> TokenUsage:
        """Return the sum of two usages."""
        prices = [usage.price for usage in (self, other) if usage.price is not None]
        return TokenUsage(self.read + other.read, self.written + other.written, sum(prices) if prices else None)


class ChatClient:
    """Client of `chat/completions`.

    The API key is read from the environment and never displayed. A request that times out or has a temporary error is
    repeated with exponential backoff.

    Args:
        url: Base URL, such as http://localhost:8000/v1.
        model: Name of the model at the endpoint.
        seconds: Timeout of an answer; None: the timeout of the environment, or DEFAULT_TIMEOUT.
        tries: Maximum number of attempts.

    Attributes:
        cost: Token usage of the last answer, as text.
        spent: Token usage of all answers.

    Raises:
        RecipeError: The URL, the name of the model or the timeout is invalid, or the package `openai` is not installed.
    """

    def __init__(self, url: str, model: str, *, seconds: float | None = None, tries: int = MAX_ATTEMPTS) -> None:
        seconds = _default_timeout() if seconds is None else seconds
        host = _host(url)
        if not host:
            raise RecipeError(f"{url!r}: is not a URL of an endpoint; write it such as {_EXAMPLE}")
        if not model:
            raise RecipeError(f"{url}: the name of the model is missing; write {url}#NAME")
        self._openai: Any = import_extra("openai", "a language model at an endpoint", "endpoint")
        self._new_client = partial(
            self._openai.OpenAI, base_url=url, api_key=_api_key(), timeout=seconds, max_retries=tries - 1
        )
        try:
            self._open()
        except Exception as problem:  # errors of the HTTP library below, which depends on the version
            raise RecipeError(
                f"{url!r}: is not a URL of an endpoint ({first_line(problem)}); write it such as {_EXAMPLE}"
            ) from None
        self._total_timeout = seconds * tries + MAX_BACKOFF * (tries - 1) + 1
        self._model = model
        self.name, self.cost, self.spent = f"{model} at {host}", "", TokenUsage()

    def _open(self) -> None:
        """Open the client; its connections are closed when this object is collected, also in a cycle."""
        self._client: Any = self._new_client()
        self._close = weakref.finalize(self, self._client.close)

    def _reopen(self) -> None:
        """Abort the request and open a new client."""
        self._close()
        self._open()

    def answer(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the answer; `cost` describes its token usage and price, and `spent` sums them.

        Raises:
            NoAnswer: The connection fails, the timeout passes, the request is refused, or the answer is invalid or
                truncated.
        """
        self.cost = ""
        try:
            create = partial(self._client.chat.completions.create, model=self._model, messages=list(messages))
            completion = _with_timeout(
                self._total_timeout, partial(create, temperature=0, max_tokens=MAX_TOKENS), self._reopen
            )
            usage = _token_usage(getattr(completion, "usage", None))
            self.cost, self.spent = str(usage), self.spent.plus(usage)  # an invalid answer costs tokens too
            text = completion.choices[0].message.content
        except self._openai.OpenAIError as problem:
            raise NoAnswer(f"no answer ({first_line(problem)})") from problem
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as problem:
            raise NoAnswer("the response has no answer in this protocol") from problem
        if getattr(completion.choices[0], "finish_reason", None) == "length":
            raise NoAnswer(f"its answer is truncated after {MAX_TOKENS} tokens; truncated answers are not used")
        if not isinstance(text, str) or not text.strip():
            raise NoAnswer("its answer contains no text")
        if not is_valid_utf8(text):
            raise NoAnswer("its answer contains half of a surrogate pair, which cannot be written to a file")
        return text


class Endpoint(ChatClient):
    """A language model at an endpoint; see `ChatClient`."""

    def __call__(self, messages: Sequence[ChatMessage]) -> str:
        """Return the answer.

        Raises:
            NoAnswer: As `answer`.
        """
        return self.answer([{"role": message.role, "content": message.text} for message in messages])


def _api_key() -> str:
    """Return the first API key that is set, or "none".

    Raises:
        RecipeError: The value contains characters that no key has; the message does not display it.
    """
    name = next((name for name in KEYS if os.environ.get(name)), None)
    if name is None:
        return "none"
    if not (os.environ[name].isascii() and os.environ[name].isprintable()):
        raise RecipeError(f"{name}: contains characters that no key has; copy it again")
    return os.environ[name]


def _with_timeout(seconds: float, call: Callable[[], Any], abort: Callable[[], object]) -> Any:
    """Run a call with a total timeout; an answer that arrives byte by byte never reaches a read timeout.

    Args:
        seconds: Total timeout.
        call: Function that is run in a thread.
        abort: Function that ends the call after the timeout or an interrupt.

    Raises:
        NoAnswer: The timeout passed.
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
        abort()
        raise NoAnswer(f"no complete answer after {seconds:g} seconds") from None
    except BaseException:  # Ctrl-C
        abort()
        raise
    if problem is not None:
        raise problem
    return value


def _host(url: str) -> str:
    """Return the host and port of a URL; empty if it is not an HTTP URL."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an unclosed bracket, or a port that is not a number
        return ""
    return parts.netloc.rpartition("@")[2] if valid else ""


def _default_timeout() -> float:
    """Return the timeout of an answer in seconds, from the environment."""
    text = os.environ.get(TIMEOUT_VARIABLE) or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RecipeError(
            f"{TIMEOUT_VARIABLE}={text}: must be a number of seconds above 0, such as {DEFAULT_TIMEOUT:g}"
        )
    return seconds


def _token_usage(usage: Any) -> TokenUsage:
    """Return the token usage of an answer, and the price if the endpoint reports one."""
    read, written = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(read, int) or not isinstance(written, int):
        return TokenUsage()
    price = getattr(usage, "cost", None)
    return TokenUsage(read, written, float(price) if isinstance(price, int | float) else None)
