"""The words everything else is written in: levels, estimates, conditions, items, errors.

Time runs from t = 0 (data) to t = 1 (noise). Pixels lie in [-1, 1]; images are (B, C, H, W).

The tree of errors; each also derives from the built-in that a caller would catch:

Error:
    +-- RecipeError (ValueError)        a setting that cannot work: what was given, what is allowed, what to do
    +-- ShapeError (ValueError)         a tensor of a shape or type that cannot be used
    +-- WeightsError (ValueError)       a checkpoint that does not fit or is damaged
    +-- DataError (OSError)            a picture, label or data folder that cannot be read
    +-- OutputError (OSError)           an output that cannot be written
    |   +-- AlreadyExists               an output that exists already
    +-- OutOfResources (RuntimeError)   memory, disk or time: says what to lower
    +-- NonFinite (RuntimeError)        training or sampling left the finite numbers
    +-- NoAnswer (RuntimeError)         a language model gave none: says why
    +-- Cancelled (RuntimeError)        stopped on request
    +-- QueueFull (RuntimeError)             as much waits as may: says when to come again
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

if TYPE_CHECKING:  # torch takes seconds to import, and the command line's help must not wait for it
    from torch import Tensor

    Number = float | Tensor

# One element of a data set: "pixels" uint8 (C, H, W), of a clip (C, T, H, W), optional "label" int, "text" str, "mask",
# "boxes".
Item = dict[str, Any]


OUR_FAULT = "this is a fault of unveil"  # what is said, everywhere, of an error that is not one of these


class Error(Exception):
    """Root of every error that unveil raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class RecipeError(Error, ValueError):
    """A setting that cannot work: what was given, what is allowed, what to do."""

    exit_code = 2


class ShapeError(Error, ValueError):
    """A tensor of a shape or type that cannot be used."""


class WeightsError(Error, ValueError):
    """A checkpoint that does not fit the network, or whose files are damaged."""


class DataError(Error, OSError):
    """A picture, a label or a data folder that cannot be read."""

    exit_code = 4


class OutputError(Error, OSError):
    """An output that cannot be written, or that would overwrite something of the user's."""

    exit_code = 5


class AlreadyExists(OutputError):
    """An output that exists already; `--force` overwrites it."""

    exit_code = 2


class OutOfResources(Error, RuntimeError):
    """Memory, disk or time ran out; the message says what to lower."""

    exit_code = 5


class NonFinite(Error, RuntimeError):
    """Training or sampling left the finite numbers."""

    exit_code = 3


class NoAnswer(Error, RuntimeError):
    """A language model that was asked gave no answer; the message says why."""


class Cancelled(Error, RuntimeError):
    """Stopped on request."""

    exit_code = 130


class QueueFull(Error, RuntimeError):
    """As much waits as may; come again after `seconds`."""

    exit_code = 5

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class PromptTruncated(UserWarning):
    """A prompt has words that its encoder does not see: beyond its length, or not known; the message says which."""


class PromptTooLong(PromptTruncated):
    """A prompt has more words than its encoder reads."""


def out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":  # the latter is torch's
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(problem, RuntimeError) and any(word in str(problem) for word in words)


def format_size(sides: Sequence[int]) -> str:
    """A height and a width, the last two of `sides`, as a person writes and reads them: WIDTHxHEIGHT."""
    return f"{sides[-1]}x{sides[-2]}"


def is_valid_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: it holds no half of a character, as names of files and JSON may."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def did_you_mean(name: object, allowed: Sequence[object]) -> str:
    """`; nearest: 'x'` when one of `allowed` resembles `name`, else an empty string."""
    close = get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"; nearest: {close[0]!r}" if close else ""


class Ge(NamedTuple):
    """Bound of a number's type: at least `value`; `Annotated[int, Ge(1)]` is a positive number."""

    value: float


class Lt(NamedTuple):
    """Bound of a number's type: below `value`."""

    value: float


