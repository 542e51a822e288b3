"""What stands between pixels and a network, as a recipe says it: nothing, an autoencoder, or one that was trained."""

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
PICTURES = ("in_channels", "out_channels")  # which follow from the shape of the data


class IdentitySection(Section):
    """The network sees the pixels themselves."""

    kind: Literal["identity"] = "identity"


class SavedSection(Section):
    """The codec of a folder: an autoencoder that was trained or saved, or that of a model.

    Attributes:
        path: the folder, or the name of a shipped model.
        latents: the shape of a sample's latents, (C, h, w), or (C, t, h, w) of a clip; needed where the folder may not
            be there yet, as in a recipe whose autoencoder is trained by another one.
    """

    kind: Literal["saved"] = "saved"
    path: str = Field(min_length=1)
    latents: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=4)] | None = None

    def described(self) -> PartSection | None:
        """The section of the codec in the folder; None where there is no such folder.

        Raises:
            RecipeError: a folder that describes no codec.
        """
        shipped = Path(str(resources.files("unveil"))) / "assets" / "models" / self.path
        folder = next((place for place in (Path(self.path), shipped) if place.is_dir()), None)
        if folder is None:
            return None
        for name in ("model.yaml", "recipe.yaml"):
            if (folder / name).is_file():
                found = migration.migrate(read_yaml((folder / name).read_text("utf-8"), str(folder / name)))
                if isinstance(found, dict) and found.get("codec", {}).get("kind") in CODECS:
                    return validate(_Described, {"codec": found["codec"]}, str(folder / name)).codec
        raise RecipeError(f"path = {self.path!r}: describes no autoencoder; train one, or name another folder")


KLSection = section("kl", AutoencoderKLConfig, derived=PICTURES)
VQSection = section("vq", VQModelConfig, derived=PICTURES)
VideoSection = section("video", VideoAutoencoderKLConfig, derived=PICTURES)
CODECS: dict[str, type[AutoencoderKL] | type[VQModel]] = {
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
    CodecSection = IdentitySection | SavedSection | PartSection
    LearnedSection = PartSection
else:
    CodecSection = choice(IdentitySection, SavedSection, KLSection, VQSection, VideoSection)
    LearnedSection = choice(KLSection, VQSection, VideoSection)


class _Described(Section):
    former: ClassVar[str] = "recipe"
    codec: LearnedSection


def latent_shape(codec: CodecSection, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of one sample's latents, given that of its pixels.

    Raises:
        RecipeError: pictures of a shape that the codec does not take, or a saved codec of which nothing is known.
    """
    if isinstance(codec, IdentitySection):
        return tuple(shape)
    if isinstance(codec, SavedSection):
        described = codec.described()
        if described is None:
            if codec.latents is None:
                raise RecipeError(
                    f"path = {codec.path!r}: no such folder; train the autoencoder first, or say the shape of its "
                    "latents, such as latents: [4, 8, 8]"
                )
            return codec.latents
        found = latent_shape(described, shape)
        if codec.latents is not None and codec.latents != found:
            raise RecipeError(f"latents = {list(codec.latents)}: the codec in {codec.path!r} gives {list(found)}")
        return found
    try:
        return codec_config(codec, shape).latent_shape(shape)
    except ShapeError as problem:
        raise RecipeError(f"shape = {list(shape)}: {problem}") from problem


def codec_config(codec: PartSection, shape: Sequence[int]) -> Any:
    """The codec's own configuration, for pictures of a shape."""
    return codec.build(dict.fromkeys(PICTURES, shape[0]))


def build_codec(codec: CodecSection, shape: Sequence[int]) -> Identity | AutoencoderKL | VQModel:
    """The codec, freshly initialised.

    Raises:
        RecipeError: a saved one, whose weights have to be read: `unveil.checkpoints.codec.load_codec`.
    """
    if isinstance(codec, IdentitySection):
        return Identity()
    if isinstance(codec, SavedSection):
        raise RecipeError(f"path = {codec.path!r}: a saved codec is read, not built anew")
    return CODECS[codec.kind](codec_config(codec, shape))


def section_of(codec: Autoencoder) -> PartSection:
    """The section of a codec, with the scale and shift that it has now."""
    config: CodecConfig = codec.config
    kind = SECTIONS[type(config)]
    given: dict[str, Any] = {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in kind.model_fields
    }
    numbers = {name: tuple(getattr(codec, name).tolist()) for name in ("scale", "shift")}
    given |= {name: found[0] if len(set(found)) == 1 else found for name, found in numbers.items()}
    return kind(**given)
