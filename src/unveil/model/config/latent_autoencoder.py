"""The section `autoencoder` of a diffusion model: none, an untrained one, or a trained one from a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from unveil.autoencoders import (
    Autoencoder,
    AutoencoderKL,
    AutoencoderKLConfig,
    CodecConfig,
    Identity,
    VideoAutoencoderKL,
    VideoAutoencoderKLConfig,
    VQModel,
    VQModelConfig,
)
from unveil.errors import RecipeError, ShapeError
from unveil.model import migration
from unveil.model.config.base import PartSection, Section, choice, section
from unveil.model.config.parsing import read_yaml, validate

Positive = Annotated[int, Field(ge=1)]
DERIVED = ("in_channels", "out_channels")  # follow from the shape of the data


class IdentitySection(Section):
    """No autoencoder: the network works on pixels."""

    kind: Literal["identity"] = "identity"


class SavedSection(Section):
    """The autoencoder in a folder: a trained or saved autoencoder, or that of a model.

    Attributes:
        path: Folder, or name of a bundled model.
        latents: Shape of the latents of one sample, (C, h, w), or (C, t, h, w) of a video. It is needed if the folder
            may not exist yet, as in a recipe whose autoencoder another recipe trains.
    """

    kind: Literal["saved"] = "saved"
    path: str = Field(min_length=1)
    latents: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=4)] | None = None

    def described(self) -> PartSection | None:
        """Section of the autoencoder in the folder; None if there is no such folder.

        Raises:
            RecipeError: The folder describes no autoencoder.
        """
        bundled = Path(str(resources.files("unveil"))) / "assets" / "models" / self.path
        folder = next((path for path in (Path(self.path), bundled) if path.is_dir()), None)
        if folder is None:
            return None
        for name in ("model.yaml", "recipe.yaml"):
            if (folder / name).is_file():
                raw = migration.migrate(read_yaml((folder / name).read_text("utf-8"), str(folder / name)))
                section = raw.get("autoencoder") if isinstance(raw, dict) else None
                if isinstance(section, dict) and section.get("kind") in AUTOENCODERS:
                    return validate(_AutoencoderField, {"autoencoder": section}, str(folder / name)).autoencoder
        raise RecipeError(f"path = {self.path!r}: describes no autoencoder; train one, or name another folder")


KLSection = section("kl", AutoencoderKLConfig, derived=DERIVED)
VQSection = section("vq", VQModelConfig, derived=DERIVED)
VideoSection = section("video", VideoAutoencoderKLConfig, derived=DERIVED)
AUTOENCODERS: dict[str, type[AutoencoderKL] | type[VQModel]] = {
    "kl": AutoencoderKL,
    "vq": VQModel,
    "video": VideoAutoencoderKL,
}
SECTIONS: dict[type[CodecConfig], type[PartSection]] = {
    AutoencoderKLConfig: KLSection,
    VQModelConfig: VQSection,
    VideoAutoencoderKLConfig: VideoSection,
}
if TYPE_CHECKING:  # made at run time, from the dataclasses
    AutoencoderChoice = IdentitySection | SavedSection | PartSection
    LearnedSection = PartSection
else:
    AutoencoderChoice = choice(IdentitySection, SavedSection, KLSection, VQSection, VideoSection)
    LearnedSection = choice(KLSection, VQSection, VideoSection)


class _AutoencoderField(Section):
    former: ClassVar[str] = "recipe"
    autoencoder: LearnedSection


def latent_shape(autoencoder: AutoencoderChoice, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the latents of one sample, given the shape of its pixels.

    Raises:
        RecipeError: A shape that the autoencoder does not take, or a saved autoencoder whose latents are unknown.
    """
    if isinstance(autoencoder, IdentitySection):
        return tuple(shape)
    if isinstance(autoencoder, SavedSection):
        described = autoencoder.described()
        if described is None:
            if autoencoder.latents is None:
                raise RecipeError(
                    f"path = {autoencoder.path!r}: no such folder; train the autoencoder first, or state the shape of "
                    "its latents, such as latents: [4, 8, 8]"
                )
            return autoencoder.latents
        latents = latent_shape(described, shape)
        if autoencoder.latents is not None and autoencoder.latents != latents:
            raise RecipeError(
                f"latents = {list(autoencoder.latents)}: the autoencoder in {autoencoder.path!r} has latents "
                f"{list(latents)}"
            )
        return latents
    try:
        return autoencoder_config(autoencoder, shape).latent_shape(shape)
    except ShapeError as problem:
        raise RecipeError(f"shape = {list(shape)}: {problem}") from problem


def autoencoder_config(autoencoder: PartSection, shape: Sequence[int]) -> Any:
    """Configuration of the autoencoder for images or videos of a shape."""
    return autoencoder.build(dict.fromkeys(DERIVED, shape[0]))


def build_autoencoder(autoencoder: AutoencoderChoice, shape: Sequence[int]) -> Identity | AutoencoderKL | VQModel:
    """Build the autoencoder, freshly initialised.

    Raises:
        RecipeError: A saved autoencoder; its weights are read by `unveil.model.model_folder.load_latent_autoencoder`.
    """
    if isinstance(autoencoder, IdentitySection):
        return Identity()
    if isinstance(autoencoder, SavedSection):
        raise RecipeError(f"path = {autoencoder.path!r}: a saved autoencoder is loaded, not built")
    return AUTOENCODERS[autoencoder.kind](autoencoder_config(autoencoder, shape))


def section_of(autoencoder: Autoencoder) -> PartSection:
    """Section of an autoencoder, with its present scale and shift."""
    config: CodecConfig = autoencoder.config
    kind = SECTIONS[type(config)]
    settings: dict[str, Any] = {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in kind.model_fields
    }
    for name in ("scale", "shift"):
        numbers = tuple(getattr(autoencoder, name).tolist())
        settings[name] = numbers[0] if len(set(numbers)) == 1 else numbers
    return kind(**settings)
