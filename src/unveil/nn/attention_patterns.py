"""Attention patterns of videos: full, alternating between frames and positions, or in windows.

A pattern assigns a label to each token of a video. Tokens attend to the tokens of the same label; with `causal` not to
those of later frames. Groups of the same size are computed in one batched product. So a sparse pattern costs
only what it computes, and no mask of all tokens by all tokens is created.

Letters of shapes: R rows, N tokens of a row, H heads, D the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from unveil.errors import ShapeError
from unveil.nn.attention import Packing, scaled_dot_product_attention
from unveil.nn.embeddings import grid_coordinates

Pattern = Literal["full", "factorised", "windowed"]


class TokenGrid(NamedTuple):
    """Numbers of tokens of a video along time, height and width; an image has one frame."""

    frames: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.frames * self.rows * self.columns


def attention_groups(grid: TokenGrid, pattern: Pattern, number: int, window: tuple[int, int, int]) -> Tensor:
    """Label (N,) of each token in the block `number`, frame by frame and row by row.

    Args:
        pattern: `full`: one label for all tokens. `factorised`: one label per frame in even blocks, one per position in
            odd ones (Latte's variant 1). `windowed`: one label per box of tokens; boxes are shifted by half a box in
            odd blocks, without wrapping around.
        window: Frames, rows and columns of a box.

    Source: Ma et al. 2024 (arXiv:2401.03048), section 3.1; windows: Liu et al. 2021 (arXiv:2103.14030).
    """
    places = grid_coordinates(grid).long()  # (N, 3)
    if pattern == "full":
        return torch.zeros(grid.tokens, dtype=torch.int64)
    if pattern == "factorised":
        return places[:, 0] if number % 2 == 0 else places[:, 1] * grid.columns + places[:, 2]
    size = torch.tensor(window)
    boxes = (places + (size // 2 if number % 2 else 0)) // size  # (N, 3)
    most = boxes.amax(0) + 1
    return (boxes[:, 0] * most[1] + boxes[:, 1]) * most[2] + boxes[:, 2]


def attention_mask(
    grid: TokenGrid, pattern: Pattern, number: int, *, window: tuple[int, int, int], causal: bool = False
) -> Tensor:
    """Boolean attention mask (N, N) of one video, True where the first token may attend to the second."""
    label = attention_groups(grid, pattern, number, window)
    seen = label[:, None] == label[None]
    if not causal:
        return seen
    frame = grid_coordinates(grid)[:, 0]
    return seen & (frame[:, None] >= frame[None])


class AttentionGroups:
    """Groups of tokens that attend to each other in one block; groups of one size are computed in one product.

    Args:
        packing: Position of each video's tokens in the rows.
        grids: Token grids of the videos, in the packing's order.
        pattern, number, window, causal: Settings of the pattern, as in `attention_mask`.
    """

    def __init__(
        self,
        packing: Packing,
        grids: Sequence[TokenGrid],
        pattern: Pattern,
        number: int,
        *,
        window: tuple[int, int, int],
        causal: bool = False,
    ) -> None:
        kinds: dict[tuple[int, tuple[int, ...]], list[Tensor]] = {}  # size and frames -> places of each group's tokens
        of_grid = {grid: _members(grid, pattern, number, window) for grid in set(grids)}
        starts = torch.tensor([0, *packing.lengths]).cumsum(0).tolist()
        for grid, start in zip(grids, starts, strict=False):
            for members, frames in of_grid[grid]:
                key = (len(members), frames if causal else ())
                kinds.setdefault(key, []).append(packing.index[start + members])
        self.kinds: list[tuple[Tensor, Tensor | None]] = []
        for (_, frames), indices in kinds.items():
            frame = torch.tensor(frames)
            mask = frame[:, None] >= frame[None] if causal and len(set(frames)) > 1 else None  # (n, n)
            self.kinds.append((torch.stack(indices), mask))  # (groups, n)
        self.shape = packing.shape

    def to(self, device: torch.device | str) -> AttentionGroups:
        """Move the index tables to the device of the tokens once, so that calls do not copy them; return self."""
        self.kinds = [(index.to(device), None if mask is None else mask.to(device)) for index, mask in self.kinds]
        return self

    @property
    def mask(self) -> Tensor:
        """Boolean attention mask (R, 1, N, N), True where a token may attend to another."""
        rows, count = self.shape
        device = self.kinds[0][0].device
        allowed = torch.zeros(rows * count, rows * count, dtype=torch.bool, device=device)
        for index, mask in self.kinds:
            each = torch.ones(index.shape[1:] * 2, dtype=torch.bool, device=device) if mask is None else mask
            allowed[index[:, :, None], index[:, None]] = each
        rows_apart = allowed.unflatten(1, self.shape).unflatten(0, self.shape)  # (R, N, R, N)
        return rows_apart.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[:, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
        """Scaled dot-product attention of each group separately: (R, H, N, D); 0 for padding.

        Raises:
            ShapeError: `causal` is given; it is set when the groups are created.
        """
        if causal:
            raise ShapeError("causal: is set when the groups are made, where frames are known")
        tokens = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]  # (R N, H, D)
        output = torch.zeros_like(tokens[0])
        for index, mask in self.kinds:
            index = index.to(query.device)
            grouped = [x[index].transpose(1, 2) for x in tokens]  # (groups, H, n, D)
            gathered = scaled_dot_product_attention(*grouped, mask=None if mask is None else mask.to(query.device))
            output = output.index_copy(0, index.flatten(), gathered.transpose(1, 2).flatten(0, 1).to(output.dtype))
        return output.unflatten(0, self.shape).transpose(1, 2)


def _members(
    grid: TokenGrid, pattern: Pattern, number: int, window: tuple[int, int, int]
) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Tokens of each label, in the grid's order, and the frame of each token."""
    label = attention_groups(grid, pattern, number, window)
    order = label.argsort(stable=True)
    frame = order // (grid.rows * grid.columns)
    counts = torch.unique(label, return_counts=True)[1].tolist()
    return [
        (members, tuple(frames.tolist()))
        for members, frames in zip(order.split(counts), frame.split(counts), strict=True)
    ]
