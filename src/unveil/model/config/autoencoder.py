"""Recipes of autoencoders: the codec, what its training minimises, and how it is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from unveil.autoencoders import AutoencoderKL, AutoencoderKLConfig, VQModel, VQModelConfig
from unveil.errors import RecipeError, ShapeError
from unveil.model.config.base import Section
from unveil.model.config.latent_autoencoder import CODECS, LearnedSection, codec_config
from unveil.model.config.train import TrainConfig
from unveil.nn.discriminator import DiscriminatorConfig, PatchDiscriminator

PUBLISHED_KL = 1e-6  # weight of the divergence in latent diffusion
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]


class PerceptualSection(Section):
    """A frozen network that compares pictures.

    Attributes:
        network: `fashion` or `digits`, the shipped classifiers; the card of a classifier, or its folder; or `lpips`.
        weights: of lpips, files with torchvision's VGG16 or AlexNet and the linear heads, or one with both.
        weight: of its distance beside the error of the pixels.
        frames: of each clip that it looks at in a step of training, at a random place; None: all.
    """

    network: str = "lpips"
    weights: tuple[str, ...] = ()
    weight: float = Field(default=1.0, gt=0)
    frames: Positive | None = None


class DiscriminatorSection(Section):
    """A patch discriminator.

    Attributes:
        kind: of its loss.
        weight: of what the decoder gets from it, once both gradients are of one length.
        start: the step from which on it is trained and counts.
        width: see `nn.discriminator.DiscriminatorConfig`; layers likewise.
    """

    kind: Literal["hinge", "vanilla"] = "hinge"
    weight: float = Field(default=0.5, gt=0)
    start: int = Field(default=0, ge=0)
    width: Positive = 64
    layers: Positive = 3

    def build(self, shape: Sequence[int]) -> PatchDiscriminator:
        """The discriminator of pictures (C, H, W), or of clips (C, T, H, W)."""
        return PatchDiscriminator(DiscriminatorConfig(self.width, self.layers, len(shape) - 1), shape[0])


class LengthsSection(Section):
    """How long the clips are that training cuts out of those of the data; a step has one length.

    Attributes:
        pictures: the share of steps with single frames.
        shortest: of the others, whose lengths of 1 + a multiple of the codec's `time` frames are equally often. None is
            the shortest that is no picture.
    """

    pictures: float = Field(default=0.2, ge=0, le=1)
    shortest: Positive | None = None


class AutoencoderLossSection(Section):
    """What training minimises, as a mean over the values of a picture.

    Attributes:
        distance: of pixels.
        perceptual: beside it.
        discriminator: beside both.
        kl_weight: weight of the divergence of a kl codec, summed over a picture's latents, over the picture's values;
            None: 1e-6, as published.
        codebook_weight: weight of a vq codec's own loss; None: 1.
        latent_noise: deviation of noise that is added to the latents, in units of the batch's own deviation.
        logvar_init: where the learned scale of the error begins; None: the scale is 1.
    """

    distance: Literal["l1", "l2"] = "l1"
    perceptual: PerceptualSection | None = None
    discriminator: DiscriminatorSection | None = None
    kl_weight: Weight | None = None
    codebook_weight: Weight | None = None
    latent_noise: Weight = 0.0
    logvar_init: float | None = None


class ReconstructionConfig(Section):
    """What an autoencoder is judged by, on held-out pictures.

    Attributes:
        pictures: held-out ones, spread evenly; None: all.
        features: network of the Frechet distance; "auto" is the shipped one of the data, else none.
        perceptual: network of the perceptual distance; None: that of the loss, else the shipped one of the data.
    """

    pictures: Annotated[int, Field(ge=4)] | None = None
    features: Literal["auto", "digits", "fashion", "inception", "pixels"] = "auto"
    perceptual: PerceptualSection | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)


class AutoencoderConfig(Section):
    """An autoencoder: what `model.yaml` of a saved one holds.

    Attributes:
        shape: of one picture, (C, H, W), or clip, (C, T, H, W).
    """

    former: ClassVar[str] = "recipe"
    kind: Literal["autoencoder"] = "autoencoder"
    shape: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=4)]
    codec: LearnedSection

    @model_validator(mode="after")
    def _pictures_fit(self) -> AutoencoderConfig:
        try:
            self.build_config().latent_shape(self.shape)
        except (RecipeError, ShapeError) as problem:
            raise RecipeError(f"codec: {problem}") from problem
        return self

    def build_config(self) -> AutoencoderKLConfig | VQModelConfig:
        """The codec's own configuration, with what follows from the pictures."""
        return codec_config(self.codec, self.shape)

    def build(self) -> AutoencoderKL | VQModel:
        """The codec, freshly initialised."""
        return CODECS[self.codec.kind](self.build_config())  # pyright: ignore[reportArgumentType]


def check_lengths(codec: Any, frames: int, lengths: LengthsSection) -> None:
    """Raises RecipeError where clips of so many frames cannot be cut to such lengths."""
    if codec.kind != "video":
        raise RecipeError(
            "lengths: this codec is of pictures, which have none; leave it away, or take codec kind video"
        )
    shortest = lengths.shortest
    if shortest is not None and ((shortest - 1) % codec.time or shortest > frames):
        near = 1 + min(round((shortest - 1) / codec.time), (frames - 1) // codec.time) * codec.time
        raise RecipeError(
            f"lengths.shortest = {shortest}: must be 1 + a multiple of {codec.time}, at most the {frames} frames of "
            f"the clips; nearest {near}"
        )


def check_loss(shape: Sequence[int], codec: Any, loss: AutoencoderLossSection, train: TrainConfig) -> None:
    """Raises RecipeError where a loss does not fit its codec, pictures or number of steps."""
    if codec.kind == "vq" and loss.kl_weight is not None:
        raise RecipeError(
            "loss.kl_weight: a vq codec has no distribution of latents; leave it away, or take loss.codebook_weight"
        )
    if codec.kind != "vq" and loss.codebook_weight is not None:
        raise RecipeError(
            f"loss.codebook_weight: a {codec.kind} codec has no codebook; leave it away, or take loss.kl_weight"
        )
    if (critic := loss.discriminator) is None:
        return
    if critic.start >= train.steps:
        raise RecipeError(
            f"loss.discriminator.start = {critic.start}: must lie below train.steps = {train.steps}, or the "
            "discriminator never counts; lower it, or leave the discriminator away"
        )
    config = DiscriminatorConfig(critic.width, critic.layers)
    if config.side(min(shape[-2:])) < 1:
        raise RecipeError(
            f"loss.discriminator.layers = {critic.layers}: shrinks pictures of {min(shape[-2:])} pixels to nothing; "
            "use fewer"
        )
