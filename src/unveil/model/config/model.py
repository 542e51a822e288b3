"""The configuration of a model: all that its weights need to run, with a `kind` for each part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticKnownError, core_schema
from torch import nn

from unveil.autoencoders import (
    Autoencoder,
    AutoencoderKL,
    AutoencoderKLConfig,
    Identity,
    LatentConfig,
    VideoAutoencoderKL,
    VideoAutoencoderKLConfig,
    VQModel,
    VQModelConfig,
)
from unveil.conditioning.class_label import BinnedValue, Label
from unveil.conditioning.image import ConcatCondition
from unveil.core import preconditioning
from unveil.core.flow import RectifiedFlow, SqrtSizeShift, TimeShift
from unveil.core.prediction import LEARNED, PREDICTIONS, VARIANCES, Prediction, VarianceRule, posterior_mean
from unveil.core.process import (
    BETAS,
    COSINE_OFFSET,
    LARGEST_BETA,
    CosineVP,
    DiscreteVP,
    LinearVP,
    Process,
    betas,
    zero_terminal_snr,
)
from unveil.core.sde import SubVP
from unveil.core.transition import chain_of
from unveil.core.ve import VE, DiscreteVE, EDMProcess
from unveil.errors import RecipeError, ShapeError, did_you_mean
from unveil.io import staging
from unveil.model import migration
from unveil.model.config.sampling import SampleConfig
from unveil.model.config.sections import ByKind, PartSection, Section, choice, read_yaml, section, validate
from unveil.model.config.text import TextSection
from unveil.model.config.token_conditions import LabelTokenSection, LayoutSection, LearnedTextSection
from unveil.nn.box_denoiser import BoxDenoiser, BoxesConfig
from unveil.nn.dit import DiT, DiTConfig, expand_preset
from unveil.nn.edm_unet import DhariwalUNet, DhariwalUNetConfig, SongUNet, SongUNetConfig
from unveil.nn.unet import UNet, UNetConfig
from unveil.nn.unet2015 import UNet2015, UNet2015Config
from unveil.nn.video_dit import VideoDiT, VideoDiTConfig

Positive = Annotated[int, Field(ge=1)]
CHANNELS_FROM_DATA = ("in_channels", "out_channels")  # fields that follow from the shape of the data


class IdentitySection(Section):
    """No autoencoder: the network works on pixels."""

    kind: Literal["identity"] = "identity"


class SavedSection(Section):
    """The autoencoder in a folder, which contains an autoencoder or a latent diffusion model.

    Attributes:
        path: Folder, or name of a bundled model.
        latents: Shape of the latents of one sample, (C, h, w), or (C, t, h, w) of a video. It is needed if the folder
            may not exist yet, as in a recipe whose autoencoder another recipe trains.
    """

    kind: Literal["saved"] = "saved"
    path: str = Field(min_length=1)
    latents: Annotated[tuple[Positive, ...], Field(min_length=3, max_length=4)] | None = None

    def described(self) -> PartSection | None:
        """Section of the autoencoder in the folder; None if the folder does not exist.

        Raises:
            RecipeError: The folder describes no autoencoder.
        """
        bundled = Path(str(resources.files("unveil"))) / "assets" / "models" / self.path
        staging.recover(Path(self.path))
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


KLSection = section("kl", AutoencoderKLConfig, derived=CHANNELS_FROM_DATA)
VQSection = section("vq", VQModelConfig, derived=CHANNELS_FROM_DATA)
VideoSection = section("video", VideoAutoencoderKLConfig, derived=CHANNELS_FROM_DATA)
AUTOENCODERS: dict[str, type[AutoencoderKL] | type[VQModel]] = {
    "kl": AutoencoderKL,
    "vq": VQModel,
    "video": VideoAutoencoderKL,
}
SECTIONS: dict[type[LatentConfig], type[PartSection]] = {
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
        RecipeError: The autoencoder does not take the shape, or the latents of a saved autoencoder are unknown.
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
    """Return the configuration of the autoencoder for images or videos of a shape."""
    return autoencoder.build(dict.fromkeys(CHANNELS_FROM_DATA, shape[0]))


def build_autoencoder(autoencoder: AutoencoderChoice, shape: Sequence[int]) -> Identity | AutoencoderKL | VQModel:
    """Build the autoencoder, freshly initialised.

    Raises:
        RecipeError: The section is a saved autoencoder; `unveil.model.model_folder.load_latent_autoencoder` loads its
            weights.
    """
    if isinstance(autoencoder, IdentitySection):
        return Identity()
    if isinstance(autoencoder, SavedSection):
        raise RecipeError(f"path = {autoencoder.path!r}: a saved autoencoder is loaded, not built")
    return AUTOENCODERS[autoencoder.kind](autoencoder_config(autoencoder, shape))


def section_of(autoencoder: Autoencoder) -> PartSection:
    """Return the section of an autoencoder, with its present scale and shift."""
    config: LatentConfig = autoencoder.config
    kind = SECTIONS[type(config)]
    settings: dict[str, Any] = {
        f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in kind.model_fields
    }
    for name in ("scale", "shift"):
        numbers = tuple(getattr(autoencoder, name).tolist())
        settings[name] = numbers[0] if len(set(numbers)) == 1 else numbers
    return kind(**settings)


PredictionName = Literal["x0", "eps", "v", "score", "flow", "posterior-mean"]
VarianceName = Literal["fixed-small", "fixed-large", "learned", "learned-range"]

# ---------------------------------------------------------------------- networks

# Fields that follow from the shape of the data, the variance and the conditions are not keys of a network's section.
DERIVED = (*CHANNELS_FROM_DATA, "concat_channels")
UNetSection = section("unet", UNetConfig, derived=DERIVED)
UNet2015Section = section("unet2015", UNet2015Config, derived=DERIVED)
BoxesSection = section("boxes", BoxesConfig, derived=("slots", "concat_channels"))
SongUNetSection = section("song-unet", SongUNetConfig, derived=DERIVED)
DhariwalUNetSection = section("dhariwal-unet", DhariwalUNetConfig, derived=DERIVED)
DiTSection = section("dit", DiTConfig, derived=(*DERIVED, "size"), shorthand=expand_preset)
VideoDiTSection = section("video-dit", VideoDiTConfig, derived=("in_channels", "out_channels"))
NETWORKS: dict[str, Callable[[Any], nn.Module]] = {
    "unet": UNet,
    "unet2015": UNet2015,
    "song-unet": SongUNet,
    "dhariwal-unet": DhariwalUNet,
    "dit": DiT,
    "video-dit": VideoDiT,
    "boxes": BoxDenoiser,
}
if TYPE_CHECKING:  # made at run time, from the dataclasses
    Network = PartSection
else:
    Network = choice(
        UNetSection, UNet2015Section, SongUNetSection, DhariwalUNetSection, DiTSection, VideoDiTSection, BoxesSection
    )

# ---------------------------------------------------------------------- predictions


class NameOr:
    """Marker of a field that takes a name or a section: Annotated[section, NameOr(names)]."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        expected = " or ".join(f"'{name}'" for name in self.names)

        def validate(value: Any, section: Any) -> Any:
            if not isinstance(value, str):
                return section(value)
            if value not in self.names:
                raise PydanticKnownError("literal_error", {"expected": expected})
            return value

        plain = core_schema.plain_serializer_function_ser_schema(
            lambda value: value if isinstance(value, str) else value.model_dump(mode="json")
        )
        return core_schema.no_info_wrap_validator_function(validate, handler(source), serialization=plain)


