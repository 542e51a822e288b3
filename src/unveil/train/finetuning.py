"""Fine-tuning from a base model: all weights, a LoRA, or a ControlNet.

With a LoRA or a ControlNet the base stays unchanged, and a run's checkpoints contain only what is trained. All else is
as in other training: the EMA, the optimiser and the checkpoints include only weights that have a gradient.

Sources: LoRA, Hu et al. 2021 (arXiv:2106.09685), section 4; ControlNet, Zhang et al. 2023, section 3
(arXiv:2302.05543).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from unveil.conditioning.controlnet import AttachedControlNet
from unveil.conditioning.learned_text_encoder import LearnedTextEncoder
from unveil.conditioning.text_encoder import TextEncoder
from unveil.data.control_images import HINT
from unveil.errors import RecipeError
from unveil.model import Model, build
from unveil.model.config import ModelConfig, Recipe, on_base
from unveil.model.config.model import SavedSection
from unveil.model.config.sections import Section
from unveil.model.config.text import TextSection
from unveil.model.config.token_conditions import LearnedTextSection
from unveil.model.lora_state import NAME
from unveil.nn import lora
from unveil.nn.controlnet import ControlNet, hint_widths
from unveil.nn.unet import UNet
from unveil.types import BaseModel


def setup_finetune(model: Model, base: BaseModel, recipe: Recipe) -> Model:
    """Prepare the base model for training with a recipe.

    Samples may have another size or number of frames than the base's, and prompts another length, if the weights are
    valid for both.

    Args:
        model: Base model, on its device; its parts become those of the result.
        base: Name and hash of the base model.

    Raises:
        RecipeError: The base is another model than the recipe describes.
    """
    other = [] if model.config is None else _others(model.config, recipe.model)
    config = model_config_on_base(model, base, recipe, besides=other)
    model = _remade(model, base, config) if other else model
    model.config = config
    model.sampling = recipe.sample
    model.denoiser.requires_grad_(True)  # published models are read to be sampled
    return model


def _others(base: ModelConfig, wanted: ModelConfig) -> list[str]:
    """Return the permitted differences of two models: the shape, the shift of the process, the length of prompts."""
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
    """Build a model of the config's shape, process and length of prompts from the base's parts."""
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
            mine.restore_files(part.files())
        else:
            other.conditioners[key] = part
    return other.to(model.device)


def setup_lora(model: Model, base: BaseModel, recipe: Recipe) -> Model:
    """Add a new LoRA to the base's network, in place; only the LoRA is trained.

    Args:
        model: Base model, on its device.
        base: Name and hash of the base model.

    Raises:
        RecipeError: The recipe has no LoRA or describes another model, or its targets match no layer.
    """
    if recipe.lora is None:
        raise RecipeError("the recipe has no section lora, so there is nothing to train on the base; add one")
    model.config, network = model_config_on_base(model, base, recipe), model.denoiser.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        additions = lora.init_lora(network, recipe.lora.build())  # on the CPU: a seed gives the same ones anywhere
    lora.attach(network, NAME, additions)
    model.requires_grad_(False)
    lora.freeze_except(network, NAME)
    model.sampling, model.base = recipe.sample, base
    return model


def model_config_on_base(model: Model, base: BaseModel, recipe: Recipe, besides: Sequence[str] = ()) -> ModelConfig:
    """Check that a recipe's model matches the base, and return its configuration.

    An autoencoder that the recipe gives by its folder is replaced by the base's own.

    Args:
        besides: Sections that may differ.

    Raises:
        RecipeError: The recipe describes another model than the base.
    """
    ours = recipe.model
    if model.config is None:
        return ours
    if other := on_base.differences(model.config, ours, besides):
        raise RecipeError(
            f"base = {base.path}: {'; '.join(other)}; make them equal, or leave these parts out of the recipe, which "
            "takes them from the base then"
        )
    taken: dict[str, Any] = {"network": model.config.network}
    if isinstance(ours.autoencoder, SavedSection):  # the base holds that codec, and says what it is
        taken["autoencoder"] = model.config.autoencoder
    for section in ours.condition:
        if isinstance(section, TextSection):
            encoder = cast(TextEncoder, model.conditioners[section.key]).set_cache_size(section.cache)
            encoder.drop = section.drop_prob
    return ours.model_copy(update=taken)


def setup_controlnet(model: Model, base: BaseModel, recipe: Recipe) -> Model:
    """Attach a new ControlNet to the base, in place; only the ControlNet is trained, and at first it changes nothing.

    Args:
        model: Base model, on its device.
        base: Name and hash of the base model.

    Raises:
        RecipeError: The recipe has no ControlNet or describes another model, or the base is not a U-Net.
    """
    if recipe.control is None:
        raise RecipeError("the recipe has no section control, so there is nothing to train on the base; add one")
    if model.controls is not None:
        raise RecipeError(f"base = {base.path}: a ControlNet itself; name the base that this one was trained on")
    config, network = model_config_on_base(model, base, recipe), model.denoiser.network
    if not isinstance(network, UNet):
        raise RecipeError(f"the base {base.path} is a {type(network).__name__}; a ControlNet is trained on a U-Net")
    if config.network_config() != network.config:
        raise RecipeError(f"network of the base {base.path} is {network.config}, which the recipe has to say")
    model.requires_grad_(False)
    model.with_controlnets(AttachedControlNet(HINT, init_controlnet(model, network, recipe)))
    model.config, model.sampling = config, recipe.sample
    model.base = base._replace(what="control")
    return model


def init_controlnet(model: Model, network: UNet, recipe: Recipe) -> ControlNet:
    """Create a ControlNet that adds nothing yet: a copy of the network's first half, and a hint network from the seed.

    Raises:
        RecipeError: The control images cannot be reduced to the size of the first convolution's output.
    """
    assert recipe.control is not None
    factor = model.shape[-1] // model.autoencoder.latent_shape(model.shape)[-1] * network.config.patch
    widths = recipe.control.hint_widths or hint_widths(factor)
    if 2 ** (len(widths) - 1) != factor:
        raise RecipeError(
            f"control.hint_widths = {list(widths)}: {len(widths)} levels; hints are {factor} times the size of what "
            f"the base's first convolution makes, which takes {factor.bit_length()}; leave it out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        control = ControlNet.from_unet(network, hint_channels=recipe.control.hint_channels, hint_widths=widths)
    return control.requires_grad_(True)
