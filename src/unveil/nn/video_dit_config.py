"""Configuration of a transformer over clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from unveil.errors import RecipeError
from unveil.nn.attention import QkNorm
from unveil.nn.attention_patterns import Pattern
from unveil.types import Ge, checked


@dataclass(frozen=True)
class VideoDiTConfig:
    """Configuration of a transformer over clips.

    Args:
        in_channels: of x.
        out_channels: of the result.
        patch: frames, height and width of the boxes of x that become tokens.
        depth, hidden_size, heads: blocks, width of a token, attention heads.
        mlp_ratio: width of the MLPs, in multiples of `hidden_size`.
        cross_attention_dim: of a text's tokens, which every block reads; None: there is none.
        attention_pattern: which tokens of a clip see each other, see `attention_patterns.attention_groups`.
        window: frames, rows and columns of a box of tokens, for the pattern `windowed`.
        causal: a token sees none of a later frame.
        pos_fourier_dim: waves for each of time, height and width, that give a token its position in its frame
            and its time after the start; 0: none, so that only relative positions are known.
        rope_theta: of the positions; the longest wavelength is just under 2 pi rope_theta tokens.
        qk_norm: of queries and keys.
        gradient_checkpointing: in training, keep no activations of blocks but compute them again: less memory, a
            third more time.

    Raises:
        RecipeError: settings that do not fit together.
    """

    in_channels: Annotated[int, Ge(1)]
    out_channels: Annotated[int, Ge(1)]
    patch: tuple[int, int, int] = (1, 2, 2)
    depth: Annotated[int, Ge(1)] = 12
    hidden_size: Annotated[int, Ge(1)] = 384
    heads: Annotated[int, Ge(1)] = 6
    mlp_ratio: float = 4.0
    cross_attention_dim: int | None = None
    attention_pattern: Pattern = "full"
    window: tuple[int, int, int] = (4, 8, 8)
    causal: bool = False
    pos_fourier_dim: Annotated[int, Ge(0)] = 0
    rope_theta: float = 10000.0
    qk_norm: QkNorm = "rms"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        checked(self)
        for name in ("patch", "window"):
            if len(getattr(self, name)) != 3 or min(getattr(self, name)) < 1:
                values = list(getattr(self, name))
                raise RecipeError(
                    f"{name} = {values}: needs frames, height and width, each at least 1, such as [1, 2, 2]"
                )
        if self.hidden_size % self.heads or self.hidden_size // self.heads < 6:
            raise RecipeError(
                f"hidden_size = {self.hidden_size}, heads = {self.heads}: the width must be a multiple of the "
                "heads, and a head at least 6 wide, two numbers for each of time, height and width"
            )
