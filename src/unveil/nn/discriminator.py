"""Patch discriminator: a small convolutional network that distinguishes patches of real and of reconstructed images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from unveil.errors import RecipeError, ShapeError

_WIDEST = 8  # times the first width
# By the number of axes: convolution, normalisation, kernel and padding; time has a kernel that leaves its length
KINDS: dict[int, tuple[type[nn.Conv2d] | type[nn.Conv3d], type[nn.Module], Any, Any]] = {
    2: (nn.Conv2d, nn.BatchNorm2d, 4, 1),
    3: (nn.Conv3d, nn.BatchNorm3d, (3, 4, 4), (1, 1, 1)),
}


@dataclass(frozen=True)
class DiscriminatorConfig:
    """PatchGAN configuration: 4 x 4 convolutions, of which all but the last two halve the image.

    Attributes:
        width: Channels after the first convolution; each later one doubles them, up to eight times.
        layers: Number of convolutions that halve; 3 gives each output a receptive field of 70 x 70 pixels.
        axes: Number of axes after the channels. 2: images. 3: videos; kernels of 3 frames also halve the time, so that
            a video of one frame has an output.

    Raises:
        RecipeError: `width` or `layers` is below 1, or `axes` is neither 2 nor 3.

    Source: Isola et al. 2017, appendix 6.1.2 (arXiv:1611.07004).
    """

    width: int = 64
    layers: int = 3
    axes: int = 2

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1:
            raise RecipeError(f"width = {self.width}, layers = {self.layers}: a discriminator has at least 1 of either")
        if self.axes not in KINDS:
            raise RecipeError(f"axes = {self.axes}: must be 2 (images) or 3 (clips)")

    def side(self, size: int) -> int:
        """Number of outputs along a side of images with `size` pixels; below 1 if the image is too small."""
        for _ in range(self.layers):
            size //= 2
        return size - 2  # each of the last two takes one away


class PatchDiscriminator(nn.Module):
    """Discriminator with one logit per patch, above 0 for real patches.

    Parameter names and initial values are those of the published checkpoints of VQGAN and latent diffusion
    (`loss.discriminator.main.0.weight` and on).

    Source: Isola et al. 2017, appendix 6.1.2 (arXiv:1611.07004); normal(0, 0.02) weights: section 6.2.
    """

    def __init__(self, config: DiscriminatorConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        width = config.width
        conv, norm, kernel, padding = KINDS[config.axes]
        layers: list[nn.Module] = [conv(channels, width, kernel, stride=2, padding=padding), nn.LeakyReLU(0.2)]
        channels_in = width
        for number in range(1, config.layers + 1):
            wider = width * min(2**number, _WIDEST)
            stride = 2 if number < config.layers else 1
            layers += [conv(channels_in, wider, kernel, stride=stride, padding=padding, bias=False), norm(wider)]
            layers.append(nn.LeakyReLU(0.2))
            channels_in = wider
        layers.append(conv(channels_in, 1, kernel, padding=padding))
        self.main = nn.Sequential(*layers)
        self.apply(_begin)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, channels, H, W), or (B, 1, t, h, w) of videos (B, channels, T, H, W).

        Raises:
            ShapeError: The number of channels is wrong, or the image is too small for the convolutions.
        """
        side = min(images.shape[-2:], default=0)
        if images.ndim != 2 + self.config.axes or images.shape[1] != self.channels or self.config.side(side) < 1:
            axes = "H, W" if self.config.axes == 2 else "T, H, W"
            raise ShapeError(
                f"images {tuple(images.shape)}: this discriminator reads (B, {self.channels}, {axes}) of at least "
                f"{3 * 2**self.config.layers} pixels a side; use fewer layers for smaller ones"
            )
        return self.main(images)


def _begin(layer: nn.Module) -> None:
    """Initialise a layer: convolutions from normal(0, 0.02), scales of normalisations from normal(1, 0.02)."""
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)
