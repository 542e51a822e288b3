"""Data types that all packages share: noise levels, conditions, items of data sets, what a model was changed by.

Time runs from t = 0 (data) to t = 1 (noise). Pixels lie in [-1, 1]; images are (B, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from unveil.errors import RecipeError, ShapeError, did_you_mean

if TYPE_CHECKING:  # torch takes seconds to import, and the command line's help must not wait for it
    from torch import Tensor

# One element of a data set: "pixels" uint8 (C, H, W), or (C, T, H, W) of a video; optional "label" int, "text" str,
# "mask", "boxes".
Item = dict[str, Any]


def format_size(sides: Sequence[int]) -> str:
    """Format a height and a width, the last two of `sides`, as WIDTHxHEIGHT."""
    return f"{sides[-1]}x{sides[-2]}"


def is_valid_utf8(text: str) -> bool:
    """Return True if a text can be written in UTF-8: it has no half of a character, as names of files and JSON may."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Ge(NamedTuple):
    """Bound of a number's type: at least `value`; `Annotated[int, Ge(1)]` is a positive number."""

    value: float


class Lt(NamedTuple):
    """Bound of a number's type: below `value`."""

    value: float


class _Rule(NamedTuple):
    """Values that a field's type allows: one of `choices`, or a number from `least` to below `below`."""

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


class _LevelFields(NamedTuple):
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


class NoiseLevel(_LevelFields):
    """A point of a noise process: x = alpha x0 + sigma eps, with the derivatives of both in t.

    Each field is a float64 tensor on the CPU: 0-d for one level, a table (N,), one number per sample (B,), or a
    tensor that broadcasts against x (per channel, per frame, per token). `like` casts them. Numbers become tensors.
    """

    __slots__ = ()

    def __new__(
        cls,
        t: Tensor | float,
        alpha: Tensor | float,
        sigma: Tensor | float,
        dalpha: Tensor | float = math.nan,
        dsigma: Tensor | float = math.nan,
    ) -> NoiseLevel:
        """Return the level of these numbers or tensors."""
        import torch

        values = (torch.as_tensor(value, dtype=torch.float64) for value in (t, alpha, sigma, dalpha, dsigma))
        return super().__new__(cls, *values)

    @property
    def half_log_snr(self) -> Tensor:
        """log(alpha / sigma), half of the log signal-to-noise ratio; infinite at the ends."""
        if self.alpha.ndim or self.sigma.ndim:
            return self.alpha.log() - self.sigma.log()
        # one level: by libm, as `core.elementary`
        alpha, sigma = (math.log(part) if part > 0 else -math.inf for part in (self.alpha.item(), self.sigma.item()))
        return self.alpha.new_tensor(alpha - sigma)


def like(value: Tensor, x: Tensor) -> Tensor | float:
    """Expand and cast `value` so that it can be multiplied with x; the only function that does so.

    A tensor of n axes is matched with the first n axes of x (so (B,) is one number per sample) and cast to x's type
    before it moves to x's device, which may lack float64. A single number (0-d) becomes a Python number, which torch
    applies to half precision without rounding it first.
    """
    if not value.ndim:
        return value.item()
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)).to(x.dtype).to(x.device)


ADDITIONS = {"lora": "LoRA", "control": "ControlNet"}  # trained on a frozen base model


class BaseModel(NamedTuple):
    """Base model of a LoRA or a ControlNet: its name, its path and the hash of its files.

    what: Kind of addition, a key of `ADDITIONS`.
    """

    name: str
    path: str
    sha256: str
    what: str = "lora"


class LoraInfo(NamedTuple):
    """A LoRA that is attached to a model: its name, the hash of its file, and its weight."""

    name: str
    sha256: str
    weight: float = 1.0


class ControlNetInfo(NamedTuple):
    """A ControlNet that is attached to a model.

    key: Key of its control image among the conditions.
    name, sha256: Name and hash of the file of weights.
    weight, start, stop: Settings of `AttachedControlNet`.
    image, image_sha256: Name and hash of the file of the control image; empty: none was chosen yet.
    pixels: Control image, uint8 (1 or 3, H, W), of any size.
    """

    key: str
    name: str
    sha256: str
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    image: str = ""
    image_sha256: str = ""
    pixels: Tensor | None = None

    def record(self) -> dict[str, Any]:
        """Return the metadata of an image about this ControlNet; the control image is identified by its hash."""
        return {name: value for name, value in self._asdict().items() if name not in ("key", "pixels")}


@dataclass(frozen=True)
class Condition:
    """The conditions of a network, by route. None: the route is not used.

    vector: (B, D), added to the time embedding (a label, pooled text).
    tokens: (B, L, D), with mask (B, L) True where a token counts (cross-attention, in-context).
    concat: (B, C, H, W), concatenated to x (low-resolution image, mask, context).
    control_image: (B, C, H, W), the control images of ControlNets, concatenated along the channels.
    positions: (B, 2, 3), positions of video tokens: the time, height and width of the first token, and the steps from
        each token to the next.
    residuals: Outputs of ControlNets, added inside a U-Net: one tensor for each output of the down blocks and one for
        the middle block, or that of the middle block only. They are valid for one x and one noise level, so they are
        set only at the call of the network.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    concat: Tensor | None = None
    control_image: Tensor | None = None
    positions: Tensor | None = None
    residuals: tuple[Tensor, ...] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Apply `change` to every route in use.

        Raises:
            ShapeError: The condition has residuals, which are valid for one call.
        """
        changed: dict[str, Any] = {k: None if v is None else change(v) for k, v in self.routes().items()}
        return Condition(**changed)

    def routes(self) -> dict[str, Any]:
        """Return every route except the residuals, by name.

        Raises:
            ShapeError: The condition has residuals, which are valid for one call.
        """
        if self.residuals is not None:
            raise ShapeError(
                "condition.residuals: hold for one call of a network; change the control image that they come from"
            )
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "residuals"}

    def where(self, keep: Tensor, other: Condition) -> Condition:
        """Select rows: this condition where `keep` (B,) is True, the other elsewhere.

        Raises:
            ShapeError: The two do not use the same routes.
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
        """Join two conditions: vectors are added; tokens, masks, channels and control images are concatenated.

        If both have positions, those of `other` are used.
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
            mine = self._full_mask() if mine is None else mine
            theirs = other._full_mask() if theirs is None else theirs
        return replace(
            self,
            vector=both(self.vector, other.vector, lambda a, b: a + b),
            tokens=both(self.tokens, other.tokens, side_by_side),
            mask=both(mine, theirs, side_by_side),
            concat=both(self.concat, other.concat, side_by_side),
            control_image=both(self.control_image, other.control_image, lambda a, b: side_by_side(*_of_one_size(a, b))),
            positions=both(self.positions, other.positions, lambda a, b: b),
        )

    def _full_mask(self) -> Tensor | None:
        import torch

        return None if self.tokens is None else self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)


def _of_one_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Expand a control image of one pixel, which is valid for any size, to the size of the other."""
    if first.shape[-2:] == (1, 1):
        return first.expand(-1, -1, *second.shape[-2:]), second
    return first, second.expand(-1, -1, *first.shape[-2:]) if second.shape[-2:] == (1, 1) else second


# The values of conditions by key: {"label": 3}, {"label": [3, 4]}, {"pixels": tensor}
Raw = Mapping[str, Any]
