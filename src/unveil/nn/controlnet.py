"""ControlNet: a copy of a U-Net's first half that reads an image and adds to what the U-Net keeps.

    hint -> eight convolutions -> + -> [blocks (+ attention), downsample] per level -> middle
    x    -> enter ----------------^        each result, and the middle's -> a convolution that starts as zero

Source: Zhang et al. 2023, section 3 (arXiv:2302.05543).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from unveil.errors import RecipeError, ShapeError
from unveil.nn.layers import zeroed
from unveil.nn.unet import UNet, UNetConfig, UNetEncoder
from unveil.types import Condition

HINT_WIDTHS = (16, 32, 96, 256)  # of the published ControlNets: three halvings, as many as of their latents


def hint_widths(factor: int) -> tuple[int, ...]:
    """Widths of a hint network for a hint that is `factor` times the size of what the first convolution makes of x.

    Raises:
        RecipeError: No power of two, which halvings could not reach.
    """
    levels = factor.bit_length()
    if factor < 1 or factor != 2 ** (levels - 1):
        raise RecipeError(f"a hint of {factor} times the size: hint networks halve it, so it must be a power of two")
    return (*HINT_WIDTHS[:levels], *HINT_WIDTHS[-1:] * (levels - len(HINT_WIDTHS)))


class HintNetwork(nn.Module):
    """Convolutions that bring a hint to the size and width of what the first convolution makes of x.

    Args:
        channels: Number of channels of the hint.
        widths: Widths of its levels, the finest first; each is half the size of the one before.
        out: Width of the result.
    """

    def __init__(self, channels: int, widths: Sequence[int], out: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for width, following in pairwise(widths):
            layers.append(nn.Conv2d(width, width, 3, padding=1))
            layers.append(nn.Conv2d(width, following, 3, padding=1, stride=2))
        layers.append(zeroed(nn.Conv2d(widths[-1], out, 3, padding=1)))
        self.layers = nn.ModuleList(layers)

    def forward(self, hint: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, out, H / f, W / f)."""
        *inside, last = self.layers
        for layer in inside:
            hint = F.silu(layer(hint))
        return last(hint)


class ControlNet(UNetEncoder):
    """Residuals of a control image for a U-Net: (x, t, condition) to `Condition.residuals`.

    A new one adds zeros. Its own weights are drawn; `of` takes them from a U-Net, as the paper does.

    Args:
        config: Configuration of the U-Net.
        hint_channels: Number of channels of the control image.
        hint_widths: Hint widths of the levels of its hint network, which has to halve at least as often as patches of x
            do.

    Raises:
        RecipeError: Patches of x that are not a power of two, or larger than what the hint network halves.
    """

    def __init__(self, config: UNetConfig, *, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS) -> None:
        halved = 2 ** (len(hint_widths) - 1)
        if halved % config.patch:
            raise RecipeError(
                f"hint_widths of {len(hint_widths)} levels bring a hint to 1 / {halved} of its size; patches of "
                f"{config.patch} need a multiple of {config.patch}: give more levels, or a patch that is a power of two"
            )
        super().__init__(config)
        self.hint_channels, self.hint_widths = hint_channels, tuple(hint_widths)
        self.hint = HintNetwork(hint_channels, self.hint_widths, self.stack_widths[0])
        self.zero = nn.ModuleList(zeroed(nn.Conv2d(width, width, 1)) for width in self.stack_widths)
        self.zero_middle = zeroed(nn.Conv2d(config.widths[-1], config.widths[-1], 1))

    @classmethod
    def from_unet(cls, unet: UNet, *, hint_channels: int = 3, hint_widths: Sequence[int] = HINT_WIDTHS) -> ControlNet:
        """A ControlNet that begins as a copy of this U-Net's first half; the U-Net with it is what it was."""
        new = cls(unet.config, hint_channels=hint_channels, hint_widths=hint_widths)
        device = next(unet.parameters()).device
        names = new.state_dict()
        new.load_state_dict({key: value for key, value in unet.state_dict().items() if key in names}, strict=False)
        return new.to(device).train(unet.training)

    @property
    def factor(self) -> int:
        """Factor by which a control image is larger than x."""
        return 2 ** (len(self.hint_widths) - 1) // self.config.patch

    def forward(self, x: Tensor, t: Tensor, condition: Condition, features: Tensor | None = None) -> tuple[Tensor, ...]:
        """One tensor for each place of the U-Net's stack, and that of its middle last.

        Args:
            x, t: Noisy samples and time inputs of the U-Net.
            condition: Condition, as the U-Net's, with a control image (B, hint_channels, H * factor, W * factor) in [0,
                1].
            features: Result of `control_features` in an earlier call; None: computed here.

        Raises:
            ShapeError: A control image that does not fit, or what the U-Net refuses.
        """
        if features is None:
            if condition.control_image is None:
                raise ShapeError("condition.control_image: missing; a ControlNet reads an image")
            features = self.control_features(condition.control_image, x)
        h, stack, _, _ = self.encode(x, t, condition, features)
        return (*(zero(output) for zero, output in zip(self.zero, stack, strict=True)), self.zero_middle(h))

    def control_features(self, hint: Tensor, x: Tensor) -> Tensor:
        """Output of the hint network for an x: (B, C, H / patch, W / patch). It does not depend on the level.

        A hint of one pixel stands for one of any size.

        Raises:
            ShapeError: Another number of channels or rows, or another size than `factor` times that of x.
        """
        size = tuple(side * self.factor for side in x.shape[-2:])
        if hint.shape[-2:] == (1, 1):
            hint = hint.expand(-1, -1, *size)
        wanted = (len(x), self.hint_channels, *size)
        if hint.shape != wanted:
            raise ShapeError(
                f"condition.control_image {tuple(hint.shape)}: must be {wanted}, {self.factor} times the size of x; "
                "resize it"
            )
        return self.hint(hint.to(x))
