"""Video models as image models: an image is a video of one frame."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unveil.autoencoders import Identity, LatentAutoencoder
from unveil.core.denoiser import Denoiser
from unveil.model import Model
from unveil.types import Condition


def as_image_model(model: Model) -> Model:
    """Return the image model (C, H, W) of a video model (C, T, H, W); it shares the weights."""
    other = model.resized(model.shape[-2:])
    inner = model.denoiser
    other.denoiser = Denoiser(
        SingleFrameNetwork(inner.network),
        inner.process,
        prediction=inner.prediction,
        learns_variance=inner.learns_variance,
    )
    other.autoencoder = (
        model.autoencoder if isinstance(model.autoencoder, Identity) else SingleFrameAutoencoder(model.autoencoder)
    )
    other.shape = (model.shape[0], *model.shape[2:])
    return other.train(model.training)


class SingleFrameNetwork(nn.Module):
    """A video network that takes images.

    Attributes:
        multiple: Number that height and width must be multiples of.
        takes_token_levels: True if noise levels may differ between the parts of an image.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.multiple = int(getattr(network, "multiple", 1))
        self.takes_token_levels = bool(getattr(network, "takes_token_levels", False))

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the output for images (B, C, H, W); t (B,), or broadcastable to them."""
        return self.network(x[:, :, None], t if t.ndim <= 1 else t[:, :, None], condition)[:, :, 0]


class SingleFrameAutoencoder(nn.Module):
    """A video autoencoder that takes images."""

    def __init__(self, codec: LatentAutoencoder) -> None:
        super().__init__()
        self.codec: Any = codec

    @property
    def stochastic(self) -> bool:
        """True if encoding samples latents."""
        return bool(self.codec.stochastic)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return latents (B, Z, h, w) of images (B, C, H, W)."""
        frames = pixels[:, :, None]
        latents = self.codec.encode(frames) if noise is None else self.codec.encode(frames, noise[:, :, None])
        return latents[:, :, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images of latents."""
        return self.codec.decode(latents[:, :, None])[:, :, 0]

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents of an image (C, H, W)."""
        channels, _, *sides = self.codec.latent_shape((shape[0], 1, *shape[1:]))
        return channels, *sides
