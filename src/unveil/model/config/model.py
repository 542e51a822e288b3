"""What a model is: everything that must be known to run its weights, each part told apart by `kind`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticKnownError, core_schema
from torch import nn

from unveil.conditioning.class_label import BinnedValue, Label
from unveil.conditioning.image import ConcatCondition
from unveil.core import preconditioning
from unveil.core.flow import RectifiedFlow, SqrtSizeShift, TimeShift
from unveil.core.prediction import PREDICTIONS, Prediction, posterior_mean
from unveil.core.process import BETAS, CosineVP, DiscreteVP, LinearVP, Process, betas, zero_terminal_snr
from unveil.core.sde import SubVP
from unveil.core.transition import chain_of
from unveil.core.variance import LEARNED, VARIANCES, VarianceRule
from unveil.core.ve import VE, DiscreteVE, EDMProcess
from unveil.errors import RecipeError, did_you_mean
from unveil.model.config.base import ByKind, PartSection, Section, choice, section
from unveil.model.config.latent_autoencoder import AutoencoderChoice, IdentitySection, latent_shape
from unveil.model.config.sampling import SampleConfig
from unveil.model.config.text import TextSection
from unveil.model.config.token_conditions import LabelTokenSection, LayoutSection, LearnedTextSection
from unveil.nn.box_denoiser import BoxDenoiser, BoxesConfig
from unveil.nn.dit import DiT
from unveil.nn.dit_config import DiTConfig, expand_preset
from unveil.nn.edm_unet import DhariwalUNet, DhariwalUNetConfig, SongUNet, SongUNetConfig
from unveil.nn.unet import UNet
from unveil.nn.unet2015 import UNet2015, UNet2015Config
from unveil.nn.unet_config import UNetConfig
from unveil.nn.video_dit import VideoDiT, VideoDiTConfig

Positive = Annotated[int, Field(ge=1)]
PredictionName = Literal["x0", "eps", "v", "score", "flow", "posterior-mean"]
VarianceName = Literal["fixed-small", "fixed-large", "learned", "learned-range"]

# ---------------------------------------------------------------------- networks

# What follows from the shape of the data, the variance and the conditions is no key of a network's section.
DERIVED = ("in_channels", "out_channels", "concat_channels")
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
    """Marks a field that takes a name, or a section: Annotated[section, NameOr(names)]."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        expected = " or ".join(f"'{name}'" for name in self.names)

        def validate(given: Any, section: Any) -> Any:
            if not isinstance(given, str):
                return section(given)
            if given not in self.names:
                raise PydanticKnownError("literal_error", {"expected": expected})
            return given

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
    """A table of betas, by its published name or written out.

    Attributes:
        last: "published" leaves the table as it is; "zero-snr" stretches it until no data is left at its end.
    """

    kind: Literal["discrete-vp"] = "discrete-vp"
    beta_schedule: str | tuple[float, ...] = "linear"
    timesteps: Annotated[int, Field(ge=2, le=100_000)] | None = None
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, le=1)
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
            table = betas(table, self.timesteps or 1000, start=self.beta_start, end=self.beta_end)
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
    """Another process, shifted towards noise, as larger pictures need it.

    Attributes:
        process: any of the others.
        shift: 1 changes nothing; the root of how many times more pixels there are keeps their uncertainty.
    """

    kind: Literal["shifted"] = "shifted"
    process: UnshiftedSection
    shift: float = Field(gt=0)

    def build(self) -> TimeShift:
        """The process."""
        return TimeShift(self.process.build(), self.shift)


class SqrtSizeShiftSection(Section):
    """Another process, shifted towards noise by the root of how much larger a sample is than one of `size`.

    Attributes:
        process: any of the others.
        size: frames, height and width, or height and width, of the latents that need `shift`.
    """

    kind: Literal["sqrt-size-shifted"] = "sqrt-size-shifted"
    process: UnshiftedSection
    size: tuple[Positive, ...] = Field(min_length=1, max_length=3)
    shift: float = Field(default=1.0, gt=0)

    def build(self) -> SqrtSizeShift:
        """The process of samples of this size; `sized` is that of others."""
        return SqrtSizeShift(self.process.build(), self.shift, math.prod(self.size))


if TYPE_CHECKING:
    ProcessSection = UnshiftedSection | TimeShiftSection | SqrtSizeShiftSection
else:
    ProcessSection = choice(*UNSHIFTED, TimeShiftSection, SqrtSizeShiftSection)

# ---------------------------------------------------------------------- conditions


class LabelSection(Section):
    """A class, by an embedding table.

    Attributes:
        key: the item's key that is read.
        names: of the classes, which may then be asked for by name.
        drop_prob: how often training leaves the label away, so that guidance has its "nothing".
        std: of the numbers that a fresh table is drawn with; 0.02 in DiT.
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
    """A number, by the row of the nearest of `codes` evenly spaced values."""

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
    """A picture beside the state, concatenated to its channels."""

    kind: Literal["concat"] = "concat"
    key: str = "pixels"
    channels: Positive = 3
    drop_prob: float = Field(default=0.0, ge=0, lt=1)

    def build(self, model: ModelConfig, vector_dim: int | None) -> ConcatCondition:
        """The conditioner; its "nothing" has the size of the model's pictures."""
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
    """A model: what `model.yaml` of a saved one holds.

    Attributes:
        key: the item's key that is noised and made: pixels, or a state such as masks or boxes.
        shape: of one sample, (C, H, W) or (rows, columns); that of the pixels where a codec stands before the network.
        prediction: a name, or a preconditioning such as {kind: edm, sigma_data: 0.5}.
        sample: how pictures are drawn when nothing else is asked for.
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

    @model_validator(mode="after")
    def _parts_agree(self) -> ModelConfig:
        keys = [one.key for one in self.condition]
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
        """Channels that the conditions add to the network's input."""
        return sum(one.channels for one in self.condition if isinstance(one, ConcatSection))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample as the network sees it: that of the codec's latents.

        Raises:
            RecipeError: pictures of a shape that the codec does not take.
        """
        return latent_shape(self.autoencoder, self.shape)

    @property
    def learns_variance(self) -> bool:
        """Whether the network has a second half of output channels for the variance."""
        return self.variance in LEARNED

    def network_config(self) -> Any:
        """The network's own configuration, with what follows from the rest of the model."""
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
        """The network, freshly initialised."""
        return NETWORKS[self.network.kind](self.network_config())

    def build_prediction(self, process: Process) -> Prediction:
        """What the network's output means, and with preconditioning what it is given."""
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
