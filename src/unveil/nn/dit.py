"""DiT: a transformer over patches of latents, conditioned on time and class through its normalisations.

    x -> patches -> tokens + positions -> blocks, modulated by (t, class) -> norm -> linear -> patches of the result

Sources: Peebles & Xie 2023 (arXiv:2212.09748); long skips: Bao et al. 2023 (arXiv:2209.12152).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.nn.attention import Attention, Packing, QkNorm
from unveil.nn.embeddings import EmbeddingOrder, TimeEmbedding, grid_coordinates, sin_cos_positions
from unveil.nn.layers import check_multiple, concat_condition, condition_vector, zeroed
from unveil.nn.transformer import BlockConfig, EncoderStates, Mlp, TransformerBlock
from unveil.types import Condition, Ge, checked

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
        in_channels: Number of channels of x.
        out_channels: Number of channels of the output; twice those of x with learned variance.
        size: Side of the x that positions are computed for; other sizes are possible, see `resize`.
        patch: Side of the squares of x that become tokens.
        depth, hidden_size, heads: Number of blocks, width of a token, number of attention heads.
        mlp_ratio: Width of the MLPs, in multiples of `hidden_size`.
        block_type: Conditioning of a block on time and class: as additional tokens (`in-context`), by attention to them
            (`cross-attention`), by scale and shift of its normalisations (`adaln`), with gates that are also
            initialised to 0 (`adaln-zero`).
        skips: Skip connections. `long` adds them from each block of the first half to its mirror in the second (U-ViT).
        embedding: Order of the sinusoid of t, `cos-sin` as published, `sin-cos` in diffusers' folders.
        embedders: Embeddings of time and label: one that all blocks share (`shared`), as published, or one per block
            (`per-block`), as diffusers' folders can have.
        resize: Positions of an x of another size: interpolated between the same ends, or extended beyond them.
        qk_norm: Normalisation of queries and keys.
        norm_eps, mlp_norm_eps: Epsilons of the normalisations, and of those before the MLPs (1e-5 in diffusers'
            folders).
        concat_channels: Channels of `condition.concat`, concatenated to x.
        gradient_checkpointing: Recomputation of the activations of blocks in training: less memory, a third more time.

    Raises:
        RecipeError: The settings are inconsistent.
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
        """Number of patches along a side of the x that positions are computed for."""
        return self.size // self.patch

    @property
    def num_embedders(self) -> int:
        """Number of embeddings of time and label."""
        return self.depth if self.embedders == "per-block" else 1

    @property
    def vector_dim(self) -> int:
        """Width of a condition's vector."""
        return self.num_embedders * self.hidden_size

    @property
    def name(self) -> str | None:
        """Published name of this shape; None if it has none. The size of x is ignored."""
        for letter, shape in SIZES.items():
            if shape == (self.depth, self.hidden_size, self.heads):
                return f"dit-{letter}-{self.patch}"
        return None


