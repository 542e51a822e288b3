"""Training a whole network on from given weights; its codec and its text encoder stay as they are."""

from __future__ import annotations

import torch

from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.errors import RecipeError
from unveil.model import Model, build
from unveil.model.config import ModelConfig, Recipe
from unveil.model.config.sections import Section
from unveil.model.config.token_conditions import LearnedTextSection
from unveil.train.lora import model_config_on_base
from unveil.types import BaseModel


def setup_finetune(model: Model, base: BaseModel, recipe: Recipe) -> Model:
    """The base as the recipe describes it, ready to be trained on.

    Samples may have another size than the base's, frames among it, and prompts another length, where the same weights
    are those of either.

    Args:
        model: the base, on its device; its parts become those of the result.
        base: which one it is.

    Raises:
        RecipeError: another model than the recipe describes.
    """
    other = [] if model.config is None else _others(model.config, recipe.model)
    config = model_config_on_base(model, base, recipe, besides=other)
    model = _remade(model, base, config) if other else model
    model.config = config
    model.sampling = recipe.sample
    model.denoiser.requires_grad_(True)  # published models are read to be sampled
    return model


def _others(base: ModelConfig, wanted: ModelConfig) -> list[str]:
    """What differs between two models that may: the shape, the shift of one process, the length of one's prompts."""
    within = [getattr(config.process, "process", config.process) for config in (base, wanted)]
    prompts = [[_of_any_length(part) for part in config.condition] for config in (base, wanted)]
    return [
        *(["shape"] if tuple(base.shape) != tuple(wanted.shape) else []),
        *(["process"] if base.process != wanted.process and within[0] == within[1] else []),
        *(["condition"] if base.condition != wanted.condition and prompts[0] == prompts[1] else []),
    ]


def _of_any_length(part: Section) -> Section:
    return part.model_copy(update={"max_length": 1}) if isinstance(part, LearnedTextSection) else part


def _remade(model: Model, base: BaseModel, config: ModelConfig) -> Model:
    """The base's parts as a model of the config's shape, process and length of prompts."""
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in build(config).denoiser.state_dict().items()}
    present = {key: value.shape for key, value in model.denoiser.state_dict().items()}
    if present != wanted:
        raise RecipeError(
            f"shape of the base {base.path} is {list(model.shape)}, of the recipe {list(config.shape)}: this network's "
            "weights hold for the first alone; make them equal"
        )
    other = build(config)
    other.denoiser.load_state_dict(model.denoiser.state_dict())
    other.autoencoder = model.autoencoder
    for key, part in model.conditioners.items():
        mine = other.conditioners[key]
        if isinstance(part, LearnedTextEncoder) and isinstance(mine, LearnedTextEncoder):
            mine.load_state_dict(part.state_dict())
            mine.take_files(part.files())
        else:
            other.conditioners[key] = part
    return other.to(model.device)
