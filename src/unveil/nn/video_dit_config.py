"""What defines a transformer over clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from unveil.errors import RecipeError, did_you_mean
from unveil.nn.attention import QkNorm
from unveil.nn.attention_patterns import Pattern


@dataclass(frozen=True)
class VideoDiTConfig:
    """What defines a transformer over clips.

    Args:
        in_channels: of x.
        out_channels: of the result.
        patch: frames, height and width of the boxes of x that become tokens.
        depth, hidden_size, heads: blocks, width of a token, attention heads.
        mlp_ratio: width of the MLPs, in multiples of `hidden_size`.
        cross_attention_dim: of a text's tokens, which every block reads; None: there is none.
        attention_pattern: which tokens of a clip see each other, see `patterns.labels`.
        window: frames, rows and columns of a box of tokens, for the pattern `windowed`.
        causal: a token sees none of a later frame.
        pos_fourier_dim: waves for each of time, height and width, by which a token is told where in its frame it
            lies and how long after the start; 0: it is told nothing, and places are known of each other alone.
        rope_theta: of the positions; the longest wavelength is just under 2 pi rope_theta tokens.
        qk_norm: of queries and keys.
        gradient_checkpointing: in training, keep no activations of blocks but compute them again: less memory, a
            third more time.

    Raises:
        RecipeError: settings that do not fit together.
    """

    in_channels: int
    out_channels: int
    patch: tuple[int, int, int] = (1, 2, 2)
    depth: int = 12
    hidden_size: int = 384
    heads: int = 6
    mlp_ratio: float = 4.0
    cross_attention_dim: int | None = None
    attention_pattern: Pattern = "full"
    window: tuple[int, int, int] = (4, 8, 8)
    causal: bool = False
    pos_fourier_dim: int = 0
    rope_theta: float = 10000.0
    qk_norm: QkNorm = "rms"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "depth", "hidden_size", "heads"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name, kinds in (("attention_pattern", get_args(Pattern)), ("qk_norm", get_args(QkNorm))):
            if (given := getattr(self, name)) not in kinds:
                raise RecipeError(f"{name} = {given!r}: must be one of {', '.join(kinds)}{did_you_mean(given, kinds)}")
        if self.pos_fourier_dim < 0:
            raise RecipeError(f"pos_fourier_dim = {self.pos_fourier_dim}: must be at least 0")
        for name in ("patch", "window"):
            if len(getattr(self, name)) != 3 or min(getattr(self, name)) < 1:
                given = list(getattr(self, name))
                raise RecipeError(
                    f"{name} = {given}: needs frames, height and width, each at least 1, such as [1, 2, 2]"
                )
        if self.hidden_size % self.heads or self.hidden_size // self.heads < 6:
            raise RecipeError(
                f"hidden_size = {self.hidden_size}, heads = {self.heads}: the width must be a multiple of the "
                "heads, and a head at least 6 wide, two numbers for each of time, height and width"
            )
