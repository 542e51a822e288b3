"""Recipes: the model of a paper, its training and its evaluation, in one YAML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from unveil.errors import RecipeError, did_you_mean
from unveil.model import migration
from unveil.model.config import on_base
from unveil.model.config.autoencoder import (
    AutoencoderLossSection,
    AutoencoderModelConfig,
    ClipLengthSection,
    ReconstructionConfig,
    check_lengths,
    check_loss,
)
from unveil.model.config.captioner import CaptionerFields
from unveil.model.config.data import Data, frame_rate_of
from unveil.model.config.model import ModelConfig, ProcessSection
from unveil.model.config.objective import Objective, SimpleObjective
from unveil.model.config.sections import (
    PartSection,
    Section,
    assign,
    change,
    choice,
    read_assignment,
    read_yaml,
    section,
    validate,
)
from unveil.model.config.seq2seq import Seq2SeqFields
from unveil.model.config.train import ClassifierTrainConfig, EvaluateConfig, TrainConfig
from unveil.nn.classifier import NoisyClassifierConfig
from unveil.nn.cnn import CnnConfig
from unveil.nn.lora import LoraConfig
from unveil.nn.vit import ViTConfig
from unveil.types import ADDITIONS

CnnSection = section("cnn", CnnConfig)
NoisyClassifierSection = section("noisy-classifier", NoisyClassifierConfig)
ViTSection = section("vit", ViTConfig)
LoraSection = section("lora", LoraConfig)
if TYPE_CHECKING:  # made at run time, from the dataclasses
    Classifier = Lora = PartSection
else:
    Classifier = choice(CnnSection, NoisyClassifierSection, ViTSection)
    Lora = LoraSection
Score = str | float


class ReportedResults(Section):
    """Results of a run of the recipe.

    Attributes:
        time: Time of the whole training, with the machine; empty until measured.
        scores: Our values by metric; empty until measured.
        published: Values of the paper for its full-size setting, by metric.
    """

    time: str = ""
    scores: dict[str, Score] = Field(default_factory=dict)
    published: dict[str, Score] = Field(default_factory=dict)


class RecipeHeader(Section):
    """Header of a recipe.

    Attributes:
        reference: Publication that the recipe follows; empty if there is none.
    """

    former: ClassVar[str] = "recipe"
    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    reference: str = ""
    claim: str = ""
    command: str = ""
    expected: ReportedResults = ReportedResults()


class ControlSection(Section):
    """A ControlNet, whose control images are those of the data.

    Attributes:
        hint_channels: Number of channels of the control images.
        hint_widths: Widths of the levels of the hint network; None: as many levels as reduce control images to the size
            of the first convolution's output.
    """

    hint_channels: Literal[3] = 3
    hint_widths: tuple[Annotated[int, Field(ge=1)], ...] | None = None


class Recipe(ModelConfig, RecipeHeader):
    """Recipe of a diffusion model: the parts of `ModelConfig` flat, with the data, the training and the evaluation.

    Attributes:
        base: Trained model, run, or published file or folder, from which training starts. Parts of the model that the
            recipe leaves out come from it, see `config.on_base`.
        file: Settings of the base that the keys of a published file do not determine, such as {heads: 8}.
        lora: Low-rank additions to its layers; only these are then trained.
        control: ControlNet of the network; only this is then trained.
        smoke_test: Overrides by dotted key for a run of a few seconds.
    """

    kind: Literal["diffusion"] = "diffusion"
    base: str | None = None
    file: dict[str, Any] = Field(default_factory=dict)
    lora: Lora | None = None
    control: ControlSection | None = None
    data: Data
    objective: Objective = SimpleObjective()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    smoke_test: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _additions_have_a_base(self) -> Recipe:
        added = [name for name in ADDITIONS if getattr(self, name) is not None]
        if self.base is None and added:
            raise RecipeError(f"{added[0]}: without base; a {ADDITIONS[added[0]]} is trained on a base: give both")
        if len(added) > 1:
            raise RecipeError(f"{' and '.join(added)}: give one of them, which says what is trained on the base")
        if self.control is not None and getattr(self.data, "control_image", None) is None:
            raise RecipeError(
                "control: without data.control_image, which it reads; give data.control_image, such as {kind: canny}"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Recipe:
        self.objective.build(self, self.process.build(), self.train.batch_size)
        return self

    @model_validator(mode="after")
    def _sizes_may_differ(self) -> Recipe:
        how = self.train.batching
        if how is not None and (self.network.kind != "video-dit" or self.objective.kind != "diffusion-forcing"):
            raise RecipeError(
                f"train.batching = {how!r}: for network.kind = video-dit and objective.kind = diffusion-forcing, not "
                f"{self.network.kind} and {self.objective.kind}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _mirrored_images_fit(self) -> Recipe:
        if self.train.random_flip and self.data.kind == "latents":
            raise RecipeError("train.random_flip: mirrored latents are not those of mirrored images; set it to false")
        if self.train.random_flip and any(condition.kind == "layout" for condition in self.condition):
            raise RecipeError(
                "train.random_flip: the boxes of condition.kind = layout would not be mirrored; set it to false"
            )
        return self

    @property
    def model(self) -> ModelConfig:
        """The part that is saved with the model, with the frame rate of the data."""
        fields = {name: getattr(self, name) for name in ModelConfig.model_fields}
        if self.fps is None and len(self.shape) == 4:
            fields["fps"] = frame_rate_of(self.data)
        return ModelConfig.model_construct(**fields)


class ClassifierRecipe(RecipeHeader):
    """Recipe of a classifier, which provides features for evaluation, or guides the sampling.

    Attributes:
        process: Noise process of a noisy classifier.
    """

    kind: Literal["classifier"] = "classifier"
    data: Data
    network: Classifier
    process: ProcessSection | None = None
    train: ClassifierTrainConfig
    smoke_test: dict[str, Any] = Field(default_factory=dict)


class AutoencoderRecipe(AutoencoderModelConfig, RecipeHeader):
    """Recipe of an autoencoder (VAE), which encodes images as latents, and decodes latents to images.

    Attributes:
        key: Key of the item's image or video.
        scale: Scale of the latents, which gives them a standard deviation of 1: one number, or one per channel. It is
            measured on the training data at the end.
        lengths: Lengths of the clips that training cuts out of the data's videos; None: whole videos.
        smoke_test: Overrides by dotted key for a run of a few seconds.
    """

    key: str = "pixels"
    data: Data
    loss: AutoencoderLossSection = AutoencoderLossSection()
    scale: Literal["one", "channel"] = "one"
    lengths: ClipLengthSection | None = None
    train: TrainConfig
    evaluate: ReconstructionConfig = ReconstructionConfig()
    smoke_test: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _loss_fits(self) -> AutoencoderRecipe:
        check_loss(self.shape, self.autoencoder, self.loss, self.train)
        if self.train.batching is not None:
            raise RecipeError(
                f"train.batching = {self.train.batching!r}: an autoencoder's batches are of one size; "
                "leave it out, and train.tokens"
            )
        if self.lengths is not None:
            check_lengths(self.autoencoder, self.shape[1], self.lengths)
        return self

    @property
    def model(self) -> AutoencoderModelConfig:
        """The part that is saved with the autoencoder."""
        return AutoencoderModelConfig.model_construct(shape=self.shape, autoencoder=self.autoencoder)


class SequenceRecipe(Seq2SeqFields, RecipeHeader):
    """Recipe of a model that converts one sequence to another, such as a sentence to its translation."""


class CaptionerRecipe(CaptionerFields, RecipeHeader):
    """Recipe of a model that generates captions of images and videos."""


AnyRecipe = Recipe | ClassifierRecipe | SequenceRecipe | AutoencoderRecipe | CaptionerRecipe


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    folder = resources.files("unveil") / "assets" / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_text(name_or_path: str | Path) -> str:
    """Return the YAML of a bundled recipe by its name, or of a file.

    Raises:
        RecipeError: The name is unknown and no file exists, or the file is not text.
    """
    name = migration.RECIPES.get(str(name_or_path), str(name_or_path))
    if name in recipe_names():
        return (resources.files("unveil") / "assets" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.is_dir():
        path = path / "recipe.yaml"  # a run's own
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = "not a text file" if isinstance(problem, UnicodeDecodeError) else "no such recipe or file"
        raise RecipeError(
            f"recipe {name!r}: {reason}{did_you_mean(name, recipe_names())}; "
            "`unveil recipes list` lists the bundled ones"
        ) from problem


def load_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    small: bool = False,
    config_of: Callable[[str, Mapping[str, Any]], ModelConfig] | None = None,
) -> AnyRecipe:
    """Return the checked recipe of a bundled name, a YAML file or a run's folder, with overrides (`train.steps=100`).

    Args:
        name_or_path: The bundled name, the file or the folder.
        overrides: Texts such as `train.steps=100`, or values by such keys.
        small: Apply the recipe's `smoke_test` overrides first.
        config_of: Return the configuration of a base, from its name and the recipe's `file`; it is called if the recipe
            leaves parts of its model to the base.

    Raises:
        RecipeError: The recipe has faults; there is a line for each: file, key path, value, what is allowed, nearest
            name.
    """
    where = str(name_or_path)
    raw = read_yaml(recipe_text(name_or_path), where)
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: holds no map of keys; a recipe begins with `name:` and `data:`")
    former = migration.Former(where)
    raw = migration.migrate(raw, former=former)
    if not (where in recipe_names() or Path(where).is_dir()):  # a user's own file
        former.warn()
    if small:
        shrink(raw, where)
    changes = overrides.items() if isinstance(overrides, Mapping) else map(read_assignment, overrides)
    for path, value in changes:
        change(raw, path, value)
    raw.setdefault("name", Path(where).stem)
    if config_of is not None and on_base.needs_base(raw):
        raw = on_base.complete(raw, config_of(str(raw["base"]), raw.get("file") or {}))
    return parse_recipe(raw, where)


def parse_recipe(raw: Any, where: str) -> AnyRecipe:
    """Return the checked recipe of plain values."""
    kinds: dict[str, type[AnyRecipe]] = {
        "diffusion": Recipe,
        "classifier": ClassifierRecipe,
        "sequence": SequenceRecipe,
        "autoencoder": AutoencoderRecipe,
        "captioner": CaptionerRecipe,
    }
    kind = raw.get("kind", "diffusion") if isinstance(raw, dict) else "diffusion"
    if kind not in kinds:
        raise RecipeError(
            f"{where}: kind = {kind!r}: must be one of {', '.join(kinds)}{did_you_mean(kind, list(kinds))}"
        )
    return validate(kinds[kind], raw, where)


def shrink(raw: dict[str, Any], where: str) -> None:
    """Apply a recipe's `smoke_test` overrides in place."""
    changes = raw.get("smoke_test") or {}
    if not isinstance(changes, dict):
        raise RecipeError(f"{where}: smoke_test = {changes!r}: must be a map such as {{train.steps: 60}}")
    for path, value in changes.items():
        assign(raw, *migration.migrate_path(raw, str(path), value))