class _Rule(NamedTuple):
    """What a field's type allows: one of `choices`, or a number from `least` to below `below`."""

    name: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    below: float | None = None


def checked(config: Any) -> None:
    """Check the fields of a dataclass by their types: the choices of a `Literal`, the bounds of an `Annotated` number.

    Raises:
        RecipeError: A value that its type does not allow; names the nearest choice.
    """
    for name, choices, least, below in _rules(type(config)):
        value = getattr(config, name)
        if choices and value not in choices:
            raise RecipeError(f"{name} = {value!r}: must be one of {', '.join(choices)}{did_you_mean(value, choices)}")
        if least is not None and below is not None and not least <= value < below:
            raise RecipeError(f"{name} = {value}: must lie in [{least}, {below})")
        if least is not None and value < least:
            raise RecipeError(f"{name} = {value}: must be at least {least}")


@cache
def _rules(kind: type[Any]) -> tuple[_Rule, ...]:
    hints = get_type_hints(kind, include_extras=True)
    rules: list[_Rule] = []
    for field in fields(kind):
        hint = hints[field.name]
        if get_origin(hint) is Literal:
            rules.append(_Rule(field.name, get_args(hint)))
        elif get_origin(hint) is Annotated:
            least = next((bound.value for bound in hint.__metadata__ if isinstance(bound, Ge)), None)
            below = next((bound.value for bound in hint.__metadata__ if isinstance(bound, Lt)), None)
            rules.append(_Rule(field.name, (), least, below))
    return tuple(rules)


class NoiseLevel(NamedTuple):
    """A point of a process: x = alpha x0 + sigma eps, with the derivatives of both in t.

    Each field is a Python float, a float64 table (N,), one number per sample (B,), or a tensor that
    broadcasts against x (per channel, per frame, per token). Tensors of levels stay on the CPU in
    float64 until `like` casts them.
    """

    t: Number
    alpha: Number
    sigma: Number
    dalpha: Number = math.nan
    dsigma: Number = math.nan

    @property
    def half_log_snr(self) -> Number:
        """log(alpha / sigma), half of the log signal-to-noise ratio; infinite at the ends."""
        if not isinstance(self.alpha, float | int):
            return self.alpha.log() - self.sigma.log()  # type: ignore[union-attr]
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha > 0 else -math.inf


def like(value: Number, x: Tensor) -> Tensor | float:
    """`value` ready to be multiplied with x: the only place that expands ranks and casts.

    Floats pass unchanged. A tensor of n axes is matched with the first n axes of x (so (B,) is one number
    per sample) and cast to x's type before it moves to x's device, which may lack float64.
    """
    if isinstance(value, float | int):
        return value
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)).to(x.dtype).to(x.device)


ADDITIONS = {"lora": "LoRA", "control": "ControlNet"}  # what is trained on a model that stays as it is


class BaseModel(NamedTuple):
    """The model that an addition is trained on: its name, where it was found, the hash of its files.

    what: is added, a key of `ADDITIONS`.
    """

    name: str
    path: str
    sha256: str
    what: str = "lora"


class LoraInfo(NamedTuple):
    """A LoRA that is on a model: its name, the hash of its file, and its weight."""

    name: str
    sha256: str
    weight: float = 1.0


class ControlNetInfo(NamedTuple):
    """A ControlNet that is on a model.

    key: that its picture is asked for by. name, sha256: of its weights' file. weight, start, stop: of `Control`.
    picture, picture_sha256: the name of the picture's file and its hash; empty: none was chosen yet.
    pixels: the picture, uint8 (1 or 3, H, W) of any size.
    """

    key: str
    name: str
    sha256: str
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    picture: str = ""
    picture_sha256: str = ""
    pixels: Tensor | None = None

    def record(self) -> dict[str, Any]:
        """All that a picture's record holds of it; the pixels are found again by their hash."""
        return {name: value for name, value in self._asdict().items() if name not in ("key", "pixels")}


