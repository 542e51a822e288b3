"""Fields that tasks share: types, limits, units and help, each written once.

A field's description is the help of its option on the command line, its text in OpenAPI and its hint on the page. A
class here is a group of fields; a task inherits the groups that it has.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic_core import PydanticCustomError

from unveil.errors import RecipeError, did_you_mean
from unveil.types import is_valid_utf8

PLAYGROUND = "playground-video"  # the bundled text-to-video model, which generates images too
MAX_SEED = 2**63 - 1
MAX_TEXT = 10_000  # characters of a prompt
MAX_SIDE = 1 << 17  # pixels; memory limits the size before
MAX_FRAMES = 4096
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Medium = Literal["image", "mask", "video", "media", "noise"]
Kind = Literal[
    "model",
    "model_or_architecture",
    "recipe_or_model",
    "lora",
    "controlnet",
    "classifier",
    "captioner",
    "sequence",
    "folder",
    "recipe",
    "new_run",
    "new_model",
    "new_lora",
]
NEW = ("new_run", "new_model", "new_lora")  # kinds of names of what a task writes


@dataclass(frozen=True)
class FileInput:
    """Marks a field that names an input file: a path on a command line, an upload on a server.

    Attributes:
        medium: What the file is; `media` is an image or a video.
        folder: Whether a command line may give a folder of such files.
    """

    medium: Medium
    folder: bool = False

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The schema of the value, which says what the file is."""
        return {**handler(schema), "file": self.medium}


@dataclass(frozen=True)
class CatalogName:
    """Marks a field that names a model or the like: a path or a name on a command line, a name on a server."""

    kind: Kind

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The schema of the value, which says what it names."""
        return {**handler(schema), "catalog": self.kind}


@dataclass(frozen=True)
class LocalPath:
    """Marks a field that names a path of the machine on which the task runs; a server refuses it."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The schema of the value, which says that a server refuses it."""
        return {**handler(schema), "local": True}


@dataclass(frozen=True)
class RecipeKeys:
    """Marks changes of a recipe by their keys, such as train.steps; a server refuses keys that take a path."""


@dataclass(frozen=True)
class SamplingKeys:
    """Marks sampling settings by name; a command line writes each as KEY=VALUE, such as steps=24."""


@dataclass(frozen=True)
class Repeated:
    """Marks a field of one or more values, whose option may be repeated."""


@dataclass(frozen=True)
class FileFacts:
    """Marks facts that a weights file does not state itself; a command line writes each as file.KEY=VALUE."""


@dataclass(frozen=True)
class NumberList:
    """Marks a field of several numbers; a command line separates them by commas."""


@dataclass(frozen=True)
class PerFrame(NumberList):
    """Marks a field of one value for each frame, or of fewer that change evenly from the first frame to the last."""


def info(
    help: str,
    *,
    title: str = "",
    unit: str = "",
    advanced: bool = False,
    flags: Iterable[str] = (),
    metavar: str = "",
    widget: str = "",
    option: bool = True,
    **limits: Any,
) -> Any:
    """A field's help and how it is shown.

    Args:
        help: Complete sentence or noun phrase that is understood without the field's name.
        title: Label of the field, where it is not its name in words.
        unit: Unit of the value, such as px.
        advanced: Whether a form hides it at first.
        flags: Options of the command line, where they are not the field's name.
        metavar: Placeholder of the value in the help of the command line.
        widget: Form element, where it does not follow from the type: slider, text.
        option: Whether the command line has an option for it.
        limits: Limits of `pydantic.Field`, such as ge and le.
    """
    shown = {"unit": unit, "advanced": advanced, "flags": list(flags), "metavar": metavar, "widget": widget}
    extra: dict[str, Any] = {name: value for name, value in shown.items() if value}
    extra |= {} if option else {"option": False}
    return Field(title=title or None, description=help, json_schema_extra=extra, **limits)


def _is_text(text: Any) -> Any:
    if isinstance(text, str) and ("\0" in text or not is_valid_utf8(text)):
        raise ValueError(f"{text[:80]!r}: holds half a character or NUL, which is not text; type it again")
    return text


def _as_tuple(value: Any) -> Any:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _short_form(values: tuple[Any, ...]) -> Any:
    return values[0] if len(values) == 1 else list(values)


