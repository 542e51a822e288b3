"""Training a ControlNet: a base that stays as it is, and a copy of its first half beside it, which reads hints.

A run's checkpoints hold the ControlNet alone. Everything else is the usual training: the average, the optimiser and
the checkpoints know only what has a gradient.

Source: Zhang et al. 2023, section 3 (arXiv:2302.05543).
"""

from __future__ import annotations

import torch

from unveil.conditioning.controlnet import Control
from unveil.data.control_images import HINT
from unveil.errors import RecipeError
from unveil.model import Model
from unveil.model.config import Recipe
from unveil.nn.controlnet import ControlNet, hint_widths
from unveil.nn.unet import UNet
from unveil.train.lora import model_config_on_base
from unveil.types import BaseModel


def setup_controlnet(model: Model, base: BaseModel, recipe: Recipe) -> Model:
    """The base under a fresh ControlNet, which alone the recipe trains; it is the model given, and draws what it drew.

    Args:
        model: the base, on its device.
        base: which one it is.

    Raises:
        RecipeError: no ControlNet in the recipe, another model than it describes, or a base that is not a U-Net.
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
    model.with_controlnets(Control(HINT, init_controlnet(model, network, recipe)))
    model.config, model.sampling = config, recipe.sample
    model.base = base._replace(what="control")
    return model


def init_controlnet(model: Model, network: UNet, recipe: Recipe) -> ControlNet:
    """A copy of the network's first half that adds nothing yet; its hint network is drawn by the recipe's seed.

    Raises:
        RecipeError: hints cannot be brought to the size of what the network's first convolution makes.
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
        control = ControlNet.of(network, hint_channels=recipe.control.hint_channels, hint_widths=widths)
    return control.requires_grad_(True)
