"""Images as a condition: concatenated to x in the network, or as the control image of a ControlNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError
from unveil.io.images import to_unit
from unveil.types import Condition

FIRST_FRAME = "image"  # key of the condition of networks that continue an image


class ConcatCondition(nn.Module):
    """An image, unchanged except for its range, as channels concatenated to x; "none" is zeros, mid-grey.

    Args:
        channels: Number of channels of the image.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        size: Height and width of "none"; (1, 1) is expanded to any size.
        key: Key of the item that holds the image.
    """

    def __init__(
        self, channels: int, drop: float = 0.0, *, size: tuple[int, int] = (1, 1), key: str = "context"
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise RecipeError(f"drop = {drop}: must lie in [0, 1)")
        self.channels, self.drop, self.key = channels, drop, key
        self.none: Tensor
        self.register_buffer("none", torch.zeros(1, channels, *size))

    def encode(self, raw: Tensor | Sequence[Tensor]) -> Condition:
        """Condition of images (B, C, H, W), uint8 or in [-1, 1], or of a list of B images of one size.

        Raises:
            ShapeError: The number of channels or axes is wrong, or the images are integers other than uint8.
        """
        return Condition(concat=images_of(raw, self.channels, self.key).to(self.none.device))

    def null(self, batch: int) -> Condition:
        """Null condition: zeros."""
        return Condition(concat=self.none.expand(batch, -1, -1, -1))


class ControlImageCondition(nn.Module):
    """The control image of a ControlNet, in [0, 1] as for published ones; "none" is black.

    Both sides of guidance have the same control image, so guidance does not move away from it.

    Args:
        channels: Number of channels of the image.
        drop: Share of the training samples that get "none" instead, in [0, 1).
        key: Key of the item that holds the image.
    """

    stays = True

    def __init__(self, channels: int = 3, drop: float = 0.0, *, key: str = "hint") -> None:
        super().__init__()
        if not 0 <= drop < 1:
            raise RecipeError(f"drop = {drop}: must lie in [0, 1)")
        self.channels, self.drop, self.key = channels, drop, key
        self.none: Tensor
        self.register_buffer("none", torch.zeros(1, channels, 1, 1), persistent=False)

    def encode(self, raw: Tensor | Sequence[Tensor]) -> Condition:
        """Condition of images (B, C, H, W), uint8 or in [-1, 1] as everywhere, or of a list of B images of one size.

        Raises:
            ShapeError: The number of channels or axes is wrong, or the images are integers other than uint8.
        """
        images = images_of(raw, self.channels, self.key).to(self.none.device)
        return Condition(control_image=(images + 1) / 2)

    def null(self, batch: int) -> Condition:
        """Null condition: one black pixel, which is expanded to any size.

        Raises:
            RecipeError: The model has no "none", because control images were never dropped in training.
        """
        if not self.drop:
            raise RecipeError(f"{self.key}: missing; give an image for this control, or take the control away")
        return Condition(control_image=self.none.expand(batch, -1, -1, -1))


def images_of(raw: Tensor | Sequence[Tensor], channels: int, key: str) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] from such images or from uint8 ones.

    Raises:
        ShapeError: The number of channels or axes is wrong, or the images are integers other than uint8.
    """
    images = raw if isinstance(raw, Tensor) else torch.stack(list(raw))
    if images.ndim != 4 or images.shape[1] != channels:
        raise ShapeError(f"{key} {tuple(images.shape)}: must be (B, {channels}, H, W)")
    if images.dtype == torch.uint8:
        return to_unit(images)
    if not images.is_floating_point():
        raise ShapeError(f"{key} {images.dtype}: must be uint8 in [0, 255] or floating point in [-1, 1]")
    return images
