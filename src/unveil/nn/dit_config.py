"""Configuration of a DiT, and the published ones by name.

Source: Peebles & Xie 2023, table 1 (arXiv:2212.09748).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from unveil.errors import RecipeError, did_you_mean
from unveil.nn.attention import QkNorm
from unveil.nn.embeddings import EmbeddingOrder
from unveil.types import Ge, checked

Design = Literal["in-context", "cross-attention", "adaln", "adaln-zero"]
Skips = Literal["none", "long"]
Embedders = Literal["shared", "per-block"]
Resize = Literal["interpolate", "extend"]

# Letter: depth, width, heads
SIZES = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}
PATCHES = (8, 4, 2)
NAMES = tuple(f"dit-{letter}-{patch}" for letter in SIZES for patch in PATCHES)


@dataclass(frozen=True)
class DiTConfig:
    """Configuration of a DiT.

    Args:
        in_channels: of x.
        out_channels: of the result, twice those of x with learned variance.
        size: side of the x that positions are laid out for; others are taken too, see `resize`.
        patch: side of the squares of x that become tokens.
        depth, hidden_size, heads: blocks, width of a token, attention heads.
        mlp_ratio: width of the MLPs, in multiples of `hidden_size`.
        block_type: how a block is conditioned on time and class: as further tokens (`in-context`), by attention to them
            (`cross-attention`), by scale and shift of its normalisations (`adaln`), with gates that begin at 0 too
            (`adaln-zero`).
        skips: `long` gives the result of each block of the first half to its mirror image in the second (U-ViT).
        embedding: order of the sinusoid of t, `cos-sin` as published, `sin-cos` in diffusers' folders.
        embedders: whether blocks share the embedding of time and label, as published, or each has its own, as
            diffusers' folders can have.
        resize: what positions do for an x of another size: keep their ends, or go on beyond them.
        qk_norm: of queries and keys.
        norm_eps, mlp_norm_eps: of the normalisations, and of those before the MLPs (1e-5 in diffusers' folders).
        concat_channels: channels of `condition.channels`, concatenated to x.
        gradient_checkpointing: in training, keep no activations of blocks but compute them again: less memory, a
            third more time.

    Raises:
        RecipeError: settings that do not fit together.
    """

    in_channels: Annotated[int, Ge(1)]
    out_channels: Annotated[int, Ge(1)]
    size: Annotated[int, Ge(1)] = 32
    patch: Annotated[int, Ge(1)] = 2
    depth: Annotated[int, Ge(1)] = 12
    hidden_size: Annotated[int, Ge(1)] = 384
    heads: Annotated[int, Ge(1)] = 6
    mlp_ratio: float = 4.0
    block_type: Design = "adaln-zero"
    skips: Skips = "none"
    embedding: EmbeddingOrder = "cos-sin"
    embedders: Embedders = "shared"
    resize: Resize = "interpolate"
    qk_norm: QkNorm = "none"
    norm_eps: float = 1e-6
    mlp_norm_eps: float = 1e-6
    concat_channels: int = 0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        checked(self)
        if self.size % self.patch:
            below = self.size // self.patch * self.patch
            near = f"{below} or {below + self.patch}" if below else f"{self.patch}"
            raise RecipeError(f"size {self.size}: must be a multiple of the patch, {self.patch}; nearest {near}")
        if self.hidden_size % self.heads or self.hidden_size % 4:
            raise RecipeError(
                f"hidden_size = {self.hidden_size}: must be a multiple of the {self.heads} heads, and of 4"
            )
        if self.embedders == "per-block" and self.block_type != "adaln-zero":
            raise RecipeError("embedders = 'per-block': only with block_type adaln-zero, which diffusers' folders have")

    @property
    def side(self) -> int:
        """Patches along a side of the x that positions are laid out for."""
        return self.size // self.patch

    @property
    def tellers(self) -> int:
        """Number of embeddings of time and label."""
        return self.depth if self.embedders == "per-block" else 1

    @property
    def vector_dim(self) -> int:
        """Width of a condition's vector."""
        return self.tellers * self.hidden_size

    @property
    def name(self) -> str | None:
        """The published name of this shape, if it has one, whatever the size of x."""
        for letter, shape in SIZES.items():
            if shape == (self.depth, self.hidden_size, self.heads):
                return f"dit-{letter}-{self.patch}"
        return None


def shape_of(name: str) -> dict[str, int]:
    """Depth, width, heads and patch of `dit-xl-2` and the like; any whole number may be the patch.

    Raises:
        RecipeError: no such name; the nearest is named.
    """
    kind, _, rest = str(name).partition("-")
    letter, _, patch = rest.partition("-")
    if kind != "dit" or letter not in SIZES or not patch.isdecimal() or not int(patch):
        raise RecipeError(f"network name {name!r}: known are {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    depth, width, heads = SIZES[letter]
    return {"depth": depth, "hidden_size": width, "heads": heads, "patch": int(patch)}


def get_preset(name: str, *, size: int = 32, in_channels: int = 4, out_channels: int = 8) -> DiTConfig:
    """The published configuration of this name; `size` 32 and 64 are its latents of 256 and 512 pixels.

    Raises:
        RecipeError: no such name; the nearest is named.
    """
    shape = shape_of(name)
    return DiTConfig(
        in_channels, out_channels, size, shape["patch"], shape["depth"], shape["hidden_size"], shape["heads"]
    )


def expand_preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's section with the settings that its `name` stands for; those that it sets itself go before them.

    Raises:
        RecipeError: no such name; the nearest is named.
    """
    options = dict(section)
    name = options.pop("name", None)
    return options if name is None else shape_of(name) | options
