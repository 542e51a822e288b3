"""Recipes and models as checked, frozen sections; unknown keys are errors that name the nearest one."""

from unveil.model.config.autoencoder import (
    AutoencoderLossSection,
    AutoencoderModelConfig,
    PerceptualSection,
    ReconstructionConfig,
)
from unveil.model.config.model import ModelConfig
from unveil.model.config.recipe import (
    AnyRecipe,
    AutoencoderRecipe,
    CaptionerRecipe,
    ClassifierRecipe,
    Recipe,
    SequenceRecipe,
    load_recipe,
    parse_recipe,
    recipe_names,
    recipe_text,
)
from unveil.model.config.sampling import GuidanceConfig, SampleConfig
from unveil.model.config.sections import (
    PartSection,
    Section,
    change,
    choice,
    dump,
    override,
    read_assignment,
    read_yaml,
    section,
    validate,
)
from unveil.model.config.train import EvaluateConfig, TrainConfig

__all__ = [
    "AnyRecipe",
    "AutoencoderLossSection",
    "AutoencoderModelConfig",
    "AutoencoderRecipe",
    "CaptionerRecipe",
    "ClassifierRecipe",
    "EvaluateConfig",
    "GuidanceConfig",
    "ModelConfig",
    "PartSection",
    "PerceptualSection",
    "Recipe",
    "ReconstructionConfig",
    "SampleConfig",
    "Section",
    "SequenceRecipe",
    "TrainConfig",
    "change",
    "choice",
    "dump",
    "load_recipe",
    "override",
    "parse_recipe",
    "read_assignment",
    "read_yaml",
    "recipe_names",
    "recipe_text",
    "section",
    "validate",
]