PreconditioningSection = choice(
    section("vp", preconditioning.VPPreconditioning),
    section("ve", preconditioning.VEPreconditioning),
    section("iddpm", preconditioning.IDDPMPreconditioning),
    section("edm", preconditioning.EDMPreconditioning),
    section("consistency", preconditioning.ConsistencyPreconditioning),
)
if TYPE_CHECKING:
    PredictionSection = PredictionName | PartSection
else:
    PredictionSection = Annotated[PreconditioningSection, NameOr(get_args(PredictionName))]

# ---------------------------------------------------------------------- processes


class DiscreteVPSection(Section):
    """A variance-preserving process from a table of betas, given by its published name or as a list.

    Attributes:
        cosine_offset: Offset s of the table "cosine".
        largest_beta: Largest beta of the table "cosine"; larger ones are clipped to it.
        last: End of the table: "published" keeps it, "zero-snr" rescales it to a terminal SNR of zero.
    """

    kind: Literal["discrete-vp"] = "discrete-vp"
    beta_schedule: str | tuple[float, ...] = "linear"
    timesteps: Annotated[int, Field(ge=2, le=100_000)] | None = None
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, le=1)
    cosine_offset: float = Field(default=COSINE_OFFSET, gt=0)
    largest_beta: float = Field(default=LARGEST_BETA, gt=0, le=1)
    last: Literal["published", "zero-snr"] = "published"
    interpolate: Literal["log-snr", "log-alpha"] = "log-snr"
    rescale_timesteps: Annotated[float, Field(gt=0)] | None = None
    rounding: Literal["none", "nearest"] = "none"

    @model_validator(mode="after")
    def _can_be_built(self) -> DiscreteVPSection:
        if isinstance(self.beta_schedule, str) and self.beta_schedule not in BETAS:
            raise RecipeError(
                f"beta_schedule = {self.beta_schedule!r}: known are {', '.join(BETAS)}"
                f"{did_you_mean(self.beta_schedule, list(BETAS))}"
            )
        if (
            isinstance(self.beta_schedule, tuple)
            and self.timesteps is not None
            and self.timesteps != len(self.beta_schedule)
        ):
            raise RecipeError(
                f"timesteps = {self.timesteps}, but {len(self.beta_schedule)} betas are written out; "
                "leave timesteps away"
            )
        self.build()
        return self

    def build(self) -> DiscreteVP:
        """The process."""
        table = self.beta_schedule
        if isinstance(table, str):
            table = betas(
                table,
                self.timesteps or 1000,
                start=self.beta_start,
                end=self.beta_end,
                offset=self.cosine_offset,
                largest=self.largest_beta,
            )
        if self.last == "zero-snr":
            table = zero_terminal_snr(torch.as_tensor(table, dtype=torch.float64))
        return DiscreteVP(table, interpolate=self.interpolate, rescale=self.rescale_timesteps, rounding=self.rounding)


