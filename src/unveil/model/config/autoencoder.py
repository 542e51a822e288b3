"""Sections of autoencoder recipes: the autoencoder, its loss and its evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, VQModel, VQModelConfig
from unveil.errors import RecipeError, ShapeError
from unveil.model.config.model import AUTOENCODERS, LearnedSection, autoencoder_config
from unveil.model.config.sections import Section
from unveil.model.config.train import TrainConfig
from unveil.nn.discriminator import DiscriminatorConfig, PatchDiscriminator

PUBLISHED_KL = 1e-6  # weight of the divergence in latent diffusion
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class PerceptualSection(Section):
    """A frozen network that compares images by its features.

    Attributes:
        network: `fashion` or `digits`, the bundled classifiers; the card of a classifier, or its folder; or `lpips`.
        weights: Files for lpips: torchvision's VGG16 or AlexNet and the linear heads, or one file with both.
        weight: Weight of the perceptual distance, beside the error of the pixels.
        frames: Number of frames of each video that are compared in a training step, from a random position; None: all.
    """

    network: str = "lpips"
    weights: tuple[str, ...] = ()
    weight: float = Field(default=1.0, gt=0)
    frames: Positive | None = None


class DiscriminatorSection(Section):
    """A patch discriminator.

    Attributes:
        kind: Loss of the discriminator.
        weight: Weight of its loss for the decoder, after the gradients of both losses are scaled to equal norm.
        start: First step in which the discriminator is trained and its loss counts.
        width, layers: Number of channels and of layers, see `nn.discriminator.DiscriminatorConfig`.
    """

    kind: Literal["hinge", "vanilla"] = "hinge"
    weight: float = Field(default=0.5, gt=0)
    start: int = Field(default=0, ge=0)
    width: Positive = 64
    layers: Positive = 3

    def build(self, shape: Sequence[int]) -> PatchDiscriminator:
        """Build the discriminator for images (C, H, W) or videos (C, T, H, W)."""
        return PatchDiscriminator(DiscriminatorConfig(self.width, self.layers, len(shape) - 1), shape[0])


class ClipLengthSection(Section):
    """Lengths of the clips that training cuts out of the videos; all clips of a step have one length.

    Attributes:
        image_prob: Fraction of the steps with single frames.
        min_frames: Shortest length of the other steps; lengths of 1 + a multiple of the autoencoder's `time` frames
            are equally frequent. None: the shortest length above one frame.
    """

    image_prob: float = Field(default=0.2, ge=0, le=1)
    min_frames: Positive | None = None


class AutoencoderLossSection(Section):
    """Loss of an autoencoder, as a mean over the values of an image.

    Attributes:
        distance: Distance of the pixels.
        perceptual: Perceptual distance, added to that of the pixels.
        discriminator: Adversarial loss, added to both.
        kl_weight: Weight of the KL divergence of a kl autoencoder, which is summed over the latents of an image and
            divided by the number of its values; None: 1e-6, as published.
        codebook_weight: Weight of the codebook loss of a vq autoencoder; None: 1.
        latent_noise: Standard deviation of noise that is added to the latents, relative to that of the batch.
        logvar_init: Initial value of the learned log variance of the error; None: the variance is 1.
    """

    distance: Literal["l1", "l2"] = "l1"
    perceptual: PerceptualSection | None = None
    discriminator: DiscriminatorSection | None = None
    kl_weight: Weight | None = None
    codebook_weight: Weight | None = None
    latent_noise: Weight = 0.0
    logvar_init: float | None = None


class ReconstructionConfig(Section):
    """Evaluation of an autoencoder on held-out images.

    Attributes:
        num_images: Number of held-out images, evenly spaced; None: all.
        features: Feature network of the Frechet distance; "auto": the bundled one of the data, or none.
        perceptual: Network of the perceptual distance; None: that of the loss, or the bundled one of the data.
    """

    num_images: Annotated[int, Field(ge=4)] | None = None
    features: Literal["auto", "digits", "fashion", "inception", "pixels"] = "auto"
    perceptual: PerceptualSection | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)


class AutoencoderModelConfig(Section):
    """An autoencoder: the content of `model.yaml` in its folder.

    Attributes:
        shape: Shape of one image, (C, H, W), or of one video, (C, T, H, W).
    """

    former: ClassVar[str] = "recipe"
    kind: Literal["autoencoder"] = "autoencoder"
    shape: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=4)]
    autoencoder: LearnedSection

    @model_validator(mode="after")
    def _images_fit(self) -> AutoencoderModelConfig:
        try:
            self.build_config().latent_shape(self.shape)
        except (RecipeError, ShapeError) as problem:
            raise RecipeError(f"autoencoder: {problem}") from problem
        return self

    def build_config(self) -> AutoencoderKLConfig | VQModelConfig:
        """Return the configuration of the autoencoder, with the channels of the data."""
        return autoencoder_config(self.autoencoder, self.shape)

    def build(self) -> AutoencoderKL | VQModel:
        """Build the autoencoder, freshly initialised."""
        return AUTOENCODERS[self.autoencoder.kind](self.build_config())  # pyright: ignore[reportArgumentType]


def check_lengths(autoencoder: Any, frames: int, lengths: ClipLengthSection) -> None:
    """Raise RecipeError if videos of `frames` frames cannot be cut to these lengths."""
    if autoencoder.kind != "video":
        raise RecipeError("lengths: this autoencoder is for images; leave lengths out, or use autoencoder kind video")
    shortest = lengths.min_frames
    if shortest is not None and ((shortest - 1) % autoencoder.time or shortest > frames):
        near = 1 + min(round((shortest - 1) / autoencoder.time), (frames - 1) // autoencoder.time) * autoencoder.time
        raise RecipeError(
            f"lengths.min_frames = {shortest}: must be 1 + a multiple of {autoencoder.time}, at most the {frames} "
            f"frames of the videos; nearest {near}"
        )


def check_loss(shape: Sequence[int], autoencoder: Any, loss: AutoencoderLossSection, train: TrainConfig) -> None:
    """Raise RecipeError if a loss does not fit its autoencoder, images or number of steps."""
    if autoencoder.kind == "vq" and loss.kl_weight is not None:
        raise RecipeError(
            "loss.kl_weight: a vq autoencoder has no distribution of latents; leave it out, or use loss.codebook_weight"
        )
    if autoencoder.kind != "vq" and loss.codebook_weight is not None:
        raise RecipeError(
            f"loss.codebook_weight: a {autoencoder.kind} autoencoder has no codebook; leave it out, or use "
            "loss.kl_weight"
        )
    if (critic := loss.discriminator) is None:
        return
    if critic.start >= train.steps:
        raise RecipeError(
            f"loss.discriminator.start = {critic.start}: must be below train.steps = {train.steps}, or the "
            "discriminator never counts; lower it, or leave the discriminator out"
        )
    config = DiscriminatorConfig(critic.width, critic.layers)
    if config.side(min(shape[-2:])) < 1:
        raise RecipeError(
            f"loss.discriminator.layers = {critic.layers}: shrinks images of {min(shape[-2:])} pixels to nothing; "
            "use fewer"
        )