_repeat = (BeforeValidator(_as_tuple), PlainSerializer(_short_form), Repeated())
Text = Annotated[str, Field(max_length=MAX_TEXT), BeforeValidator(_is_text)]
Name = Annotated[str, Field(min_length=1, max_length=1000), BeforeValidator(_is_text)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Frames = Annotated[int, Field(ge=1, le=MAX_FRAMES)]
Value = bool | int | float | str
Names = Annotated[tuple[Name, ...], *_repeat]
Texts = Annotated[tuple[Text, ...], *_repeat]
Seeds = Annotated[tuple[Seed, ...], *_repeat]
Values = Annotated[tuple[Value, ...], *_repeat]
Settings = dict[Annotated[str, Field(max_length=100)], Any]
FrameValues = Annotated[
    tuple[Fraction, ...], BeforeValidator(_as_tuple), PlainSerializer(_short_form), PerFrame(), Field(min_length=1)
]
ImageFile = Annotated[Name, FileInput("image")]
ImageFiles = Annotated[Name, FileInput("image", folder=True)]
MaskFile = Annotated[Name, FileInput("mask")]
MaskFiles = Annotated[Name, FileInput("mask", folder=True)]
VideoFile = Annotated[Name, FileInput("video")]
VideoOrFrames = Annotated[Name, FileInput("video", folder=True)]
MediaFile = Annotated[Name, FileInput("media")]
MediaOrFrames = Annotated[Name, FileInput("media", folder=True)]
NoiseFile = Annotated[Name, FileInput("noise")]
ModelName = Annotated[Name, CatalogName("model")]
RecipeName = Annotated[Name, CatalogName("recipe")]
LocalFile = Annotated[Name, LocalPath()]
RecipeChanges = Annotated[dict[str, Any], RecipeKeys()]


class Fields(BaseModel):
    """Frozen fields with finite numbers; an unknown key is an error that names the nearest one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
    group: ClassVar[str] = ""  # heading of the fields that a class states itself
    aliases: ClassVar[dict[str, str]] = {"num_inference_steps": "steps", "n": "count", "num_images": "count"}

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        allowed, named = list(cls.model_fields), dict[str, Any]()
        for key, value in values.items():
            name = cls.aliases.get(key, key) if key not in allowed else key
            if name not in allowed:
                context = {"key": str(key), "nearest": did_you_mean(str(key), allowed), "allowed": ", ".join(allowed)}
                raise PydanticCustomError("unknown_key", "unknown key{nearest}; allowed: {allowed}", context)
            if name in named:
                raise PydanticCustomError("unknown_key", "is given twice, as {other} too", {"key": key, "other": name})
            named[name] = value
        return named


class Lora(Fields):
    """A LoRA and its weight."""

    file: Annotated[Name, CatalogName("lora"), info("LoRA file or run.", metavar="FILE")]
    weight: Annotated[float, info("Weight of the LoRA.", ge=-10, le=10)] = 1.0


class ControlNet(Fields):
    """A ControlNet, its control image, its weight, and the part of the trajectory where it acts."""

    image: Annotated[ImageFile, info("Control image.")]
    network: Annotated[
        Annotated[Name, CatalogName("controlnet")] | None,
        info("ControlNet file, folder or run; left out for a model that is the run of a ControlNet."),
    ] = None
    weight: Annotated[float, info("Weight of the ControlNet.", ge=-10, le=10)] = 1.0
    start: Annotated[Fraction, info("Start of the control, as a fraction of the sampling trajectory.")] = 0.0
    stop: Annotated[Fraction, info("End of the control, as a fraction of the sampling trajectory.")] = 1.0


class ModelFields(Fields):
    """The model of a task, and the number format of its network."""

    group: ClassVar[str] = "Model"

    model: Annotated[
        ModelName, info("Bundled model, folder (saved model or run) or weights file.", flags=["--model", "-m"])
    ] = PLAYGROUND
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        info(
            "Number format of the network: float32, bfloat16 or float16.",
            title="Number format",
            advanced=True,
            metavar="DTYPE",
        ),
    ] = "float32"
    file: Annotated[
        Settings,
        info("Facts that a weights file does not state itself, by name.", advanced=True, option=False, max_length=50),
    ] = Field(default_factory=dict)


class StrictFields(Fields):
    """Whether a prompt must be drawn completely."""

    group: ClassVar[str] = "Conditions"

    strict: Annotated[
        bool, info("Refuse a prompt if something of it will not be drawn, instead of a warning.", title="Strict prompt")
    ] = False


class PromptFields(StrictFields):
    """Conditions and negative conditions."""

    group: ClassVar[str] = "Conditions"

    prompt: Annotated[Texts, info("Prompt, for models that take one.", widget="text")] = ()
    label: Annotated[
        Values,
        info(
            "Class by number or name, for class-conditional models; repeat for several.", flags=["--label", "--class"]
        ),
    ] = ()
    cond: Annotated[
        dict[str, Values],
        info(
            "Other condition, as KEY=VALUE; repeat for several.",
            title="Other conditions",
            advanced=True,
            metavar="KEY=VALUE",
        ),
    ] = Field(default_factory=dict)
    negative_prompt: Annotated[Texts, info("Prompt to guide away from; needs a guidance scale above 1.")] = ()
    negative_cond: Annotated[
        dict[str, Values],
        info(
            "Condition to guide away from, as KEY=VALUE, such as label=3.",
            title="Other negative conditions",
            advanced=True,
            metavar="KEY=VALUE",
        ),
    ] = Field(default_factory=dict)


class ExpansionFields(Fields):
    """Expansion of prompts before the model reads them."""

    group: ClassVar[str] = "Conditions"

    expand_prompt: Annotated[
        Name | None,
        info(
            "Prompt expansion: rules, the folder of a language model, a URL with a model's name, or none. When left "
            "out, rules for the playground's models and none for others.",
            title="Prompt expansion",
            metavar="rules|PATH|URL#NAME|none",
        ),
    ] = None


class SeedFields(Fields):
    """Seeds of the initial noise."""

    group: ClassVar[str] = "Sampling"

    seed: Annotated[
        Seeds, info("Seed of the initial noise; repeat for several, one for each result.", min_length=1)
    ] = (0,)


class GuidedFields(Fields):
    """Steps and guidance; what is left out is the model's own."""

    group: ClassVar[str] = "Sampling"

    steps: Annotated[
        int | None, info("Number of sampling steps; the model's default when left out.", ge=1, le=10_000)
    ] = None
    guidance_scale: Annotated[
        float | None,
        info("Classifier-free guidance scale; 1 disables guidance and is the default of models.", ge=-100, le=1000),
    ] = None
    schedule: Annotated[
        Name | None,
        info("Noise schedule: uniform, karras, exponential, leading, trailing, or a respacing string.", advanced=True),
    ] = None
    sampling: Annotated[
        Settings,
        info(
            "Other sampling settings by name, such as guidance_rescale.",
            title="Other settings",
            advanced=True,
            option=False,
            max_length=50,
        ),
    ] = Field(default_factory=dict)

    @property
    def sampling_changes(self) -> dict[str, Any]:
        """Changes of the model's sampling settings, by the names of `SampleConfig.flat`."""
        named = {name: getattr(self, name, None) for name in SAMPLING}
        return dict(self.sampling) | {name: value for name, value in named.items() if value is not None}


class SamplingFields(GuidedFields, SeedFields):
    """Sampling settings; what is left out is the model's own."""

    group: ClassVar[str] = "Sampling"

    sampler: Annotated[
        Name | None,
        info(
            "Sampler by name, such as dpmpp-2m; `unveil inspect samplers` lists all, and names of other programs such "
            'as euler_a or "DPM++ 2M Karras" are understood.'
        ),
    ] = None
    eta: Annotated[
        Fraction | None,
        info("Noise of the sampler, from 0 (deterministic) to 1 (as ancestral sampling).", advanced=True),
    ] = None
    threshold: Annotated[
        Literal["static", "dynamic", "none"] | None,
        info("Thresholding of the predicted image: static, dynamic or none.", advanced=True),
    ] = None


SAMPLING = ("steps", "sampler", "guidance_scale", "schedule", "eta", "threshold")


class SizeFields(Fields):
    """Size of the result."""

    group: ClassVar[str] = "Size"

    width: Annotated[Side | None, info("Width in pixels; the model's own when left out.", unit="px")] = None
    height: Annotated[Side | None, info("Height in pixels; the model's own when left out.", unit="px")] = None

    @model_validator(mode="after")
    def _both_sides(self) -> SizeFields:
        if (self.width is None) != (self.height is None):
            raise RecipeError("width and height: give both or none")
        return self

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width; None: those of the model, or of the input."""
        return None if self.width is None or self.height is None else (self.height, self.width)


class AdapterFields(Fields):
    """LoRAs and ControlNets."""

    group: ClassVar[str] = "Adapters"

    lora: Annotated[
        tuple[Lora, ...],
        info(
            "LoRA file or run, with its weight; repeat for several.",
            title="LoRA",
            metavar="FILE[:WEIGHT]",
            max_length=8,
        ),
    ] = ()
    controlnet: Annotated[
        tuple[ControlNet, ...],
        info(
            "ControlNet file, folder or run, and the control image; the image alone for a model that is such a run. "
            "Start and stop are fractions of the sampling trajectory. Repeat for several.",
            title="ControlNet",
            metavar="[FILE=]IMAGE[:WEIGHT[:START-STOP]]",
            max_length=4,
        ),
    ] = ()
    control_mode: Annotated[
        Literal["balanced", "guess"],
        info(
            "Balance of prompt and control image: balanced, or guess, which favours the control image.",
            advanced=True,
            metavar="MODE",
        ),
    ] = "balanced"


class BatchFields(Fields):
    """Number of results that are computed at once."""

    group: ClassVar[str] = "Sampling"

    batch_size: Annotated[int, info("Number of images that are generated at once.", ge=1, le=4096, advanced=True)] = 16
