"""A transformer over spatio-temporal patches of videos, with noise levels per token and attention to a text.

    x -> patches -> tokens at (t, y, x) -> blocks, modulated by the level of each token -> norm -> linear -> patches

An image is a video of one frame. Noise levels may differ between the frames or the positions of a video; conditioning
frames are given at the level of data. Rotary positions rotate queries and keys, so that any size, shape and length,
times before the first frame and times between frames are only other coordinates. Optional Fourier features also add
to each token its position in its frame and its time after the start.

Letters of shapes: B videos, F frames of patches, S patches of a frame, N = F S tokens, C the width of a token.

Sources: Peebles & Xie 2023 (arXiv:2212.09748); one modulation for all blocks: Chen et al. 2023 (arXiv:2310.00426),
section 2.3; videos of any size in one row: Dehghani et al. 2023 (arXiv:2307.06304); a level for each token: Chen et al.
2024 (arXiv:2407.01392).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unveil.errors import RecipeError, ShapeError
from unveil.nn.attention import Attention, AttentionPattern, Packing, QkNorm
from unveil.nn.attention_patterns import AttentionGroups, Pattern, TokenGrid
from unveil.nn.dit import WAVES, modulate
from unveil.nn.embeddings import Rotary, TimeEmbedding, grid_coordinates
from unveil.nn.layers import condition_tokens, condition_vector, zeroed
from unveil.nn.transformer import Mlp
from unveil.types import Condition, Ge, checked


@dataclass(frozen=True)
class VideoDiTConfig:
    """Configuration of a transformer over videos.

    Args:
        in_channels: Number of channels of x.
        out_channels: Number of channels of the result.
        patch: Frames, height and width of the boxes of x that become tokens.
        depth, hidden_size, heads: Number of blocks, width of a token, number of attention heads.
        mlp_ratio: Width of the MLPs, in multiples of `hidden_size`.
        cross_attention_dim: Width of the text's tokens, to which every block attends; None: no cross-attention.
        attention_pattern: Pattern of which tokens of a video attend to each other, see
            `attention_patterns.attention_groups`.
        window: Number of frames, rows and columns of a box of tokens, for the pattern `windowed`.
        causal: True if no token attends to a later frame.
        pos_fourier_dim: Number of Fourier frequencies for each of time, height and width, which add to a token its
            position in its frame and its time after the start; 0: positions are relative only.
        rope_theta: Base of the rotary positions; the longest wavelength is just under 2 pi rope_theta tokens.
        qk_norm: Normalisation of queries and keys.
        gradient_checkpointing: Recomputation of the activations of blocks in training: less memory, a third more time.

    Raises:
        RecipeError: The settings are inconsistent.
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


# Frames of half the longest wave of the Fourier features of time
FOURIER_SPAN = 64

# Layouts of clips, such as positions, that a network remembers: a run has a few, training on mixed sizes ever others
MAX_LAYOUTS = 8


@dataclass(frozen=True)
class VideoBlockConditioning:
    """Conditioning of all blocks, beside x.

    Attributes:
        modulation: Shifts, scales and gates (B, F or 1, S or 1, 6, C) that all blocks share; each block adds its own.
        last: Shift and scale (B, F or 1, S or 1, 2, C) of the last normalisation.
        level_index: Index of the noise level of each token of packed rows (B, N), along the first axis of `modulation`
            and `last`; None: levels are not indexed.
        rotary: Positions of the tokens.
        attention_patterns: Pattern of which tokens attend to each other, for each block; None: all tokens of a row.
        text, mask: Tokens of the texts (videos, L, cross_attention_dim), and their mask (videos, L), True for tokens
            that count.
        packing: Packing of tokens that are several videos in a row.
    """

    modulation: Tensor
    last: Tensor
    rotary: Rotary
    attention_patterns: Sequence[AttentionPattern | None]
    text: Tensor | None = None
    mask: Tensor | None = None
    packing: Packing | None = None
    level_index: Tensor | None = None

    def parts(self, each: Tensor) -> list[Tensor]:
        """Shifts, scales and gates (..., parts, C) as a list, each broadcastable to tokens (B, F, S, C)."""
        if self.level_index is None:
            return list(each.unbind(-2))
        index = self.level_index.flatten()
        return [part[:, 0, 0].index_select(0, index).view(*self.level_index.shape, 1, -1) for part in each.unbind(-2)]


