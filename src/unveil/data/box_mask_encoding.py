"""Boxes and masks as states that a diffusion model can noise: float tensors with values in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from unveil.errors import ShapeError

PRESENT = 4  # the column of a boxes state that marks rows with a box


def boxes_to_state(boxes: Tensor, slots: int) -> Tensor:
    """Boxes (N, 4) in [0, 1] as (slots, 5): the four numbers in [-1, 1], then 1 for a box and -1 for none.

    Rows without a box hold zeros before the -1.

    Raises:
        ShapeError: More boxes than slots, or rows that are not four numbers.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ShapeError(f"boxes {tuple(boxes.shape)}: must be (N, 4): centre x, centre y, width, height in [0, 1]")
    if len(boxes) > slots:
        raise ShapeError(f"{len(boxes)} boxes for {slots} slots: raise slots, or leave boxes out")
    state = torch.zeros(slots, 5)
    state[:, PRESENT] = -1
    state[: len(boxes), :4] = boxes.to(torch.float32) * 2 - 1
    state[: len(boxes), PRESENT] = 1
    return state


def state_to_boxes(state: Tensor, threshold: float = 0.0) -> list[Tensor]:
    """The boxes of each state of a batch (B, slots, 5): a list of (N, 4) in [0, 1].

    Args:
        state: A sample; values outside [-1, 1] are cut off.
        threshold: A row counts as a box when its fifth number is above.
    """
    if state.ndim != 3 or state.shape[2] != 5:
        raise ShapeError(f"state {tuple(state.shape)}: must be (B, slots, 5); add an axis to a single one")
    return [((rows[rows[:, PRESENT] > threshold, :4] + 1) / 2).clamp(0, 1) for rows in state]


def mask_to_state(mask: Tensor, classes: int) -> Tensor:
    """A class map (..., H, W) as (..., classes, H, W): 1 in the channel of the class, -1 in the others.

    Raises:
        ShapeError: A class outside 0 to classes - 1.
    """
    if mask.numel() and not 0 <= int(mask.min()) <= int(mask.max()) < classes:
        raise ShapeError(f"mask with classes {int(mask.min())} to {int(mask.max())}: allowed are 0 to {classes - 1}")
    numbers = torch.arange(classes, device=mask.device)[:, None, None]
    return (mask.unsqueeze(-3) == numbers).to(torch.float32) * 2 - 1


def state_to_mask(state: Tensor) -> Tensor:
    """The class map (..., H, W), uint8: the strongest channel of (..., classes, H, W)."""
    return state.argmax(dim=-3).to(torch.uint8)