def shape_of(name: str) -> dict[str, int]:
    """Depth, width, heads and patch of names such as `dit-xl-2`; any whole number may be the patch.

    Raises:
        RecipeError: The name is unknown; the message names the nearest.
    """
    kind, _, rest = str(name).partition("-")
    letter, _, patch = rest.partition("-")
    if kind != "dit" or letter not in SIZES or not patch.isdecimal() or not int(patch):
        raise RecipeError(f"network name {name!r}: known are {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    depth, width, heads = SIZES[letter]
    return {"depth": depth, "hidden_size": width, "heads": heads, "patch": int(patch)}


def get_preset(name: str, *, size: int = 32, in_channels: int = 4, out_channels: int = 8) -> DiTConfig:
    """Published configuration of the given name; `size` 32 and 64 are its latents of 256 and 512 pixels.

    Raises:
        RecipeError: The name is unknown; the message names the nearest.
    """
    shape = shape_of(name)
    return DiTConfig(
        in_channels, out_channels, size, shape["patch"], shape["depth"], shape["hidden_size"], shape["heads"]
    )


def expand_preset(section: Mapping[str, Any]) -> dict[str, Any]:
    """Section of a recipe, completed with the settings of its `name`; settings in the section take precedence.

    Raises:
        RecipeError: The name is unknown; the message names the nearest.
    """
    options = dict(section)
    name = options.pop("name", None)
    return options if name is None else shape_of(name) | options


WAVES = 256  # numbers of the sinusoid of t
MAX_PRECOMPUTED_BYTES = 2**30  # maximum size of the precomputed modulation


@dataclass(frozen=True)
class BlockConditioning:
    """Conditioning of all blocks; it depends on the noise level and the condition, not on x.

    Letters of shapes: B rows, N tokens, C the width of a token.

    Attributes:
        modulation: Shifts, scales and gates of each adaLN block, (B, 1, parts, C), or (B, N, parts, C) per token; those
            of the last normalisation follow after all blocks.
        tokens, mask: Tokens (B, L, C) of the other block types, and the mask (B, L), True for tokens that count.
        packing: Packing of tokens that are several images in a row.
    """

    modulation: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None
    mask: Tensor | None = None
    packing: Packing | None = None


# -- the four designs of a block (figure 3) -----------------------------------------------------------------------


class AdaLN(nn.Module):
    """Block whose normalisations have scales and shifts that are regressed from time and class."""

    parts = 4

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_1 = nn.LayerNorm(width, config.norm_eps, elementwise_affine=False)
        self.attention = Attention(width, config.heads, qk_norm=config.qk_norm)
        self.norm_2 = nn.LayerNorm(width, config.mlp_norm_eps, elementwise_affine=False)
        self.mlp = Mlp(width, int(config.mlp_ratio * width), "gelu-tanh")
        self.modulation = nn.Linear(width, self.parts * width)

    def forward(self, x: Tensor, conditioning: BlockConditioning, number: int) -> Tensor:
        """Tokens (B, N, C) after block `number`."""
        shift_1, scale_1, shift_2, scale_2 = conditioning.modulation[number].unbind(2)  # each (B, 1, C)
        x = x + self.attention(modulate(self.norm_1(x), shift_1, scale_1), packing=conditioning.packing)  # (B, N, C)
        return x + self.mlp(modulate(self.norm_2(x), shift_2, scale_2))  # (B, N, C)


class AdaLNZero(AdaLN):
    """Block like `AdaLN` with gated branches; the gates are initialised to 0, so that it begins as the identity."""

    parts = 6

    def forward(self, x: Tensor, conditioning: BlockConditioning, number: int) -> Tensor:
        """Tokens (B, N, C) after block `number`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = conditioning.modulation[number].unbind(2)  # each (B, 1, C)
        gathered = self.attention(modulate(self.norm_1(x), shift_1, scale_1), packing=conditioning.packing)  # (B, N, C)
        x = torch.addcmul(x, gate_1, gathered)
        return torch.addcmul(x, gate_2, self.mlp(modulate(self.norm_2(x), shift_2, scale_2)))  # (B, N, C)


class CrossAttention(nn.Module):
    """Transformer block with attention to the embeddings of time and class between its two parts."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.plain = TransformerBlock(_plain(config), context_width=config.hidden_size)

    def forward(self, x: Tensor, conditioning: BlockConditioning, number: int) -> Tensor:
        """Tokens (B, N, C) after block `number`."""
        return self.plain(x, context=EncoderStates(cast(Tensor, conditioning.tokens), conditioning.mask))  # (B, N, C)


class InContext(nn.Module):
    """Transformer block in which the embeddings of time and class are tokens after the image's tokens."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.plain = TransformerBlock(_plain(config))

    def forward(self, x: Tensor, conditioning: BlockConditioning, number: int) -> Tensor:
        """Tokens (B, N + L, C) after block `number`."""
        if conditioning.mask is None:
            return self.plain(x)
        mask = conditioning.mask
        seen = nn.functional.pad(mask, (x.shape[1] - mask.shape[1], 0), value=True)  # (B, N + L)
        return self.plain(x, mask=seen[:, None, None])  # (B, N + L, C)


def _plain(config: DiTConfig) -> BlockConfig:
    """Configuration of ViT's block."""
    hidden = int(config.mlp_ratio * config.hidden_size)
    return BlockConfig(
        config.hidden_size, config.heads, hidden, activation="gelu-tanh", qk_norm=config.qk_norm, eps=config.norm_eps
    )


DESIGNS: dict[str, type[nn.Module]] = {
    "in-context": InContext,
    "cross-attention": CrossAttention,
    "adaln": AdaLN,
    "adaln-zero": AdaLNZero,
}


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift."""
    return torch.addcmul(shift, x, 1 + scale)


def positions(config: DiTConfig, rows: int, columns: int) -> Tensor:
    """Fixed positions of an image of rows x columns patches, (rows * columns, C), the column's part first."""
    places = grid_coordinates((rows, columns))  # (N, 2)
    if config.resize == "interpolate":
        places = places * (config.side / torch.tensor([rows, columns], dtype=places.dtype))
    return sin_cos_positions(places.flip(1), config.hidden_size, "sin-cos")


# -- the network --------------------------------------------------------------------------------------------------


class DiT(nn.Module):
    """Denoising network from (x, t, condition) to a tensor of x's size with `out_channels`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.vector_dim = config.vector_dim
        self.multiple = config.patch  # of both sides of x
        width, patch, half = config.hidden_size, config.patch, config.depth // 2
        self.adaptive = config.block_type in ("adaln", "adaln-zero")

        self.patches = nn.Conv2d(config.in_channels + config.concat_channels, width, patch, stride=patch)
        self.register_buffer("positions", positions(config, config.side, config.side))
        self.time = nn.ModuleList(TimeEmbedding(WAVES, width, config.embedding) for _ in range(config.num_embedders))
        self.blocks = nn.ModuleList(DESIGNS[config.block_type](config) for _ in range(config.depth))
        self.merge = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(half if config.skips == "long" else 0))
        self.norm = nn.LayerNorm(width, config.norm_eps, elementwise_affine=not self.adaptive)
        self.modulation = nn.Linear(width, 2 * width) if self.adaptive else None
        self.leave = nn.Linear(width, patch**2 * config.out_channels)
        self._initialise()
        self._precomputed: Callable[[Tensor, Condition], BlockConditioning] | None = None
        self._tables: dict[tuple[int, int, torch.device], Tensor] = {}  # positions of other sizes

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Network output, in the size of x.

        Args:
            x: Noisy samples (B, in_channels, H, W) with height and width that are multiples of the patch.
            t: Time input (B,) of the network for the noise level; fractions are allowed.
            condition: Condition of B rows. Its vector (B, vector_dim) is added to the time embedding, and its `concat`
                is concatenated to x; its tokens are for the block types `in-context` and `cross-attention`.

        Raises:
            ShapeError: The size is not a multiple of the patch, or the condition does not fit.
        """
        condition = condition or Condition()
        self._check(x)
        conditioning = (
            self.block_conditioning(t, condition) if self._precomputed is None else self._precomputed(t, condition)
        )
        h = self.patches(concat_condition(x, condition, self.config.concat_channels))  # (B, C, rows, columns)
        rows, columns = h.shape[2:]
        # contiguous: else each residual keeps the image's strides, and each normalisation copies
        h = h.flatten(2).transpose(1, 2).contiguous() + self._positions(rows, columns)  # (B, N, C)
        return self._unpatched(self.forward_tokens(h, conditioning), rows, columns)  # (B, out_channels, H, W)

    def block_conditioning(self, t: Tensor, condition: Condition) -> BlockConditioning:
        """Conditioning of the blocks at the time inputs t (B,), for a condition of B rows.

        Raises:
            ShapeError: The condition does not fit.
        """
        width, count = self.config.hidden_size, self.config.num_embedders
        vector = condition_vector(condition, len(t), self.vector_dim)
        embedded = torch.stack([time(t) for time in self.time], dim=1)  # (B, embedders, C)
        if self.adaptive:
            if condition.tokens is not None:
                raise ShapeError("condition.tokens: for the designs in-context and cross-attention; pass a vector")
            if vector is not None:
                embedded = embedded + vector.view(len(t), count, width).to(embedded)
            return BlockConditioning(self._modulations(nn.functional.silu(embedded)))
        tokens = [embedded] if vector is None else [embedded, vector[:, None].to(embedded)]  # time, then class
        mask = condition.mask
        if condition.tokens is not None:
            if mask is not None:
                mask = nn.functional.pad(mask, (len(tokens), 0), value=True)
            tokens.append(condition.tokens.to(embedded))
        return BlockConditioning(tokens=torch.cat(tokens, dim=1), mask=mask if condition.tokens is not None else None)

    def forward_tokens(self, h: Tensor, conditioning: BlockConditioning) -> Tensor:
        """Map tokens (B, N, C) of an image to output tokens (B, N, patch * patch * out_channels)."""
        count, depth, half = h.shape[1], self.config.depth, len(self.merge)
        if self.config.block_type == "in-context":
            h = torch.cat([h, cast(Tensor, conditioning.tokens).to(h)], dim=1)  # (B, N + L, C)
        stack: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            if number >= depth - half:
                h = self.merge[number - depth + half](torch.cat([h, stack.pop()], dim=2))
            if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
                h = cast(Tensor, checkpoint(block, h, conditioning, number, use_reentrant=False))
            else:
                h = block(h, conditioning, number)
            if number < half:
                stack.append(h)
        h = self.norm(h[:, :count])  # (B, N, C)
        if self.adaptive:
            h = modulate(h, *conditioning.modulation[-1].unbind(2))
        return self.leave(h)  # (B, N, patch * patch * out_channels)

    def packed(
        self, images: Sequence[Tensor], t: Tensor, condition: Condition | None = None, *, length: int | None = None
    ) -> tuple[list[Tensor], float]:
        """Outputs for S images (in_channels, H, W) of any sizes, computed as packed rows of tokens.

        Args:
            t: Time inputs of the images, (S,).
            condition: Condition of S rows, with a vector.
            length: Number of tokens of a row; None: all images are in one row.

        Returns:
            Outputs (out_channels, H, W), and the share of the tokens that is padding.

        Raises:
            RecipeError: The block type is not `adaln` or `adaln-zero`, which modulate each token separately.
            ShapeError: An image does not fit the network, or is longer than a row.
        """
        if not self.adaptive:
            raise RecipeError(f"block_type = {self.config.block_type!r}: only adaln and adaln-zero read packed images")
        condition = condition or Condition()
        tokens, sides = [], []
        for image in images:
            self._check(image[None])
            h = self.patches(image[None])  # (1, C, rows, columns)
            sides.append((h.shape[2], h.shape[3]))
            tokens.append(h[0].flatten(1).T + self._positions(*sides[-1]))  # (N, C)
        packing = Packing([len(sequence) for sequence in tokens], length=length)
        conditioning = self.block_conditioning(t, condition)
        each = tuple(packing.per_token(parts[:, 0]) for parts in conditioning.modulation)  # (rows, N, parts, C)
        conditioning = replace(conditioning, modulation=each, packing=packing)
        outputs = zip(packing.unpack(self.forward_tokens(packing.pack(tokens), conditioning)), sides, strict=True)
        return [self._unpatched(output[None], *side)[0] for output, side in outputs], packing.waste

    @contextmanager
    def precompute(self, indices: Sequence[float] | Tensor) -> Iterator[None]:
        """Context in which all that depends only on level and condition is computed for all of `indices` in one call.

        The computation takes place when a condition first occurs; later steps of a run look it up. The context is for
        sampling: outputs are the same, no weight gets a gradient from them, and weights must not change within it.
        """
        before = self._precomputed
        if self.adaptive:
            self._precomputed = _PrecomputedModulation(self, torch.as_tensor(indices, dtype=torch.float32)).conditioning
            if getattr(self, "_compiled_call_impl", None):
                # it is only looked up; a compiler would make a variant of it for each level
                self._precomputed = cast(Any, torch.compiler.disable(self._precomputed))
        try:
            yield
        finally:
            self._precomputed = before

    def _positions(self, rows: int, columns: int) -> Tensor:
        table = cast(Tensor, self.positions)
        if (rows, columns) == (self.config.side, self.config.side):
            return table
        key = (rows, columns, table.device)
        if key not in self._tables:
            with torch.device("cpu"):
                self._tables[key] = positions(self.config, rows, columns).to(table)
        return self._tables[key].to(table)

    def _modulations(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """Modulation of each block and of the last normalisation, from the activated embeddings (B, embedders, C)."""
        of_block = embeddings.unbind(1) if self.config.num_embedders > 1 else [embeddings[:, 0]] * self.config.depth
        layers = [cast(AdaLN, block).modulation for block in self.blocks]
        each = [layer(embedding) for layer, embedding in zip(layers, of_block, strict=True)]
        each.append(cast(nn.Linear, self.modulation)(embeddings[:, 0]))
        return tuple(modulation.unflatten(1, (1, -1, self.config.hidden_size)) for modulation in each)

    def _unpatched(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Reorder tokens (B, N, patch * patch * out_channels) to an image (B, out_channels, H, W)."""
        patch = self.config.patch
        squares = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, columns))  # (B, rows, columns, p, q, c)
        return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ShapeError(f"x {tuple(x.shape)}: must be (B, {self.config.in_channels}, H, W)")
        check_multiple(x, self.multiple)

    def _initialise(self) -> None:
        """Initialise as published: Xavier's uniform weights, no biases, a small embedding of time, and zeros.

        Zero are the modulation layers of adaLN-Zero, that of the last normalisation, and the last layer. A long skip
        initially adds nothing, so that the blocks still begin as the identity.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patches.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, self.patches.bias))
        for time in self.time:
            for layer in (cast(TimeEmbedding, time).linear_1, cast(TimeEmbedding, time).linear_2):
                nn.init.normal_(layer.weight, std=0.02)
        for layer in self.merge:
            with torch.no_grad():
                cast(nn.Linear, layer).weight.copy_(torch.eye(self.config.hidden_size, 2 * self.config.hidden_size))
        if self.config.block_type == "adaln-zero":
            for block in self.blocks:
                zeroed(cast(AdaLNZero, block).modulation)
        if self.modulation is not None:
            zeroed(self.modulation)
        zeroed(self.leave)


class _PrecomputedModulation:
    """Modulations of all noise levels, computed once for each condition."""

    def __init__(self, network: DiT, indices: Tensor) -> None:
        self.network = network
        self.indices = torch.unique(indices)
        self.places = {index: place for place, index in enumerate(self.indices.tolist())}
        # the same tensor comes again with every image of a level; it is kept, so that its id stays its own
        self.levels: dict[int, tuple[Tensor, int | None]] = {}
        self.entries: list[tuple[Tensor | None, _Table | None]] = []

    def conditioning(self, t: Tensor, condition: Condition) -> BlockConditioning:
        """Conditioning of the blocks, as in `DiT.block_conditioning`, from the table if it contains the level."""
        place = self._place(t)
        if place is None or condition.tokens is not None:
            return self.network.block_conditioning(t, condition)
        pair = next((entry for entry in self.entries if entry[0] is condition.vector), None)
        if pair is None:
            pair = condition.vector, self._computed(condition, len(t))
            self.entries.append(pair)
        return self.network.block_conditioning(t, condition) if pair[1] is None else pair[1].at(place)

    def _place(self, t: Tensor) -> int | None:
        """Index of the level that all values of t equal; None if there is none."""
        if id(t) not in self.levels:
            first = float(t[0])
            self.levels[id(t)] = (t, self.places.get(first) if bool((t == first).all()) else None)
        return self.levels[id(t)][1]

    @torch.no_grad()
    def _computed(self, condition: Condition, rows: int) -> _Table | None:
        """Modulation of every level and each distinct row of the condition; None if it takes too much memory."""
        network, levels = self.network, len(self.indices)
        distinct: Tensor | None = None
        rows_of: Tensor | None = None
        vector = condition_vector(condition, rows, network.vector_dim)
        if vector is not None:
            distinct, rows_of = torch.unique(vector, dim=0, return_inverse=True)
        kinds = 1 if distinct is None else len(distinct)
        parts = 2 + sum(cast(AdaLN, block).parts for block in network.blocks)
        if 4 * levels * kinds * parts * network.config.hidden_size > MAX_PRECOMPUTED_BYTES:
            return None
        t = self.indices.to(network.patches.weight.device).repeat_interleave(kinds)  # (levels * kinds,)
        conditioning = network.block_conditioning(
            t, Condition(None if distinct is None else distinct.repeat(levels, 1))
        )
        # each (levels, kinds, 1, parts, C)
        tables = [part.unflatten(0, (levels, kinds)) for part in conditioning.modulation]
        if rows_of is not None and kinds == rows:  # put in order once
            return _Table([table[:, rows_of] for table in tables])
        return _Table(tables, rows_of if kinds > 1 else None)


class _Table:
    """Modulation (levels, kinds, 1, parts, C) of blocks, and the kind of each row; None: the rows are in order."""

    def __init__(self, tables: Sequence[Tensor], rows: Tensor | None = None) -> None:
        self.tables, self.rows = tables, rows

    def at(self, place: int) -> BlockConditioning:
        """Modulation of one level."""
        here = [table[place] for table in self.tables]
        return BlockConditioning(tuple(here if self.rows is None else [table[self.rows] for table in here]))