@dataclass
class _Layout:
    """Layout of videos of given sizes: the positions of their tokens, and the attention pattern of each block."""

    rotary: Rotary
    attention_patterns: Sequence[Packing | AttentionGroups | None]
    packing: Packing | None = None
    waves: Sequence[Tensor | None] = (None,)

    def to(self, device: torch.device) -> None:
        self.waves = [None if table is None else table.to(device) for table in self.waves]
        parts = (self.rotary, self.packing, *self.attention_patterns)
        for part in {id(part): part for part in parts if part is not None}.values():
            part.to(device)


class SpaceTimeBlock(nn.Module):
    """Block of self-attention, attention to a text, and an MLP; its own modulation is added to the shared one.

    Source: Chen et al. 2023, section 2.3 (arXiv:2310.00426).
    """

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_1 = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.attention = Attention(width, config.heads, qk_norm=config.qk_norm)
        self.context = None
        if config.cross_attention_dim is not None:
            self.context_norm = nn.LayerNorm(width, 1e-6)
            self.context = Attention(
                width, config.heads, context_width=config.cross_attention_dim, qk_norm=config.qk_norm
            )
        self.norm_2 = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(config.mlp_ratio * width), "gelu-tanh")
        self.table = nn.Parameter(torch.zeros(6, width))

    def forward(self, h: Tensor, conditioning: VideoBlockConditioning, number: int) -> Tensor:
        """Tokens (B, F, S, C) after block `number`."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = conditioning.parts(conditioning.modulation + self.table)
        seen = modulate(self.norm_1(h), shift_1, scale_1).flatten(1, 2)  # (B, N, C)
        gathered = self.attention(seen, rotary=conditioning.rotary, packing=conditioning.attention_patterns[number])
        h = torch.addcmul(h, gate_1, gathered.unflatten(1, h.shape[1:3]))
        if self.context is not None:
            read = self._read(self.context_norm(h).flatten(1, 2), self.context, conditioning)
            h = h + read.unflatten(1, h.shape[1:3])
        return torch.addcmul(h, gate_2, self.mlp(modulate(self.norm_2(h), shift_2, scale_2)))

    def _read(self, tokens: Tensor, attention: Attention, conditioning: VideoBlockConditioning) -> Tensor:
        """Output of the attention of tokens (B, N, C) to the texts of their videos."""
        if conditioning.packing is not None:
            return attention(tokens, context=conditioning.text, mask=conditioning.mask, packing=conditioning.packing)
        mask = None if conditioning.mask is None else conditioning.mask[:, None, None]
        return attention(tokens, context=conditioning.text, mask=mask)


class VideoDiT(nn.Module):
    """Denoising network of videos and images, from (x, t, condition) to a tensor of x's size with `out_channels`.

    Attributes:
        takes_token_levels: True, since t may differ between the parts of a sample.
    """

    takes_token_levels = True

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, box = config.hidden_size, math.prod(config.patch)
        self.vector_dim = width
        self.multiple = config.patch[1]
        self.patches = nn.Linear(config.in_channels * box, width)
        self.where = nn.Linear(6 * config.pos_fourier_dim, width) if config.pos_fourier_dim else None
        self.time = TimeEmbedding(WAVES, width, "cos-sin")
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(SpaceTimeBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.last = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, config.out_channels * box)
        self._initialise()
        self._laid: dict[tuple[object, ...], _Layout] = {}

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Network output, in the size of x.

        Args:
            x: Noisy videos (B, in_channels, T, H, W), or images (B, in_channels, H, W), which are videos of one frame.
            t: Time input of the network for the noise level; fractions are allowed. It is (B,), or broadcastable to x
                for levels that differ between frames or positions; within a token, the highest level is used.
            condition: Condition of B rows. Its vector (B, vector_dim) is added to the time embedding, and its tokens
                are the text. Its `positions` are the first coordinate and the step of each axis; None: the first token
                is at 0, the step is 1.

        Raises:
            ShapeError: The size is not a multiple of the patch, or the condition does not fit.
        """
        condition, rows = condition or Condition(), len(x)
        clips, grid = self._checked(x)
        laid = self._cached_layout(("alone", grid, rows, x.device), lambda: self._alone(grid, rows))
        waves = (
            laid.waves[0]
            if condition.positions is None
            else _waves(grid, condition.positions, self.config.pos_fourier_dim)
        )
        h = self._tokens(clips, grid, waves)  # (B, F, S, C)
        rotary = laid.rotary if condition.positions is None else self._rotary(_coordinates(grid, condition.positions))
        vector = condition_vector(condition, rows, self.vector_dim)
        conditioning = self._conditioning(self._levels(t, x, grid), vector, rotary, laid.attention_patterns)
        conditioning = self._with_text(conditioning, condition, rows)
        return self._unboxed(self.forward_tokens(h, conditioning), grid).view(rows, -1, *x.shape[2:])

    def packed(
        self,
        clips: Sequence[Tensor],
        t: Sequence[Tensor],
        condition: Condition | None = None,
        *,
        length: int | None = None,
    ) -> tuple[list[Tensor], float]:
        """Outputs for S videos (in_channels, T, H, W), or images, of any sizes, computed as packed rows of tokens.

        Args:
            t: Time input of each video, a number or a tensor that is broadcastable to the video.
            condition: Condition of S rows.
            length: Number of tokens of a row; None: all videos are in one row.

        Returns:
            Outputs in the sizes of the videos, and the share of the tokens that is padding.

        Raises:
            ShapeError: A video does not fit the network, or is longer than a row.
        """
        condition, count = condition or Condition(), len(clips)
        whole = [self._checked(video[None]) for video in clips]
        grids = tuple(grid for _, grid in whole)
        laid = self._cached_layout(("packed", grids, length, clips[0].device), lambda: self._in_rows(grids, length))
        packing, rotary = cast(Packing, laid.packing), laid.rotary
        tokens, levels, which = [], [], []
        for number, (clip, grid) in enumerate(whole):
            places = None if condition.positions is None else condition.positions[number : number + 1]
            waves = laid.waves[number] if places is None else _waves(grid, places, self.config.pos_fourier_dim)
            tokens.append(self._tokens(clip, grid, waves)[0].flatten(0, 1))  # (N, C)
            level = self._levels(t[number][None], clips[number][None], grid)[0]  # (F or 1, S or 1)
            start = sum(map(len, levels))
            rows = torch.arange(start, start + level.numel(), device=clip.device)
            which.append(rows.view(level.shape).expand(grid.frames, grid.rows * grid.columns).flatten())
            levels.append(level.flatten())
        if condition.positions is not None:
            coordinates = zip(grids, condition.positions.split(1), strict=True)
            rotary = self._rotary(packing.pack([_coordinates(grid, places)[0] for grid, places in coordinates]))
        vector = condition_vector(condition, count, self.vector_dim)
        if vector is not None:  # of the clip of each level
            counts = torch.tensor([len(level) for level in levels], device=vector.device)
            vector = vector.repeat_interleave(counts, dim=0)
        conditioning = self._conditioning(torch.cat(levels)[:, None, None], vector, rotary, laid.attention_patterns)
        conditioning = replace(conditioning, packing=packing, level_index=packing.pack(which))
        conditioning = self._with_text(conditioning, condition, count)
        outputs = packing.unpack(self.forward_tokens(packing.pack(tokens)[:, :, None], conditioning)[:, :, 0])
        results = [
            self._unboxed(output.view(1, grid.frames, -1, output.shape[-1]), grid).view(-1, *clip.shape[1:])
            for output, grid, clip in zip(outputs, grids, clips, strict=True)
        ]
        return results, packing.waste

    def tokens(self, shape: Sequence[int]) -> int:
        """Number of tokens of a video (in_channels, T, H, W) or an image.

        Raises:
            ShapeError: The size is not a multiple of the patch, or the number of channels is wrong.
        """
        return self._checked(torch.empty(1, *shape, device="meta"))[1].tokens

    def forward_tokens(self, h: Tensor, conditioning: VideoBlockConditioning) -> Tensor:
        """Map tokens (B, F, S, C) to output tokens (B, F, S, out_channels * box)."""
        for number, block in enumerate(self.blocks):
            if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
                h = cast(Tensor, checkpoint(block, h, conditioning, number, use_reentrant=False))
            else:
                h = block(h, conditioning, number)
        return self.leave(modulate(self.norm(h), *conditioning.parts(conditioning.last)))

    # -- details ------------------------------------------------------------------------------------------------

    def _checked(self, x: Tensor) -> tuple[Tensor, TokenGrid]:
        """Videos (B, C, T, H, W), and the grid of their tokens."""
        clips = x[:, :, None] if x.ndim == 4 else x
        if clips.ndim != 5 or clips.shape[1] != self.config.in_channels:
            raise ShapeError(
                f"x {tuple(x.shape)}: must be clips (B, {self.config.in_channels}, T, H, W), or images "
                f"(B, {self.config.in_channels}, H, W)"
            )
        counts = []
        for name, size, part in zip(("frames", "height", "width"), clips.shape[2:], self.config.patch, strict=True):
            if size % part or not size:
                below, above = size // part * part, -(-max(size, 1) // part) * part
                near = f"{below} or {above}" if below else f"{above}"
                raise ShapeError(f"{name} {size}: must be a multiple of {part}; nearest {near}")
            counts.append(size // part)
        return clips, TokenGrid(*counts)

    def _tokens(self, clips: Tensor, grid: TokenGrid, waves: Tensor | None) -> Tensor:
        """Tokens (B, F, S, C) of videos (B, in_channels, T, H, W), each with its position."""
        h = self.patches(self._boxes(clips))
        if self.where is None or waves is None:
            return h
        return h + self.where(waves.to(h)).unflatten(-2, (grid.frames, -1))

    def _boxes(self, clips: Tensor) -> Tensor:
        """Reorder videos (B, C, T, H, W) to boxes (B, F, S, C * box)."""
        frames, height, width = self.config.patch
        parts = clips.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(2, (-1, frames))
        return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(2, 3)  # (B, F, rows, columns, C, f, h, w)

    def _unboxed(self, boxes: Tensor, grid: TokenGrid) -> Tensor:
        """Reorder boxes (B, F, S, C * box) to videos (B, C, T, H, W)."""
        parts = boxes.unflatten(3, (-1, *self.config.patch)).unflatten(2, (grid.rows, grid.columns))
        return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _levels(self, t: Tensor, x: Tensor, grid: TokenGrid) -> Tensor:
        """Time input of each token, (B, F or 1, S or 1)."""
        if t.ndim <= 1:
            return t.expand(len(x)).view(-1, 1, 1)
        if t.ndim != x.ndim:
            raise ShapeError(f"t {tuple(t.shape)}: must be ({len(x)},), or broadcastable to x {tuple(x.shape)}")
        t = t.amax(1) if x.ndim == 5 else t.amax(1)[:, None]  # (B, T, H, W), or 1 where it does not differ
        for axis, part in enumerate(self.config.patch, start=1):
            if t.shape[axis] > 1:
                t = t.unflatten(axis, (-1, part)).amax(axis + 1)
        if t.shape[2] == t.shape[3] == 1:
            return t.flatten(2).expand(len(x), -1, -1)
        return t.expand(len(x), -1, grid.rows, grid.columns).flatten(2)

    def _conditioning(
        self, level: Tensor, vector: Tensor | None, rotary: Rotary, together: Sequence[AttentionPattern | None]
    ) -> VideoBlockConditioning:
        """Conditioning for time inputs (B, F or 1, S or 1) and vectors (B, vector_dim)."""
        embedded = self.time(level.flatten()).unflatten(0, level.shape)  # (B, F or 1, S or 1, C)
        if vector is not None:
            embedded = embedded + vector[:, None, None].to(embedded)
        embedded = nn.functional.silu(embedded)
        width = self.config.hidden_size
        modulation, last = (layer(embedded).unflatten(3, (-1, width)) for layer in (self.modulation, self.last))
        return VideoBlockConditioning(modulation, last, rotary, together)

    def _with_text(
        self, conditioning: VideoBlockConditioning, condition: Condition, clips: int
    ) -> VideoBlockConditioning:
        context = condition_tokens(condition, self.config.cross_attention_dim, clips)
        return conditioning if context is None else replace(conditioning, text=context.tokens, mask=context.mask)

    def _rotary(self, places: Tensor) -> Rotary:
        return Rotary(places, self.config.hidden_size // self.config.heads, theta=self.config.rope_theta)

    def _cached_layout(self, key: tuple[object, ...], build: Callable[[], _Layout]) -> _Layout:
        """Return a layout, which depends only on sizes, on the tokens' device; it is computed once and reused."""
        if key not in self._laid:
            if len(self._laid) >= MAX_LAYOUTS:
                self._laid.clear()
            with torch.device("cpu"), torch.inference_mode(mode=False):  # for calls that train, too
                self._laid[key] = build()
            self._laid[key].to(cast(torch.device, key[-1]))
        return self._laid[key]

    def _alone(self, grid: TokenGrid, rows: int) -> _Layout:
        rotary, waves = self._rotary(_coordinates(grid, None)), [_waves(grid, None, self.config.pos_fourier_dim)]
        if self.config.attention_pattern == "full" and not self.config.causal:
            return _Layout(rotary, [None] * self.config.depth, waves=waves)
        packing = Packing([grid.tokens] * rows, length=grid.tokens)
        return _Layout(rotary, self._together(packing, [grid] * rows), waves=waves)

    def _in_rows(self, grids: Sequence[TokenGrid], length: int | None) -> _Layout:
        packing = Packing([grid.tokens for grid in grids], length=length)
        rotary = self._rotary(packing.pack([_coordinates(grid, None) for grid in grids]))
        waves = [_waves(grid, None, self.config.pos_fourier_dim) for grid in grids]
        return _Layout(rotary, self._together(packing, grids), packing, waves)

    def _together(self, packing: Packing, grids: Sequence[TokenGrid]) -> Sequence[Packing | AttentionGroups]:
        config = self.config
        if config.attention_pattern == "full" and not config.causal:
            return [packing] * config.depth
        kinds = [
            AttentionGroups(
                packing, grids, config.attention_pattern, parity, window=config.window, causal=config.causal
            )
            for parity in range(2)
        ]
        return [kinds[number % 2] for number in range(config.depth)]

    def _initialise(self) -> None:
        """Initialise as in DiT: Xavier's uniform weights, no biases, and zeros for all gates and the last layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for layer in (self.time.linear_1, self.time.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.modulation, self.last, self.leave):
            zeroed(layer)
        for block in self.blocks:
            reads = cast(SpaceTimeBlock, block).context
            if reads is not None:  # a text begins as nothing added
                zeroed(reads.out)


def _coordinates(grid: TokenGrid, places: Tensor | None) -> Tensor:
    """Coordinates of the tokens, (N, 3), or (B, N, 3) if the condition has positions."""
    indices = grid_coordinates(grid)
    if places is None:
        return indices
    first, step = (places.double() if places.device.type == "cpu" else places.float()).unbind(1)  # each (B, 3)
    return first[:, None] + indices.to(first) * step[:, None]


def _waves(grid: TokenGrid, places: Tensor | None, count: int) -> Tensor | None:
    """Fourier features of each token's time and of its position in its frame: (N or B, N, 6 count)."""
    if not count:
        return None
    coordinates = _coordinates(grid, places)
    sides = torch.tensor([grid.rows, grid.columns], dtype=torch.float64)
    inside = (grid_coordinates(grid)[:, 1:] + 0.5) / sides  # (N, 2)
    when = coordinates[..., :1].to(inside.device) / FOURIER_SPAN
    where = torch.cat([when, inside.expand(*when.shape[:-1], 2)], -1)
    angles = math.pi * where[..., None] * torch.arange(1, count + 1, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2).float()