LinearVPSection = section("linear-vp", LinearVP)
CosineVPSection = section("cosine-vp", CosineVP)
SubVPSection = section("sub-vp", SubVP)
VESection = section("ve", VE)
DiscreteVESection = section("discrete-ve", DiscreteVE)
EDMSection = section("edm", EDMProcess)
RectifiedFlowSection = section("rectified-flow", RectifiedFlow)
UNSHIFTED: tuple[type[Section], ...] = (
    DiscreteVPSection,
    LinearVPSection,
    CosineVPSection,
    SubVPSection,
    VESection,
    DiscreteVESection,
    EDMSection,
    RectifiedFlowSection,
)
if TYPE_CHECKING:
    UnshiftedSection = DiscreteVPSection | PartSection
else:
    UnshiftedSection = choice(*UNSHIFTED)


class TimeShiftSection(Section):
    """A process that is shifted towards noise, for larger images.

    Attributes:
        process: Process that is shifted.
        shift: Factor of the shift. 1: no shift; the square root of the ratio of the numbers of pixels keeps the
            uncertainty of the image.
    """

    kind: Literal["shifted"] = "shifted"
    process: UnshiftedSection
    shift: float = Field(gt=0)

    def build(self) -> TimeShift:
        """The process."""
        return TimeShift(self.process.build(), self.shift)


class SqrtSizeShiftSection(Section):
    """A process that is shifted towards noise by the square root of the ratio of a sample's size to `size`.

    Attributes:
        process: Process that is shifted.
        size: Size of the latents to which `shift` applies: frames, height and width, or height and width.
    """

    kind: Literal["sqrt-size-shifted"] = "sqrt-size-shifted"
    process: UnshiftedSection
    size: tuple[Positive, ...] = Field(min_length=1, max_length=3)
    shift: float = Field(default=1.0, gt=0)

    def build(self) -> SqrtSizeShift:
        """Return the process for samples of this size; its `resized` returns that of others."""
        return SqrtSizeShift(self.process.build(), self.shift, math.prod(self.size))


if TYPE_CHECKING:
    ProcessSection = UnshiftedSection | TimeShiftSection | SqrtSizeShiftSection
else:
    ProcessSection = choice(*UNSHIFTED, TimeShiftSection, SqrtSizeShiftSection)

# ---------------------------------------------------------------------- conditions


class LabelSection(Section):
    """A class label, encoded by an embedding table.

    Attributes:
        key: Key of the item's label.
        names: Names of the classes; a class may then be given by its name.
        drop_prob: Probability that training drops the label, which guidance needs.
        std: Standard deviation of a new table's values; 0.02 in DiT.
    """

    kind: Literal["class-label"] = "class-label"
    key: str = "label"
    num_classes: Positive
    names: tuple[str, ...] | None = None
    drop_prob: float = Field(default=0.0, ge=0, lt=1)
    std: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _a_name_each(self) -> LabelSection:
        if self.names is not None and len(self.names) != self.num_classes:
            raise RecipeError(
                f"names: {len(self.names)} given for {self.num_classes} classes; give one for each, or none"
            )
        return self

    def build(self, model: ModelConfig, vector_dim: int | None) -> Label:
        """The conditioner, for a network whose time embedding has this width."""
        label = Label(self.num_classes, _vector_dim(self.key, vector_dim), self.drop_prob, self.names, key=self.key)
        if self.std != 1:
            nn.init.normal_(label.table.weight, std=self.std)
        return label


class BinnedValueSection(Section):
    """A number, encoded by the row of the nearest of `codes` evenly spaced values."""

    kind: Literal["binned-value"] = "binned-value"
    key: str
    low: float
    high: float
    codes: int = Field(ge=2)
    lookup: Literal["nearest", "exact"] = "nearest"
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: ModelConfig, vector_dim: int | None) -> BinnedValue:
        """The conditioner, for a network whose time embedding has this width."""
        width = _vector_dim(self.key, vector_dim)
        return BinnedValue(self.low, self.high, self.codes, width, self.drop_prob, lookup=self.lookup, key=self.key)


