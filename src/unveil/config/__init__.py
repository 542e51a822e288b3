"""Recipes and models as checked, frozen sections; unknown keys are errors that name the nearest one."""

from unveil.config.autoencoder import AutoencoderConfig, AutoencoderLossSection, PerceptualSection, ReconstructionConfig
from unveil.config.model import ModelConfig
from unveil.config.reading import dump, override, read_yaml, validate
from unveil.config.recipe import (
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
from unveil.config.run import EvaluateConfig, TrainConfig
from unveil.config.sampling import GuidanceConfig, SampleConfig
from unveil.config.section import PartSection, Section, choice, section

__all__ = [
    "AnyRecipe",
    "AutoencoderConfig",
    "AutoencoderLossSection",
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
    "choice",
    "dump",
    "load_recipe",
    "override",
    "parse_recipe",
    "read_yaml",
    "recipe_names",
    "recipe_text",
    "section",
    "validate",
]