@dataclass(frozen=True)
class Condition:
    """What reaches a network besides x and the level, by route. None: that route is unused.

    vector: (B, D), added to the time embedding (a label, pooled text).
    tokens: (B, L, D), with mask (B, L) True where a token counts (cross-attention, in-context).
    channels: (B, C, H, W), a picture given to the network (low resolution, mask, context).
    hint: (B, C, H, W), the pictures of ControlNets, side by side along the channels.
    places: (B, 2, 3), where clips lie: the time, height and width of a clip's first token, and the steps from each
        token to the next.
    residuals: what ControlNets make of the hint, added inside a U-Net: one tensor for each result that its way down
        leaves and one for its middle, or that of the middle alone. They hold for one x and one level, so they are set
        at the network's call and nowhere else.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None
    hint: Tensor | None = None
    places: Tensor | None = None
    residuals: tuple[Tensor, ...] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """The same condition with `change` applied to every route in use.

        Raises:
            ShapeError: residuals, which hold for one call.
        """
        changed: dict[str, Any] = {k: None if v is None else change(v) for k, v in self.routes().items()}
        return Condition(**changed)

    def routes(self) -> dict[str, Any]:
        """Every route but the residuals, by name.

        Raises:
            ShapeError: residuals, which hold for one call.
        """
        if self.residuals is not None:
            raise ShapeError("condition.residuals: hold for one call of a network; change the hint that they come from")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "residuals"}

    def where(self, keep: Tensor, other: Condition) -> Condition:
        """Row by row: this condition where `keep` (B,) is True, the other one elsewhere.

        Raises:
            ShapeError: the two do not use the same routes.
        """
        import torch

        chosen: dict[str, Any] = {}
        others = other.routes()
        for name, mine in self.routes().items():
            theirs = others[name]
            if mine is None or theirs is None:
                if mine is not theirs:
                    raise ShapeError(f"conditions differ in the route {name!r}: one uses it, the other does not")
                chosen[name] = None
                continue
            rows = keep.reshape(keep.shape + (1,) * (mine.ndim - 1)).to(mine.device)
            chosen[name] = torch.where(rows, mine, theirs)
        return Condition(**chosen)

    def join(self, other: Condition) -> Condition:
        """Both at once: vectors add, tokens, channels and hints are concatenated, masks follow the tokens.

        Where both say places, the other's count.
        """
        import torch

        def both(
            mine: Tensor | None, theirs: Tensor | None, merge: Callable[[Tensor, Tensor], Tensor]
        ) -> Tensor | None:
            return (
                merge(mine, theirs) if mine is not None and theirs is not None else (theirs if mine is None else mine)
            )

        side_by_side = lambda a, b: torch.cat([a, b], dim=1)  # noqa: E731
        mine, theirs = self.mask, other.mask
        if self.tokens is not None and other.tokens is not None and (mine is None) != (theirs is None):
            mine = self._all_count() if mine is None else mine
            theirs = other._all_count() if theirs is None else theirs
        return replace(
            self,
            vector=both(self.vector, other.vector, lambda a, b: a + b),
            tokens=both(self.tokens, other.tokens, side_by_side),
            mask=both(mine, theirs, side_by_side),
            channels=both(self.channels, other.channels, side_by_side),
            hint=both(self.hint, other.hint, lambda a, b: side_by_side(*_of_one_size(a, b))),
            places=both(self.places, other.places, lambda a, b: b),
        )

    def _all_count(self) -> Tensor | None:
        import torch

        return None if self.tokens is None else self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)


def _of_one_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures, of which one may be a single pixel that stands for a picture of any size."""
    if one.shape[-2:] == (1, 1):
        return one.expand(-1, -1, *other.shape[-2:]), other
    return one, other.expand(-1, -1, *one.shape[-2:]) if other.shape[-2:] == (1, 1) else other


# What a user hands to a conditioner: {"label": 3}, {"label": [3, 4]}, {"pixels": tensor}
Raw = Mapping[str, Any]