class ConcatSection(Section):
    """An image as a condition, concatenated to the channels of the sample."""

    kind: Literal["concat"] = "concat"
    key: str = "pixels"
    channels: Positive = 3
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: ModelConfig, vector_dim: int | None) -> ConcatCondition:
        """Return the conditioner; its null condition has the size of the model's images."""
        size = (model.shape[1], model.shape[2]) if len(model.shape) == 3 else (1, 1)
        return ConcatCondition(self.channels, self.drop_prob, size=size, key=self.key)


ConditionSection = Annotated[
    LabelSection
    | LabelTokenSection
    | LayoutSection
    | BinnedValueSection
    | ConcatSection
    | TextSection
    | LearnedTextSection,
    ByKind(),
]


# ---------------------------------------------------------------------- the model


class ModelConfig(Section):
    """A model: the content of `model.yaml` in its folder.

    Attributes:
        key: Key of the item that is noised and generated: pixels, or a state such as masks or boxes.
        shape: Shape of one sample, (C, H, W) or (rows, columns); with an autoencoder, that of the pixels.
        prediction: Name of a prediction target, or a preconditioning such as {kind: edm, sigma_data: 0.5}.
        sample: Default sampling settings.
        fps: Frames per second of the videos of training, at which videos are generated; None: unknown, or an image
            model. A recipe takes it from its data.
    """

    former: ClassVar[str] = "recipe"
    key: str = "pixels"
    shape: tuple[Positive, ...] = Field(min_length=1, max_length=4)
    network: Network
    process: ProcessSection
    prediction: PredictionSection = "eps"
    variance: VarianceName = "fixed-small"
    condition: tuple[ConditionSection, ...] = ()
    autoencoder: AutoencoderChoice = IdentitySection()
    sample: SampleConfig = SampleConfig()
    fps: Annotated[float, Field(gt=0, le=1000)] | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelConfig:
        keys = [condition.key for condition in self.condition]
        if len(set(keys)) < len(keys):
            raise RecipeError(f"condition: the keys {', '.join(keys)} are not all different; give each its own key")
        if self.key in keys:
            raise RecipeError(
                f"condition: {self.key!r} is what the model makes, so it cannot be given; name another key"
            )
        if self.prediction == "posterior-mean" and self.process.kind != "discrete-vp":
            raise RecipeError(
                "prediction = 'posterior-mean': is bound to a table of betas; use process kind discrete-vp"
            )
        checks: dict[str, Callable[[], Any]] = {
            "autoencoder": lambda: self.latent_shape,
            "network": self.network_config,
            "process": self.process.build,
        }
        for part, build in checks.items():
            try:
                build()
            except RecipeError as problem:
                raise RecipeError(f"{part}: {problem}") from problem
        return self

    @property
    def concat_channels(self) -> int:
        """Number of channels that the conditions add to the network's input."""
        return sum(condition.channels for condition in self.condition if isinstance(condition, ConcatSection))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample as input of the network, that is, of the autoencoder's latents.

        Raises:
            RecipeError: The autoencoder does not take images of this shape.
        """
        return latent_shape(self.autoencoder, self.shape)

    @property
    def learns_variance(self) -> bool:
        """True if the network has a second half of output channels for the variance."""
        return self.variance in LEARNED

    def network_config(self) -> Any:
        """Configuration of the network, with the values that follow from the rest of the model."""
        shape = self.latent_shape
        channels = shape[0]
        derived = {
            "in_channels": channels,
            "out_channels": channels * (2 if self.learns_variance else 1),
            "concat_channels": self.concat_channels,
            "slots": channels,
            "size": max(shape[1:], default=1),
        }
        wanted = self.network.derived_names()
        return self.network.build({name: value for name, value in derived.items() if name in wanted})

    def build_network(self) -> nn.Module:
        """Build the network, freshly initialised."""
        return NETWORKS[self.network.kind](self.network_config())

    def build_prediction(self, process: Process) -> Prediction:
        """Return the prediction target of the network, or its preconditioning."""
        if not isinstance(self.prediction, str):
            return self.prediction.build()
        if self.prediction == "posterior-mean":
            return posterior_mean(chain_of(process))
        return PREDICTIONS[self.prediction]

    def build_variance(self) -> VarianceRule:
        """The variance of a reverse step."""
        return VARIANCES[self.variance]


def _vector_dim(key: str, vector_dim: int | None) -> int:
    if vector_dim is None:
        raise RecipeError(f"condition {key!r}: this network takes no vector; leave the condition away")
    return vector_dim
