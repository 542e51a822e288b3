"""The errors that unveil raises on purpose; each also derives from the built-in that a caller would catch.

Error:
    +-- RecipeError (ValueError)        a setting that cannot work: its value, the allowed values, the remedy
    +-- ShapeError (ValueError)         a tensor with a shape or type that cannot be used
    +-- WeightsError (ValueError)       a checkpoint that does not fit or is damaged
    |   +-- UnsupportedFormat           weights that are not read: of an unknown model, or a part of one
    +-- DataError (OSError)             an image, label or data folder that cannot be read
    +-- OutputError (OSError)           an output that cannot be written
    |   +-- AlreadyExists               an output that exists already
    +-- OutOfResources (RuntimeError)   memory, disk, time or a process of a training: names the remedy
    +-- NonFinite (RuntimeError)        training or sampling left the finite numbers
    +-- NoAnswer (RuntimeError)         a language model returned no answer: the reason
    +-- Cancelled (RuntimeError)        stopped on request
    +-- QueueFull (RuntimeError)        the queue is full: when to try again
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

OUR_FAULT = "this is a fault of unveil"  # text of every error that is not one of these


class Error(Exception):
    """Root of the errors that unveil raises on purpose; `exit_code` is the exit code of the command line."""

    exit_code = 1


class RecipeError(Error, ValueError):
    """A setting that cannot work; the message states its value, the allowed values and the remedy."""

    exit_code = 2


class ShapeError(Error, ValueError):
    """A tensor with a shape or type that cannot be used."""


class WeightsError(Error, ValueError):
    """A checkpoint that does not fit the network, or whose files are damaged."""


class UnsupportedFormat(WeightsError):
    """Weights that are not read, because their format is unknown or not supported, or which are not a model."""

    exit_code = 2


class DataError(Error, OSError):
    """An image, a label or a data folder that cannot be read."""

    exit_code = 4


class OutputError(Error, OSError):
    """An output that cannot be written, or that would overwrite a file of the user."""

    exit_code = 5


class AlreadyExists(OutputError):
    """An output that exists already; `--force` overwrites it."""

    exit_code = 2


class OutOfResources(Error, RuntimeError):
    """Memory, disk or time ran out, or a process of a training was lost; the message names the remedy."""

    exit_code = 5


class NonFinite(Error, RuntimeError):
    """Training or sampling left the finite numbers."""

    exit_code = 3


class NoAnswer(Error, RuntimeError):
    """A language model returned no answer; the message states the reason."""


class Cancelled(Error, RuntimeError):
    """Stopped on request."""

    exit_code = 130


class QueueFull(Error, RuntimeError):
    """The queue is full; try again after `seconds`."""

    exit_code = 5

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class PromptTruncated(UserWarning):
    """Words of a prompt do not reach its encoder: too many, or not in its vocabulary; the message lists them."""


class PromptTooLong(PromptTruncated):
    """A prompt is longer than the limit of its encoder."""


def out_of_memory(problem: BaseException) -> bool:
    """Return True if an error states that memory ran out, on any device."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":  # the latter is torch's
        return True
    phrases = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(problem, RuntimeError) and any(phrase in str(problem) for phrase in phrases)


def did_you_mean(name: object, allowed: Sequence[object]) -> str:
    """Return `; nearest: 'x'` if one of `allowed` resembles `name`, else an empty string."""
    close = get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; nearest: {close[0]!r}" if close else ""
