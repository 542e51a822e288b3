"""ControlNet: a copy of a U-Net's first half that encodes a control image and outputs residuals for the U-Net's stack.

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
    """Widths of a hint network for a control image that is `factor` times the size of the first convolution's output.

    Raises:
        RecipeError: `factor` is not a power of two, so repeated halving cannot reach the size.
    """
    levels = factor.bit_length()
    if factor < 1 or factor != 2 ** (levels - 1):
        raise RecipeError(f"a hint of {factor} times the size: hint networks halve it, so it must be a power of two")
    return (*HINT_WIDTHS[:levels], *HINT_WIDTHS[-1:] * (levels - len(HINT_WIDTHS)))


class HintNetwork(nn.Module):
    """Convolutions that map a control image to the size and width of the first convolution's output.

    Args:
        channels: Number of channels of the control image.
        widths: Widths of its levels, finest first; each level has half the size of the one before.
        out: Width of the output.
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
        """Map a control image (B, channels, H, W) to (B, out, H / f, W / f), where f is 2**(levels - 1)."""
        *inside, last = self.layers
        for layer in inside:
            hint = F.silu(layer(hint))
        return last(hint)


class ControlNet(UNetEncoder):
    """ControlNet of a U-Net, from (x, t, condition with a control image) to `Condition.residuals`.

    A new ControlNet outputs zeros. Its other weights are random; `from_unet` copies them from a U-Net, as in the paper.

    Args:
        config: Configuration of the U-Net.
        hint_channels: Number of channels of the control image.
        hint_widths: Widths of the levels of the hint network, which has to halve the control image at least to the size
            of the patches of x.

    Raises:
        RecipeError: The patch of x is not a power of two, or is larger than the factor by which the hint network
            reduces.
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
        """ControlNet that begins as a copy of a U-Net's first half; at first it does not change the U-Net's output."""
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
        """Residuals of each entry of the U-Net's stack, and those of its middle last.

        Args:
            x, t: Noisy samples and time inputs of the U-Net.
            condition: Condition of the U-Net with a control image (B, hint_channels, H * factor, W * factor) in [0, 1].
            features: Result of `control_features` in an earlier call; None: computed here.

        Raises:
            ShapeError: The control image does not fit, or an input does not fit the U-Net.
        """
        if features is None:
            if condition.control_image is None:
                raise ShapeError("condition.control_image: missing; a ControlNet reads an image")
            features = self.control_features(condition.control_image, x)
        h, stack, _, _ = self.encode(x, t, condition, features)
        return (*(zero(output) for zero, output in zip(self.zero, stack, strict=True)), self.zero_middle(h))

    def control_features(self, hint: Tensor, x: Tensor) -> Tensor:
        """Output of the hint network for x: (B, C, H / patch, W / patch). It does not depend on the noise level.

        A control image of one pixel is expanded to the size of x.

        Raises:
            ShapeError: The number of channels or rows is wrong, or the size is not `factor` times that of x.
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
